"""A TIES sweep of 10 λ and 3 densities on the embedded pool: with all rows, and raced.

    python -m benchmarks.sweeps.racing [--save]

Each way runs on a fleet of its own, ready and warm; wall time is that from the first trial's start
to the last one's end. All ways must have the same winner with the same accuracy; with a confidence
that is likely and not certain.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.environment import Row, finish
from benchmarks.sweeps.sweep import tried
from sweeps.cli.quickstart import QUICKSTARTS, ensure_pool
from sweeps.cluster import ray_connection
from sweeps.planning.prepare import prepare
from sweeps.results.ledger import Entry
from sweeps.spec.sweep import SweepSpec, load

SCALES = [round(0.2 * step, 1) for step in range(1, 11)]
DENSITIES = [0.1, 0.2, 0.5]
WAYS: dict[str, Any] = {
    "all rows": "all",
    "racing": "racing",
    "racing, confidence 0.99": "{racing: {confidence: 0.99}}",
}


def spec(evaluate: str) -> SweepSpec:
    """The embedded pool with TIES alone."""
    grids = f"methods={{ties: {{density: {{grid: {DENSITIES}}}, scale: {{grid: {SCALES}}}}}}}"
    return load(QUICKSTARTS["images"], [grids, f"evaluate={evaluate}"])


def rows_of(entries: list[Entry]) -> int:
    """Rows that trials were evaluated on."""
    whole = sum(sum(entry.n.values()) for entry in entries)
    return whole + sum(entry.stopped.rows for entry in entries if entry.stopped is not None)


def best(entries: list[Entry]) -> tuple[float, dict[str, Any]]:
    """Accuracy on select and parameters of the best trial that was evaluated on all rows."""
    done = [entry for entry in entries if entry.status == "done"]
    found = max(done, key=lambda entry: entry.metrics["acc/mean"])
    return found.metrics["acc/mean"], dict(found.params)


def main() -> None:
    """Run the sweep in each way, and print rows and seconds."""
    import datasets

    datasets.disable_progress_bars()
    ensure_pool("images", Console())
    runs: dict[str, tuple[float, list[Entry]]] = {}
    for name, evaluate in WAYS.items():
        with tempfile.TemporaryDirectory() as scratch:
            prepared = prepare(spec(evaluate), Path(scratch), ray_connection.this_machine())
            seconds, entries = tried(prepared, Path(scratch) / "sweep")
        runs[name] = seconds, [entry for entry in entries if entry.method == "ties"]
    (wall, entries), *_ = runs.values()
    winner, shown = best(entries), []
    for name, (seconds, found) in runs.items():
        assert best(found)[1] == winner[1], (name, best(found), winner)
        rows, stopped = rows_of(found), sum(entry.stopped is not None for entry in found)
        counted = f"{rows:,} rows, {stopped} of {len(found)} trials stopped"
        took = f"{seconds:.2f} s ÷ {wall:.2f} s"
        shown += [
            Row(f"{name}: share of the rows", rows / rows_of(entries), "", counted),
            Row(f"{name}: wall ÷ that of all rows", seconds / wall, "", took),
        ]
    finish(
        "racing",
        f"{len(entries)} TIES models, {len(prepared.tasks)} tasks, {prepared.role_rows['select']}"
        f" images of the select split, {prepared.plan.replicas} replicas; winner of each way:"
        f" {winner[1]}, accuracy {winner[0]:.4f}",
        shown,
    )


if __name__ == "__main__":
    main()
