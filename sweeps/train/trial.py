"""One fine-tuning as a Tune trial."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ray import tune
from torch import Tensor

from actors.artifacts.head_file import FILE as HEAD
from actors.artifacts.head_file import head_facts
from actors.artifacts.recipe import Recipe
from actors.checkpoints.checkpoint import content_hash
from actors.data.row_file import open_labels
from actors.data.task_rows import Rows, TaskData
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.evaluation import TaskScore, score
from actors.experts.local import local_experts
from actors.families.protocol import Judge
from actors.families.registry import training_at
from actors.files.documents import checked, parse_json, read_bytes
from actors.pool.pool import open_pool
from actors.training.checkpoint import STOPS
from actors.training.optimizer_loop import beside
from fusion.errors import InputError
from sweeps.results.ledger import write_text
from sweeps.train.ingredients import KINDS, Trained, write_result
from sweeps.train.inputs.heads import copy_head, given_head

RUNGS = {STOPS[0]: 1, STOPS[1]: 3}
"""Fraction of a run's steps -> the rung reported at it; 9 is the end."""


def seed_of(trial: Mapping[str, Any]) -> int:
    """The seed: the hyper-parameter if there is one, else the trial's own."""
    return int(trial["params"].get("seed", trial["seed"] % 2**31))


def fine_tune_trial(
    config: Mapping[str, Any],
    folders: Mapping[str, Path],
    data: Mapping[str, TaskData],
    contexts: Mapping[str, str],
    out: Path,
    device: str,
    halved: bool,
) -> None:
    """Run one fine-tuning and report it to Tune; see `fine_tuned`.

    A fault is reported as `reason` and not raised: for Tune, a trial that raised is one whose
    process died, which runs again.
    """
    try:
        final = fine_tuned(config, folders, data, contexts, out, device, halved)
    except Exception as error:
        final = {"select": math.nan, "reason": words(error)}
    tune.report({**final, "final": True})


def words(error: Exception) -> str:
    """An error in one line, never empty."""
    said = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return said.splitlines()[0]


def fine_tuned(
    config: Mapping[str, Any],
    folders: Mapping[str, Path],
    data: Mapping[str, TaskData],
    contexts: Mapping[str, str],
    out: Path,
    device: str,
    halved: bool,
) -> dict[str, Any]:
    """Train on fit, evaluate on select and report, write models and result.

    `folders`: task -> the model that it starts from.

    Returns:
        The last report to Tune.
    """
    task, key = data[config["task"]], config["trial_key"]
    place, rungs = out / "trained" / key / "expert", Rungs(out / "trained" / key, halved)
    folder, start = folders[task.name], time.perf_counter()
    kind = config["params"].get("head", "zero_shot")
    own = given_head(out, task.name, kind, place.parent)
    if not place.is_dir():
        training = training_at(folder)
        training.fine_tune(
            folder,
            task,
            place,
            training.options(**{**config["params"], "seed": seed_of(config)}),
            head=own,
            device=device,
            state=place.with_name("state.pt"),
            judge=rungs.judge(task),
        )
    seconds = time.perf_counter() - start
    made = made_by(folder, task, place, own, device)
    best, rest = made[0], (seed_of(config), contexts[task.name], 0, rungs.found, made)
    params = config["params"]
    write_result(
        out, Trained(key, task.name, params, best["select"], best["report"], seconds, *rest)
    )
    scores = {"select": best["select"], "report": best["report"]}
    return {**scores, "rung": 9, "rungs": rungs.found}


def made_by(
    base: Path, task: TaskData, place: Path, head: Path | None, device: str
) -> list[dict[str, Any]]:
    """`{kind, select, report, sha256, head}` of each model that a fine-tuning wrote.

    A copy of the trial's own head, if it has one, is put beside each model.
    """
    made = []
    for what in KINDS:
        where = place if what == "expert" else beside(place, what)
        if where.is_dir():
            if head is not None:
                copy_head(head, where / HEAD)
            found = measured(base, task, where, ("select", "report"), device)
            sha = content_hash(open_pool(str(base), {what: str(where)}).experts[what])
            identity = "" if head is None else head_facts(head)[0].identity
            made.append({"kind": what, **found, "sha256": sha, "head": identity})
    return made


def read_rungs(file: Path) -> dict[str, float]:
    """Rung -> score on select; a damaged file counts as empty, and is measured again."""
    try:
        found = checked(dict[str, float], parse_json(read_bytes(file), str(file)), str(file))
    except InputError:
        return {}
    return {rung: select for rung, select in found.items() if rung in map(str, RUNGS.values())}


class Rungs:
    """Intermediate results of a trial with a scheduler, kept in a file so that a killed trial
    reports them again."""

    def __init__(self, folder: Path, halved: bool) -> None:
        """`folder`: of the trial; `halved`: whether anything is reported. Reports known results."""
        self.file, self.halved = folder / "rungs.json", halved
        self.found: dict[str, float] = {}
        if halved and self.file.exists():
            for rung, select in read_rungs(self.file).items():
                self.report(rung, select)

    def report(self, rung: str, select: float) -> None:
        """Report to Tune; a trial that is stopped ends here."""
        self.found[rung] = select
        about = {"rung": int(rung), "rungs": dict(self.found), "final": False}
        tune.report({"select": select, **about})

    def judge(self, task: TaskData) -> Judge:
        """A callback that measures the task's metric on select at the rungs."""

        def judge(share: float, logits: Callable[[Rows], Tensor]) -> None:
            rung = str(RUNGS.get(share, ""))
            if not self.halved or not rung or rung in self.found:
                return
            select = scored(task, logits)
            write_text(self.file, json.dumps({**self.found, rung: select}))
            self.report(rung, select)

        return judge


def scored(task: TaskData, logits: Callable[[Rows], Tensor]) -> float:
    """The task's metric of an unfinished model on the select rows."""
    rows = task.rows["select"]
    return own_score(score(logits(rows), labels_of(rows), task.metric, task.values))


def own_score(found: TaskScore) -> float:
    """The score by the task's own metric; 0 where it is not defined: correlations of constants."""
    value = found.values()[found.metric]
    return value if math.isfinite(value) else 0.0


def labels_of(rows: Rows) -> Tensor:
    """Labels [N] of a role's rows."""
    labels = open_labels(rows.file)
    return labels if rows.indices is None else labels[torch.from_numpy(rows.indices)]


def measured(
    base: Path, task: TaskData, place: Path, roles: Sequence[str], device: str
) -> dict[str, float]:
    """Role -> the task's metric of one model, under its own head if one is beside it.

    Computed by the code that evaluates every fused model.
    """
    if (place / HEAD).exists():
        task = replace(task, head=place / HEAD)
    pool = open_pool(str(base), {task.name: str(place)})
    # A pool with one expert: the average equals the expert, if it is not rounded to the base's
    # dtype; so do averages of batch norm's statistics. No cache of embeddings is read.
    experts = local_experts(
        pool,
        {task.name: task},
        EmbeddingCache(place, {}),
        device=device,
        results="float32",
        policy="average",
    )
    recipe = Recipe("simple_average")
    return {role: own_score(experts.evaluate(recipe, role).scores[task.name]) for role in roles}
