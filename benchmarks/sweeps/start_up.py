"""Where the time of small commands goes: start-up of the program, and a sweep of one λ.

    python -m benchmarks.sweeps.start_up [--save]

* commands: wall and CPU seconds of `sweeps --help`, `methods`, `plan` and `report`.
* sweep: one λ of task arithmetic on the embedded pool, whose data are cached by a first run. Wall
  seconds of each phase are those between two lines of its output. CPU seconds are those of the
  whole process tree, by kind of process.

CPU seconds hardly depend on what else the machine does; wall seconds do.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks.environment import RESULTS, machine
from sweeps.cli.quickstart import QUICKSTARTS, ensure_pool

EVERY = 0.2
"""Seconds between two looks at the process tree; CPU time of a process after the last look is not
counted."""

REPEATS = 3
"""Runs of each command; the quickest counts."""

SHOWN = 0.05
"""Seconds from which a phase is shown."""

LOAD = [0.0]
"""The machine's load of the last minute, before the sweep that is shown."""

ONE = "methods={task_arithmetic: {scale: {grid: [0.3]}}}"

PROCESSES: tuple[tuple[str, str], ...] = (
    (r"ray::Replica", "replicas"),
    (r"ray::Dispatcher", "dispatcher"),
    (r"ray::(ImplicitFunc|with_parameters|run_trial|\w*trial\w*)", "trials"),
    (r"ray::(read_|IDLE)", "readers of weights and idle workers"),
    (r"ray::", "other workers"),
    (r"ray", "Ray's own"),
    (r"", "driver"),
)
"""Pattern of a process's title -> its kind in the table. The first that matches counts, of all
titles that a process had: an idle worker becomes a replica."""


@dataclass
class Measured:
    """One command: seconds of wall, CPU seconds by kind of process, and its lines with times."""

    wall: float = 0.0
    cpu: Mapping[str, float] = field(default_factory=dict)
    lines: list[tuple[float, str]] = field(default_factory=list)


class Watch(threading.Thread):
    """Add up the CPU seconds of a process and all that it starts, until it ends."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root = root
        self.seen: dict[tuple[int, float], tuple[int, float]] = {}
        """Process -> position of its kind in `PROCESSES`, and CPU seconds so far."""
        self.ended = threading.Event()

    def run(self) -> None:
        """Look until the end."""
        while not self.ended.wait(EVERY):
            with suppress(psutil.Error):
                root = psutil.Process(self.root)
                for process in (root, *root.children(recursive=True)):
                    with suppress(psutil.Error):
                        self.note(process)

    def note(self, process: psutil.Process) -> None:
        """Note the CPU seconds that a process has used so far."""
        title = "" if process.pid == self.root else " ".join(process.cmdline())
        kind = next(at for at, (like, _) in enumerate(PROCESSES) if re.search(like, title))
        times, key = process.cpu_times(), (process.pid, process.create_time())
        known, _ = self.seen.get(key, (kind, 0.0))
        self.seen[key] = min(kind, known), times.user + times.system

    def total(self) -> dict[str, float]:
        """CPU seconds by kind of process."""
        found: dict[str, float] = defaultdict(float)
        for kind, seconds in self.seen.values():
            found[PROCESSES[kind][1]] += seconds
        return found


def measured(arguments: Sequence[str], folder: Path) -> Measured:
    """Run `sweeps` with these arguments in a folder.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-u", "-m", "sweeps", *arguments]
    began, found = time.perf_counter(), Measured()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
    watch = Watch(process.pid)
    watch.start()
    assert process.stdout is not None
    for line in process.stdout:
        found.lines.append((time.perf_counter() - began, line.rstrip()))
    _, status, used = os.wait4(process.pid, 0)
    found.wall = time.perf_counter() - began
    watch.ended.set()
    watch.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command}: exit status {process.returncode}")
    found.cpu = watch.total()
    if len(found.cpu) < 2:  # no other process: the kernel's own figure
        found.cpu = {"driver": used.ru_utime + used.ru_stime}
    return found


def phases(found: Measured) -> list[tuple[str, float]]:
    """Lines that name a phase or end it, with the seconds to the next of them."""
    starts = [(0.0, "start of the program"), *((at, line) for at, line in found.lines if line)]
    ends = [*(at for at, _ in starts[1:]), found.wall]
    return [(line, end - at) for (at, line), end in zip(starts, ends, strict=True)]


def report(commands: Mapping[str, Measured], sweep: Measured) -> str:
    """The result as Markdown."""
    return "\n".join(
        [
            "# start_up",
            "",
            f"`python -m benchmarks.sweeps.start_up`, {datetime.now(UTC).date()}: {machine()}.",
            f"Load of the last minute before the sweep: {LOAD[0]:.1f}.",
            "",
            "| command | wall s | CPU s |",
            "|---|---|---|",
            *(
                f"| `sweeps {name}` | {each.wall:.2f} | {sum(each.cpu.values()):.2f} |"
                for name, each in commands.items()
            ),
            f"| a sweep of one λ | {sweep.wall:.1f} | {sum(sweep.cpu.values()):.1f} |",
            "",
            "| process of the sweep | CPU s |",
            "|---|---|",
            *(f"| {kind} | {seconds:.1f} |" for kind, seconds in sweep.cpu.items()),
            "",
            "| from this line to the next | wall s |",
            "|---|---|",
            *(
                f"| {re.split(r' {2,}', line.strip())[0]} | {took:.2f} |"  # no paths behind a label
                for line, took in phases(sweep)
                if took >= SHOWN
            ),
            "",
        ]
    )


def main() -> None:
    """Measure, print, and with `--save` keep it."""
    ensure_pool("images", Console())
    path = str(QUICKSTARTS["images"])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run = ["run", path, "--set", ONE, "--fresh"]
        measured(run, folder)
        LOAD[0] = os.getloadavg()[0]
        sweep = measured(run, folder)
        name = str(next(path for path in (folder / "outputs").iterdir() if path.is_dir()))
        asked = {
            "--help": ["--help"],
            "methods": ["methods"],
            "plan quickstart.yaml": ["plan", path, "--fresh"],
            "report": ["report", name],
        }
        commands = {
            name: min((measured(each, folder) for _ in range(REPEATS)), key=lambda m: m.wall)
            for name, each in asked.items()
        }
    text = report(commands, sweep)
    print(text)
    if "--save" in sys.argv:
        (RESULTS / f"start_up_{datetime.now(UTC).date()}.md").write_text(text)


if __name__ == "__main__":
    main()
