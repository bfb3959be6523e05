"""The end of a sweep: references and winners on the report split, each evaluated once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from actors.experts.local import REFERENCES, Evaluation, Recipe
from actors.experts.recipe import BASE
from actors.files.checksums import Damaged, again
from actors.fleet.fleet import Client
from actors.fleet.transport import fetched
from fusion.errors import InputError
from fusion.registry import METHODS, Fitted, Learned, LogitSpace, Routed
from sweeps.console.progress import Progress
from sweeps.results.comparison import Row
from sweeps.results.correctness_file import SUFFIX, Kept, read_kept, write_kept
from sweeps.trials.learn_coding import learned_name


def evaluate_rows(
    client: Client,
    experts: Iterable[str],
    rows: Iterable[Row],
    folder: Path,
    learned: Path,
    progress: Progress,
) -> list[Row]:
    """Every row with its report-split metrics; per-sample correctness goes to `folder`.

    Files are `<row>.arrow`. A row that was evaluated before, with the same trial key, is not
    evaluated again; files of rows that are no longer in the comparison are removed.
    """
    rows = list(rows)
    known = {row.method: stored(folder / f"{row.method}{SUFFIX}", row.trial_key) for row in rows}
    todo = [row for row in rows if row.trial_key and known[row.method] is None]
    # Expert embeddings first, spread over the replicas: `experts` and `ensemble` only read them.
    warm = [client.submit("embed", name, "report") for name in (*experts, BASE)] if todo else []
    pending = {
        row.method: client.submit("evaluate", recipe_of(row, learned), "report")
        for row in sorted(todo, key=reads_embeddings)
    }
    progress.start("report split", len(warm) + len(pending))
    for ref in warm:
        fetched(ref)
        progress.advance("report split")
    for row in todo:
        evaluation = fetched(pending[row.method])
        known[row.method] = evaluation.metrics()
        store(folder / f"{row.method}{SUFFIX}", row, evaluation)
        progress.advance("report split")
    for path in folder.glob(f"*{SUFFIX}"):
        if path.stem not in known:
            path.unlink()
    return [replace(row, test=known[row.method] or {}) for row in rows]


def reads_embeddings(row: Row) -> bool:
    """Whether a row's evaluation reads cached expert embeddings; such rows go last."""
    found = METHODS.get(row.method)
    return row.method == "experts" or isinstance(found, LogitSpace | Routed | Fitted)


def recipe_of(row: Row, learned: Path) -> Recipe:
    """What a row of the comparison evaluates; of a method that learns, with what it learned.

    Raises:
        InputError: its file is gone.
    """
    params = {} if row.method in REFERENCES else row.params
    if not isinstance(METHODS.get(row.method), Learned):
        return Recipe(row.method, params)
    path = learned / learned_name(row.trial_key or "")
    try:
        return Recipe(row.method, params, path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path}: what {row.method} learned cannot be read: {error.strerror}; delete its"
            f" ledger entry {row.trial_key}.json, and --resume learns it again"
        ) from None


def stored(path: Path, trial_key: str | None) -> Mapping[str, float] | None:
    """The metrics of a row evaluated before; None where there are none of this trial, or where the
    file is damaged, which is said."""
    try:
        kept = read_kept(path)
    except FileNotFoundError:
        return None
    except Damaged as error:
        again(path, error)
        return None
    return kept.metrics if kept.trial_key == trial_key else None


def store(path: Path, row: Row, evaluation: Evaluation) -> None:
    """Keep a row's samples and metrics.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    scores = evaluation.scores
    write_kept(
        path,
        Kept(
            row.trial_key or "",
            evaluation.metrics(),
            np.repeat(list(scores), [len(each.correct) for each in scores.values()]),
            np.concatenate([np.arange(len(each.correct)) for each in scores.values()]),
            np.concatenate([np.asarray(each.correct, dtype=bool) for each in scores.values()]),
        ),
    )
