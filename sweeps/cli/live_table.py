"""`sweeps report --follow`: the table of a running sweep, from a folder, storage or cluster."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from actors.experts.metrics import sign_of
from fusion.errors import InputError
from sweeps.console import number_format
from sweeps.report.terminal_table import render
from sweeps.results.comparison import is_single
from sweeps.results.folder import SweepFolder, read_identity
from sweeps.results.ledger import Entry
from sweeps.results.owner import FILE as OWNER
from sweeps.results.owner import STALE, Owner, read_owner
from sweeps.results.partial_comparison import gather, kept_spec
from sweeps.results.rows.winners import counted, timestamp, winners
from sweeps.spec.candidates import planned
from sweeps.spec.reference_methods import completed, references
from sweeps.storage.watch import Watched

LAST = 5
"""Trials shown below the table."""


@dataclass(frozen=True)
class Line:
    """One method of a running sweep."""

    method: str
    planned: int
    """Trials that the spec means, at most."""
    done: int
    failed: int
    best: float | None
    """The metric's best value so far."""
    params: dict[str, Any]
    rival: bool = True
    """Whether the sweep file lists it; a reference is never called the best."""


@dataclass(frozen=True)
class Snapshot:
    """Progress of a sweep."""

    sweep: str
    metric: str
    state: str
    """`running`, or how it ended."""
    running: bool
    elapsed: float
    """Seconds since its present driver began."""
    lines: tuple[Line, ...]
    last: tuple[Entry, ...]
    """The last trials that ended, the latest first."""

    @property
    def done(self) -> int:
        """Trials that succeeded."""
        return sum(line.done for line in self.lines)

    @property
    def failed(self) -> int:
        """Trials that failed."""
        return sum(line.failed for line in self.lines)

    @property
    def planned(self) -> int:
        """Number of all trials."""
        return sum(line.planned for line in self.lines)


def snapshot(folder: Path) -> Snapshot:
    """Progress of the sweep in a folder.

    Raises:
        InputError: there is no sweep, or its spec cannot be read.
    """
    about = SweepFolder(folder)
    identity = read_identity(about)
    spec = kept_spec(folder)
    if spec is None:
        raise InputError(f"{folder / 'spec.yaml'}: a sweep file that this version reads needed")
    entries = counted(about.ledger, spec)
    most = {**dict.fromkeys(references(spec), 1), **planned(completed(spec))}
    best = {row.method: row for row in winners(entries, spec.metric)}
    lines = []
    for method, trials in most.items():
        own = [entry.status for entry in entries if entry.method == method]
        row = best.get(method)
        value = row.val.get(spec.metric) if row else None
        params = dict(row.params) if row else {}
        done, failed = own.count("done") + own.count("stopped"), own.count("failed")
        asked = method in spec.methods
        lines.append(Line(method, max(trials, done + failed), done, failed, value, params, asked))
    file = folder / OWNER
    owner = read_owner(file.read_bytes()) if file.exists() else None
    started = timestamp(identity.history[-1]["started"] if identity.history else identity.created)
    state, running, elapsed = run_state(owner, started, (folder / "comparison.json").exists())
    ended = sorted(entries, key=lambda entry: entry.ended, reverse=True)
    return Snapshot(
        spec.name, spec.metric, state, running, elapsed, tuple(lines), tuple(ended[:LAST])
    )


def run_state(
    owner: Owner | None, started: float | None, compared: bool
) -> tuple[str, bool, float]:
    """(state, whether it runs, seconds that it has run) of a sweep.

    One that has no owner's file has just begun, or is of a version that wrote none.
    """
    if owner is not None:
        until = time.time() if owner.alive else owner.beat
        return owner.state_text(), owner.alive, max(0.0, until - owner.since)
    age = time.time() - (started or 0.0)
    if compared:
        return "finished", False, 0.0
    return ("running", True, age) if age < STALE else ("not known to be running", False, 0.0)


