"""Rows of the comparison on shift sets: measured once each, at the end; nothing is chosen by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Required

from typing_extensions import TypedDict

from actors.files.checksums import again, sealed_json, unsealed_json
from actors.files.documents import checked
from actors.files.fingerprint import Fingerprint
from actors.fleet.fleet import Client
from actors.fleet.transport import fetched
from sweeps.console.progress import Progress
from sweeps.execution.final_evaluation import recipe_of
from sweeps.planning.shift_data import ROLE
from sweeps.results.comparison import Row, intervals
from sweeps.results.ledger import write_text

SUFFIX = ".shifts.json"


def measure_shifts(
    client: Client,
    marks: Mapping[str, Fingerprint],
    rows: Iterable[Row],
    folder: Path,
    learned: Path,
    progress: Progress,
) -> list[Row]:
    """Every row with its metrics on each shift set; kept in `<folder>/<row>.shifts.json`.

    What was measured before, of the same trial on the same set, is not measured again; what a
    damaged file held is.

    Args:
        client: the fleet.
        marks: shift set -> of what it is.
        rows: of the comparison.
        folder: of these files.
        learned: where learned files are.
        progress: gets a phase `shift sets`.
    """
    rows = list(rows)
    known = {row.method: stored(folder / f"{row.method}{SUFFIX}", row) for row in rows}
    pending: dict[tuple[str, str], Any] = {}
    for row in rows:
        if row.trial_key is None:
            continue
        for name, mark in marks.items():
            if known[row.method].get(name, {}).get("mark") != mark:
                recipe = recipe_of(row, learned)
                pending[row.method, name] = client.submit("evaluate", recipe, f"{ROLE}{name}")
    if pending:
        progress.start("shift sets", len(pending))
    keys = {row.method: row.trial_key for row in rows}
    for (method, name), ref in pending.items():
        evaluation = fetched(ref)
        counts = {
            task: (int(score.correct.sum()), len(score.correct))
            for task, score in evaluation.scores.items()
        }
        found = {
            "mark": marks[name],
            "metrics": evaluation.metrics(),
            "ci95": intervals(counts, evaluation.unseen),
        }
        known[method] = {**known[method], name: found}
        about = {"trial_key": keys[method], "shifts": known[method]}
        write_text(folder / f"{method}{SUFFIX}", sealed_json(about))
        progress.advance("shift sets")
    measured = {
        method: {name: about for name, about in of.items() if about.get("mark") == marks.get(name)}
        for method, of in known.items()
    }
    return [
        replace(
            row,
            shifts={name: measured[row.method][name]["metrics"] for name in there},
            shifts_ci95={
                name: {metric: (low, high) for metric, (low, high) in spans.items()}
                for name in there
                # What was measured by an earlier version has none.
                if (spans := measured[row.method][name].get("ci95"))
            },
        )
        for row in rows
        for there in [[name for name in marks if name in measured[row.method]]]
    ]


class Under(TypedDict, total=False):
    """What was measured under one shift."""

    mark: Required[Any]
    metrics: Required[dict[str, int | float | None]]
    ci95: dict[str, tuple[float, float]]


class Measured(TypedDict):
    """The file of one row."""

    trial_key: str | None
    shifts: dict[str, Under]


def stored(path: Path, row: Row) -> dict[str, Any]:
    """What was measured of this trial before: shift set -> mark and metrics."""
    try:
        content = unsealed_json(path.read_bytes())
        about = checked(Measured, content, str(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        again(path, error)
        return {}
    return {**about["shifts"]} if about["trial_key"] == row.trial_key else {}
