"""Final evaluation: references and winners on the report split and on the shift sets.

Nothing is selected here. Each row is evaluated once; what an earlier run measured is read back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Required

import numpy as np
from typing_extensions import TypedDict

from actors.artifacts.recipe import BASE, REFERENCES, Recipe
from actors.experts.evaluation import Evaluation
from actors.experts.metrics import ACCURACY, RankedMetric
from actors.experts.requests import Embed, Evaluate, ExpertScores, Time
from actors.files.checksums import Damaged, again, sealed_json, unsealed_json
from actors.files.documents import checked
from actors.files.fingerprint import Fingerprint
from actors.fleet.client import Client
from actors.fleet.transport import fetched
from fusion.errors import InputError
from fusion.registry import METHODS
from fusion.task_vectors.gram import cosines
from sweeps.console.optional import aside
from sweeps.console.progress import Progress
from sweeps.planning.shift_data import ROLE
from sweeps.results.comparison import Row, intervals
from sweeps.results.correctness_file import SUFFIX, Kept, read_kept, write_kept
from sweeps.results.expert_matrix import ExpertMatrix
from sweeps.results.expert_matrix import read as read_experts
from sweeps.results.expert_matrix import write as write_experts
from sweeps.results.folder import learned_name
from sweeps.results.ledger import write_text

FINAL, TIMING = "evaluations on the report split", "measuring times of rows"
"""Phases that the display counts."""


def evaluate_rows(
    client: Client,
    experts: Iterable[str],
    rows: Iterable[Row],
    folder: Path,
    learned: Path,
    progress: Progress,
    metric: RankedMetric = ACCURACY,
) -> list[Row]:
    """Evaluate every row on the report split; per-sample correctness goes to `folder`.

    Files are `<row>.arrow`. A row that was evaluated before, with the same trial key, is not
    evaluated again; files of rows that are no longer in the comparison are removed.
    """
    rows = list(rows)
    known = {
        row.method: stored(folder / f"{row.method}{SUFFIX}", row.trial_key, metric) for row in rows
    }
    todo = [row for row in rows if row.trial_key and known[row.method] is None]
    # Expert embeddings first, spread over the replicas: `experts` and `ensemble` only read them.
    warm = [client.submit(Embed(name, "report")) for name in (*experts, BASE)] if todo else []
    pending = {
        row.method: client.submit(Evaluate(recipe_of(row, learned), "report"))
        for row in sorted(todo, key=reads_embeddings)
    }
    progress.start(FINAL, len(warm) + len(pending))
    for ref in warm:
        fetched(ref)
        progress.advance(FINAL)
    for row in todo:
        evaluation = fetched(pending[row.method])
        known[row.method] = evaluation.metrics()
        store(folder / f"{row.method}{SUFFIX}", row, evaluation, metric)
        progress.advance(FINAL)
    for path in folder.glob(f"*{SUFFIX}"):
        if path.stem not in known:
            path.unlink()
    return [replace(row, test=known[row.method] or {}) for row in rows]


def reads_embeddings(row: Row) -> bool:
    """Whether a row's evaluation reads cached expert embeddings; such rows are evaluated last."""
    found = METHODS.get(row.method)
    return row.method == "experts" or (found is not None and "expert_logits" in found.reads)


def recipe_of(row: Row, learned: Path) -> Recipe:
    """The recipe that a row evaluates, with the learned file of a method that learns.

    Raises:
        InputError: its file is gone.
    """
    params = {} if row.method in REFERENCES else row.params
    method = METHODS.get(row.method)
    if method is None or not method.learns:
        return Recipe(row.method, params)
    path = learned / learned_name(row.trial_key or "")
    try:
        return Recipe(row.method, params, path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path}: what {row.method} learned cannot be read: {error.strerror}; delete its"
            f" ledger entry {row.trial_key}.json, and --resume learns it again"
        ) from None


def stored(path: Path, trial_key: str | None, metric: RankedMetric) -> Mapping[str, float] | None:
    """Stored metrics of a row; None if there are none of this trial and metric, or the file is
    damaged (which is logged)."""
    try:
        kept = read_kept(path)
    except FileNotFoundError:
        return None
    except Damaged as error:
        again(path, error)
        return None
    return kept.metrics if (kept.trial_key, kept.metric) == (trial_key, metric.name) else None


