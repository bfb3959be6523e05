"""Trial of a method that selects ingredients: candidate soups are evaluated, several at a time.

Which candidate comes next is `fusion.methods.soups.greedy`'s to say; here they are evaluated, and
every score is
kept with the sweep as soon as it is known, so that a killed trial continues from there. An
ingredient whose file vanishes on the way is left out, and that is among the decisions.
"""

from __future__ import annotations

import json
import math
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import TypedDict

from actors.artifacts.coding_file import dump_shares
from actors.artifacts.recipe import Recipe
from actors.experts.evaluation import Evaluation
from actors.experts.metrics import ACCURACY, metric_of, sign_of
from actors.experts.protocol import SelectionExperts
from actors.files.documents import checked, parse_json
from fusion.analysis.significance import accept_interval
from fusion.errors import InputError, Vanished, unknown
from fusion.methods.soups.greedy import Step, Subset, begin, run
from fusion.methods.soups.ordering import order_of, pruned
from fusion.methods.soups.selection import Selection
from fusion.methods.soups.uniform_soup import positions
from fusion.parameters import bind
from fusion.registry import METHODS, Selected
from fusion.task_vectors.gram import angles
from sweeps.planning.learning_needs import LAST_RUNG
from sweeps.results.comparison import finite
from sweeps.results.folder import learned_name, state_name
from sweeps.results.trial_state import State
from sweeps.trials.learn_coding import LearningInputs, Report

RESAMPLES = 2000
"""Of the bootstrap of each accepted step."""

FAILED = "its logits are NaN or infinite; left out"
VANISHED = "its file vanished; left out"
NO_INTERVAL = "no interval: of a loss only the mean is kept"
"""What decisions say that scores alone did not make."""


class Scores:
    """Scores of soups, each evaluated once; the order of ingredients does not matter."""

    def __init__(
        self,
        method: str,
        selection: Selection,
        experts: SelectionExperts,
        inputs: LearningInputs,
        key: str,
    ) -> None:
        self.method, self.experts, self.inputs = method, experts, inputs
        self.role, self.place = selection.role, state_name(key)
        self.metric = selection.metric or inputs.metric
        self.counted = metric_of(self.metric) is ACCURACY
        """Whether samples are right or wrong on their own: then gains get an interval."""
        self.sign = sign_of(self.metric)
        kept = inputs.artifacts.get(self.place)
        self.known: dict[str, dict[str, Any]] = restored(kept)

    def name(self, soup: Subset) -> str:
        """Name of a soup: `"a*2 b"`."""
        counts = Counter(self.inputs.tasks[i] for i in soup)
        return " ".join(f"{each}*{n}" if n > 1 else each for each, n in sorted(counts.items()))

    def coding(self, soup: Subset) -> bytes:
        """Coding file of a soup: each ingredient with its multiplicity."""
        counts = Counter(soup)
        shares = [counts[i] / len(soup) for i in range(len(self.inputs.tasks))]
        return dump_shares(shares, self.inputs.tasks)

    def __call__(self, soups: Sequence[Subset]) -> list[float]:
        """Score of each soup, larger is better; NaN if it is not finite.

        Raises:
            Vanished: an ingredient whose file is gone.
        """
        new = {self.name(soup): soup for soup in soups if self.name(soup) not in self.known}
        if new:
            recipes = [Recipe(self.method, {}, self.coding(soup)) for soup in new.values()]
            found = self.experts.evaluate_all(recipes, self.role)
            for name, evaluation in zip(new, found, strict=True):
                self.known[name] = {
                    "score": scored(evaluation, self.metric),
                    "correct": packed(evaluation, self.metric) if self.counted else {},
                }
            self.inputs.artifacts.put(self.place, json.dumps(self.known).encode())
        return [self.sign * float(self.known[self.name(soup)]["score"]) for soup in soups]

    def correct(self, soup: Subset) -> list[NDArray[np.bool_]]:
        """Per-sample correctness of a scored soup, on each task of the metric."""
        return [unpacked(text) for text in self.known[self.name(soup)]["correct"].values()]


