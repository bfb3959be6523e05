"""What MLflow takes: trials a second through the real tracker, into sqlite and into a server.

    python -m benchmarks.sweeps.mlflow [--save]

Into sqlite always; into an MLflow server on PostgreSQL, with passwords, where Debian's
`postgresql` is installed (started on loopback, in a temporary folder, as in `tests/cluster`).

* send: from the first trial queued to the last one stored: three calls each (create, batch, end).
* asked of the sweep: what `Tracker.trial` takes of the driver's own time.
* find: a resumed sweep lists the runs that are there; then nothing is sent again.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.environment import RESULTS, machine
from sweeps.results.ledger import Entry, Ledger
from sweeps.tracking import mlflow_store
from sweeps.tracking.tracker import Tracker

COUNTS = (10, 100, 1000)
TASKS = 8
POINTS = 20
"""Points of the curve of a learning trial."""


@dataclass(frozen=True)
class Timed:
    """One store, one number of trials."""

    store: str
    trials: int
    kind: str
    send_s: float
    asked_ms: float
    find_s: float


def entry(number: int, *, learned: bool) -> Entry:
    """A trial on eight tasks; one that learned has a curve of 20 points and four values each."""
    names = [f"acc/task{at}" for at in range(TASKS)] + [f"nll/task{at}" for at in range(TASKS)]
    curve = [
        {"step": 50 * at, "loss": 1 / at, "coding/min": 0.1, "coding/mean": 0.2, "coding/max": 0.3}
        for at in range(1, POINTS + 1)
    ]
    return Entry(
        f"{number:016d}", "ties", "static", {"density": 0.2, "scale": number / 1000},
        "done", "select", metrics={"acc/mean": 0.5, **dict.fromkeys(names, 0.5)},
        trial_s=1.5, peak_bytes=10**9, busy_s=2.0, gpu_s=2.0,
        started=datetime.now(UTC).isoformat(), curve=curve if learned else (),
        steps=1000 if learned else 0,
    )  # fmt: skip


def timed(store: str, uri: str | None, folder: Path, count: int, *, learned: bool) -> Timed:
    """Send `count` trials as a sweep does, then resume it."""
    kind = "learned" if learned else "static"
    name = f"{kind}-{count}"
    client, experiment = mlflow_store.connect(uri, name, folder)
    ledger = Ledger(folder / name)
    for number in range(count):
        ledger.add(entry(number, learned=learned))
    tracker = Tracker(client, experiment, name, name, {})
    tracker.sender.drain()
    began, asked = time.perf_counter(), 0.0
    for each in ledger:
        at = time.perf_counter()
        tracker.trial(each)
        asked += time.perf_counter() - at
    tracker.flush(ledger)
    took = time.perf_counter() - began
    assert tracker.fault is None, tracker.fault
    tracker.sender.close()
    began = time.perf_counter()
    resumed = Tracker(client, experiment, name, name, {})
    resumed.sender.drain()
    found = time.perf_counter() - began
    assert len(resumed.sent) == count
    resumed.finish("FINISHED", {}, [])
    return Timed(store, count, kind, took, 1000 * asked / count, found)


def server(folder: Path) -> list[Timed]:
    """Into a server on PostgreSQL; nothing where it is not installed."""
    from tests.cluster.tracking_server import PASSWORD, POSTGRES, USER, Postgres, Server

    if not POSTGRES:
        return []
    os.environ |= {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    postgres = Postgres()
    try:
        started = Server(folder, postgres)
        try:
            return sizes("server, PostgreSQL", started.url, folder)
        finally:
            started.kill()
    finally:
        postgres.close()


def sizes(store: str, uri: str | None, folder: Path) -> list[Timed]:
    """All numbers of static trials, and a hundred that learned."""
    found = [timed(store, uri, folder, count, learned=False) for count in COUNTS]
    return [*found, timed(store, uri, folder, 100, learned=True)]


def table(rows: list[Timed]) -> str:
    """The result file."""
    lines = [
        "# mlflow",
        "",
        f"`python -m benchmarks.sweeps.mlflow`, {datetime.now(UTC).date()}: {machine()}.",
        f"Trials of {TASKS} tasks (20 metrics); one that learned has a curve of {POINTS} points of"
        " 4 values more. One sending thread; server, database and sender share the cores.",
        "",
        "| store | trials | kind | trials a second | ms a trial | asked of the sweep, ms |"
        " found again in, s |",
        "|---" * 7 + "|",
    ]
    lines += [
        f"| {row.store} | {row.trials} | {row.kind} | {row.trials / row.send_s:.1f} |"
        f" {1000 * row.send_s / row.trials:.0f} | {row.asked_ms:.2f} | {row.find_s:.2f} |"
        for row in rows
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Both stores; print, and with `--save` keep."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = sizes("sqlite", None, Path(scratch) / "sqlite")
        (Path(scratch) / "server").mkdir()
        rows += server(Path(scratch) / "server")
    text = table(rows)
    print(text)
    if "--save" in sys.argv:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"mlflow_{datetime.now(UTC).date()}.md").write_text(text)


if __name__ == "__main__":
    main()