def store(path: Path, row: Row, evaluation: Evaluation, metric: RankedMetric) -> None:
    """Write a row's samples and metrics.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    samples = evaluation.samples(metric.name)
    chosen = [evaluation.scores[task].predicted for task in samples]
    predicted = [each for each in chosen if each is not None]
    write_kept(
        path,
        Kept(
            row.trial_key or "",
            evaluation.metrics(),
            np.repeat(list(samples), [len(each) for each in samples.values()]),
            np.concatenate([np.arange(len(each)) for each in samples.values()]),
            np.concatenate([np.asarray(each) for each in samples.values()]),
            metric.name,
            np.concatenate(predicted) if chosen and len(predicted) == len(chosen) else None,
        ),
    )


SHIFTS_SUFFIX = ".shifts.json"


def measure_shifts(
    client: Client,
    marks: Mapping[str, Fingerprint],
    rows: Iterable[Row],
    folder: Path,
    learned: Path,
    progress: Progress,
    metric: RankedMetric = ACCURACY,
) -> list[Row]:
    """Evaluate every row on each shift set; results are kept in `<folder>/<row>.shifts.json`.

    What was measured before, of the same trial on the same set, is not measured again; what a
    damaged file held is.

    Args:
        client: the fleet.
        marks: shift set -> of what it is.
        rows: of the comparison.
        folder: of these files.
        learned: where learned files are.
        progress: gets a phase `shift sets`.
        metric: that rows are ranked by.
    """
    rows = list(rows)
    known = {
        row.method: stored_shifts(folder / f"{row.method}{SHIFTS_SUFFIX}", row) for row in rows
    }
    pending: dict[tuple[str, str], Any] = {}
    for row in rows:
        if row.trial_key is None:
            continue
        for name, mark in marks.items():
            if known[row.method].get(name, {}).get("mark") != mark:
                recipe = recipe_of(row, learned)
                pending[row.method, name] = client.submit(Evaluate(recipe, f"{ROLE}{name}"))
    if pending:
        progress.start("shift sets", len(pending))
    keys = {row.method: row.trial_key for row in rows}
    for (method, name), ref in pending.items():
        evaluation = fetched(ref)
        samples = evaluation.samples(metric.name)
        found = {
            "mark": marks[name],
            "metrics": evaluation.metrics(),
            "ci95": intervals(samples, evaluation.unseen, metric),
        }
        known[method] = {**known[method], name: found}
        about = {"trial_key": keys[method], "shifts": known[method]}
        write_text(folder / f"{method}{SHIFTS_SUFFIX}", sealed_json(about))
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


def measure_experts(client: Client, folder: Path, key: str, progress: Progress) -> None:
    """Keep each expert's score on every task, and the cosines of task vectors, in `folder`.

    Outputs of the experts are cached by then, and the weights are read once. What was kept under
    `key` before is not measured again. A line says so if it cannot be measured.
    """
    if read_experts(folder, key) is not None:
        return
    with (
        progress.doing("evaluating every expert on every task"),
        aside("the matrices of experts", "--resume makes them", progress.say),
    ):
        scores = fetched(client.submit(ExpertScores("report")))
        matrix = client.gram()
        table = cosines(matrix.total).tolist()
        named = {
            name: dict(zip(matrix.tasks, line, strict=True))
            for name, line in zip(matrix.tasks, table, strict=True)
        }
        write_experts(ExpertMatrix(key, scores, named), folder)


TIMES_SUFFIX = ".times.json"


class Times(TypedDict):
    """Content of the file of a row's times."""

    trial_key: str | None
    merge_s: float | None
    input_s: float
    rows: int


def measure_times(
    client: Client, rows: Iterable[Row], folder: Path, learned: Path, progress: Progress
) -> list[Row]:
    """Measure each row's merge, and one input, one row after the other so that each runs alone.

    Times are kept in `<folder>/<row>.times.json`, and not measured again for the same trial. A row
    whose times cannot be measured has none; a line says so.
    """
    rows = list(rows)
    files = {row.method: folder / f"{row.method}{TIMES_SUFFIX}" for row in rows}
    known = {row.method: stored_times(files[row.method], row) for row in rows if row.trial_key}
    todo = [row for row in rows if known.get(row.method, {}) is None]
    if todo:
        progress.start(TIMING, len(todo))
    for row in todo:
        with aside(f"the times of {row.method}", "--resume measures them", progress.say):
            found = fetched(client.submit(Time(recipe_of(row, learned), "report")))
            measured = Times(
                trial_key=row.trial_key,
                merge_s=found.merge_s,
                input_s=found.input_s,
                rows=found.rows,
            )
            write_text(files[row.method], sealed_json(measured))
            known[row.method] = measured
        progress.advance(TIMING)
    return [
        replace(row, cost={**row.cost, "merge_s": times["merge_s"], "input_s": times["input_s"]})
        if (times := known.get(row.method))
        else row
        for row in rows
    ]


def stored_times(path: Path, row: Row) -> Times | None:
    """Times of this trial that were measured before; None if there are none."""
    try:
        about = checked(Times, unsealed_json(path.read_bytes()), str(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        again(path, error)
        return None
    return about if about["trial_key"] == row.trial_key else None


class Under(TypedDict, total=False):
    """Results of a row on one shift set."""

    mark: Required[Any]
    metrics: Required[dict[str, int | float | None]]
    ci95: dict[str, tuple[float, float]]


class Measured(TypedDict):
    """Content of a row's file."""

    trial_key: str | None
    shifts: dict[str, Under]


def stored_shifts(path: Path, row: Row) -> dict[str, Any]:
    """Results of this trial on shift sets that were kept before: shift set -> mark and metrics."""
    try:
        content = unsealed_json(path.read_bytes())
        about = checked(Measured, content, str(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        again(path, error)
        return {}
    return {**about["shifts"]} if about["trial_key"] == row.trial_key else {}