def scored(evaluation: Evaluation, metric: str) -> float:
    """Value of the metric; NaN if logits were NaN or infinite, because their top class means
    nothing.

    Raises:
        InputError: no such metric.
    """
    found = evaluation.metrics()
    if metric not in found:
        raise InputError(f"metric: {unknown('metric', metric, found)}")
    loss = found[f"nll/{metric.partition('/')[2]}"]
    return math.nan if math.isnan(loss) else found[metric]


@dataclass(frozen=True)
class Chosen:
    """Result of a trial."""

    data: bytes
    """The soup's coding file."""
    found: Evaluation
    """Of the soup, on select."""
    choices: list[dict[str, Any]]
    """Every decision on the way, in plain types."""


def select(
    config: Mapping[str, Any], experts: SelectionExperts, inputs: LearningInputs, report: Report
) -> None:
    """Select ingredients, write the soup's coding, and report it on the select split.

    Raises:
        InputError: an unknown ingredient or metric; no ingredient with a finite score, or none
            whose file is still there.
    """
    method = cast(Selected, METHODS[config["method"]])
    start = time.perf_counter()
    params = bind(config["method"], method.parameters, config["params"])
    selection = method.selection(**params)
    scores = Scores(config["method"], selection, experts, inputs, config["trial_key"])
    result = surviving(selection, scores, config)
    inputs.artifacts.put(learned_name(config["trial_key"]), result.data)
    seconds = time.perf_counter() - start
    state = State(step=len(scores.known), seconds=seconds, choices=result.choices)
    report(LAST_RUNG, result.found, state)


def surviving(selection: Selection, scores: Scores, config: Mapping[str, Any]) -> Chosen:
    """Select among the ingredients whose files exist.

    If an ingredient disappears meanwhile, the selection starts again without it, so the result
    is that of the pool without it; known scores are not computed again.
    """
    tasks, gone = scores.inputs.tasks, list[int]()
    while True:
        pool = [i for i in pool_of(selection, scores.inputs) if i not in gone]
        if not pool:
            names = ", ".join(tasks[i] for i in gone)
            raise InputError(f"no ingredient is left: the files of {names} vanished")
        try:
            soup, choices = chosen(selection, scores, pool, gone)
            data = scores.coding(soup)
            recipe = Recipe(config["method"], config["params"], data)
            found = scores.experts.evaluate(recipe, "select")
            return Chosen(data, found, [*(left_out(tasks[i]) for i in gone), *choices])
        except Vanished as error:
            if error.member not in tasks or tasks.index(error.member) in gone:
                raise  # it is needed even where it is no part of the soup
            gone.append(tasks.index(error.member))


def left_out(name: str) -> dict[str, Any]:
    """Decision on an ingredient that vanished."""
    return {"candidate": name, "ingredient": name, "outcome": "vanished", "score": None,
            "best": None, "note": VANISHED}  # fmt: skip


def chosen(
    selection: Selection, scores: Scores, pool: Sequence[int], gone: Sequence[int]
) -> tuple[Subset, list[dict[str, Any]]]:
    """Select the soup of a pool, with every decision; ingredients in `gone` cannot be read."""
    inputs, experts = scores.inputs, scores.experts
    singles = [math.nan] * len(inputs.tasks)
    for i, score in zip(pool, scores([(i,) for i in pool]), strict=True):
        singles[i] = score
    if not any(map(math.isfinite, singles)):
        raise InputError(
            f"no ingredient has a finite {scores.metric} on {scores.role}: the logits of"
            f" {', '.join(inputs.tasks[i] for i in pool)} are NaN or infinite"
        )
    order = order_of(
        singles,
        selection.order,
        seed=selection.seed,
        given=pool if selection.order == "given" else None,
        angles=angles(experts.gram().total) if selection.order == "angle" else None,
        names=inputs.tasks,
    )
    if selection.single:
        best = order[0]
        return (best,), [single(scores, i, singles[i], taken=i == best) for i in pool]
    kept = set(pool)
    if selection.prune is not None:
        near = pruned(singles, selection.prune)
        kept = {i for i in pool if i in near or not math.isfinite(singles[i])}
    start = positions(inputs.tasks, selection.start) if selection.start else ()
    state = begin(
        [i for i in order if i in kept],
        singles,
        start=[i for i in start if i not in gone],
        tie=selection.tie,
        min_delta=selection.min_delta,
        replacement=selection.replacement,
        hashes=inputs.hashes or None,
    )
    state = run(state, scores, max(1, experts.replicas))
    return state.subset, [decision(step, scores) for step in state.steps]