def follow(watched: Watched, console: Console, every: float) -> Snapshot:
    """Show a sweep until it ends, then its comparison; returns the last snapshot.

    On a terminal a live table, elsewhere a line at each change. A place that does not answer for a
    time is queried again.

    Raises:
        InputError: there is no sweep, or no trial had ended when it ended.
    """
    now = snapshot(watched.folder)
    if console.is_terminal:
        with Live(view(now), console=console, refresh_per_second=4) as live:
            while now.running:
                time.sleep(every)
                fault = refreshed(watched)
                now = now if fault else snapshot(watched.folder)
                live.update(view(now, fault))
    else:
        said = ""
        while True:
            if (line := words(now)) != said:
                console.print(f"{line}, {number_format.seconds(now.elapsed)}", soft_wrap=True)
                said = line
            if not now.running:
                break
            time.sleep(every)
            if fault := refreshed(watched):
                console.print(fault, soft_wrap=True, markup=False)
            else:
                now = snapshot(watched.folder)
    if now.state != "finished":
        console.print(f"{watched.where}: {now.state}", soft_wrap=True, markup=False)
    if now.done or now.state == "finished":
        render(gather(watched.folder)[0], console)
    return now


def refreshed(watched: Watched) -> str:
    """Copy changes; returns why that failed, or an empty text. A local folder that is gone stays
    gone."""
    try:
        watched.refresh()
    except InputError as error:
        if watched.pull is None:
            raise
        return str(error)
    return ""


def view(now: Snapshot, fault: str = "") -> Group:
    """The live table, with the last trials below it."""
    table = Table(
        title=f"{escape(now.sweep)}: {count(now)}, {number_format.seconds(now.elapsed)}",
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    table.add_column("method", no_wrap=True)
    for name in ("done", "of", "failed", f"best {now.metric}"):
        table.add_column(escape(name), justify="right", no_wrap=True)
    table.add_column("its parameters", overflow="fold")
    for line in now.lines:
        cells = [line.method, str(line.done), str(line.planned), str(line.failed or "")]
        cells += [shown(line.best), " ".join(number_format.params_words(line.params, limit=20))]
        style = "red" if line.failed else None if line.rival else "dim"
        table.add_row(*map(escape, cells), style=style)
    below = [Text(trial_words(entry, now.metric), style="dim") for entry in now.last]
    ended = [] if now.running else [Text(now.state, style="yellow")]
    return Group(table, *below, *ended, *([Text(fault, style="red")] if fault else []))


def words(now: Snapshot) -> str:
    """A snapshot in one line: `tiny: 12/40 trials, 1 failed; best ties 0.6540 (density=0.2); last
    …`."""
    parts = [f"{now.sweep}: {count(now)}"]
    down = sign_of(now.metric) < 0
    found = [line for line in now.lines if line.best is not None and line.rival]
    if found := [line for line in found if is_single(line.method)] or found:
        pick = min if down else max
        best = pick(found, key=lambda line: line.best if line.best is not None else math.nan)
        named = " ".join(number_format.params_words(best.params, limit=20))
        parts.append(f"best {best.method} {shown(best.best)}" + (f" ({named})" if named else ""))
    parts += [f"last {trial_words(entry, now.metric)}" for entry in now.last[:1]]
    return "; ".join(parts)


def count(now: Snapshot) -> str:
    """`12/40 trials, 1 failed`."""
    failed = f", {now.failed} failed" if now.failed else ""
    return f"{now.done}/{now.planned} trials{failed}"


def trial_words(entry: Entry, metric: str) -> str:
    """A finished trial in one line."""
    value = entry.error if entry.status == "failed" else shown(entry.metrics.get(metric))
    if entry.stopped is not None:
        value = f"stopped after {entry.stopped.rows} of {entry.stopped.of} rows"
    named: Iterable[str] = number_format.params_words(dict(entry.params), limit=20)
    return " ".join([entry.method, *named, str(value)])[:200]


def shown(value: float | None) -> str:
    """A metric's value as text."""
    return number_format.MISSING if value is None else f"{value:.4f}"