def pool_of(selection: Selection, inputs: LearningInputs) -> list[int]:
    """Indices of the ingredients that may be selected, in the order named.

    Raises:
        InputError: an unknown name, or none.
    """
    positions(inputs.tasks, selection.ingredients)  # checks the names
    return [inputs.tasks.index(name) for name in selection.ingredients or inputs.tasks]


def single(scores: Scores, i: int, score: float, *, taken: bool) -> dict[str, Any]:
    """Decision on one ingredient of a method that selects only the best."""
    known = math.isfinite(score)
    outcome = "accepted" if taken else "rejected" if known else "failed"
    said = {"candidate": scores.name((i,)), "score": finite(scores.sign * score)}
    return {**said, "outcome": outcome, "note": "" if known else FAILED}


def decision(step: Step, scores: Scores) -> dict[str, Any]:
    """A decision in plain types; of an accepted one, with the interval of its gain in accuracy."""
    before, accepted = step.candidate[:-1], step.outcome == "accepted"
    said = {
        "candidate": scores.name(step.candidate),
        "ingredient": scores.inputs.tasks[step.ingredient],
        "outcome": step.outcome,
        "score": None if step.score is None else scores.sign * step.score,
        "best": None if step.best is None else scores.sign * step.best,
        "note": remark(step, scores),
    }
    if accepted and scores.counted:
        gain = accept_interval(
            scores.correct(before), scores.correct(step.candidate), samples=RESAMPLES
        )
        said |= {"gain": gain.difference, "low": gain.low, "high": gain.high, "p": gain.p}
    return said


def remark(step: Step, scores: Scores) -> str:
    """Note of a decision."""
    if step.outcome == "failed":
        return FAILED
    if step.twin is not None and step.twin != step.ingredient:
        return f"a copy of {scores.inputs.tasks[step.twin]}"
    if step.outcome == "accepted" and not scores.counted:
        return NO_INTERVAL
    return step.note


def packed(evaluation: Evaluation, metric: str) -> dict[str, str]:
    """Pack per-sample correctness as text: task -> samples, for the metric's task or all tasks."""
    task = metric.partition("/")[2]
    return {
        name: f"{len(score.correct)} {b64encode(np.packbits(score.correct).tobytes()).decode()}"
        for name, score in evaluation.scores.items()
        if task in (name, "mean")
    }


def unpacked(text: str) -> NDArray[np.bool_]:
    """Inverse of `packed` for one task."""
    count, data = text.split(" ")
    bits = np.frombuffer(b64decode(data), dtype=np.uint8)
    return np.unpackbits(bits)[: int(count)].astype(bool)


Packed = Annotated[str, Field(pattern=r"^[0-9]{1,12} [A-Za-z0-9+/]*={0,2}$")]
"""One task's of `packed`."""


class Scored(TypedDict):
    """A candidate that was evaluated."""

    score: float
    correct: dict[str, Packed]


def restored(data: bytes | None) -> dict[str, dict[str, Any]]:
    """Scores of a killed trial; a damaged file counts as empty."""
    try:
        found = checked(dict[str, Scored], parse_json(data or b"{}", "scores"), "scores")
    except InputError:
        return {}
    return {name: dict(scored) for name, scored in found.items()}
