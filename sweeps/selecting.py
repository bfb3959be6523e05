"""One trial of a method that selects ingredients: candidates are scored, several at a time.

Which candidate comes next is `fusion.greedy`'s to say; here they are evaluated, and every score is
kept with the sweep as soon as it is known, so that a trial that is killed goes on from there.
"""

from __future__ import annotations

import json
import math
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.codings import dump_shares
from actors.evaluation import Evaluation, Recipe
from actors.experts import Experts
from fusion.errors import InputError
from fusion.gram import angles
from fusion.greedy import Subset, accept_interval, advance, begin, candidates, order_of, pruned
from fusion.parameters import bind
from fusion.registry import METHODS, Selected
from fusion.selection import Selection
from fusion.soup import positions
from sweeps.compare import finite
from sweeps.learning import LAST_RUNG, Course, Report, State, learned_name, state_name

RESAMPLES = 2000
"""Of the bootstrap of each accepted step."""


class Scores:
    """Scores of soups, each evaluated once: a soup is known by its ingredients, whatever their
    order."""

    def __init__(
        self, method: str, selection: Selection, experts: Experts, course: Course, key: str
    ) -> None:
        self.method, self.experts, self.course = method, experts, course
        self.role, self.place = selection.role, state_name(key)
        self.metric = selection.metric or course.metric
        self.sign = -1.0 if self.metric.startswith("nll") else 1.0
        kept = course.keep.get(self.place)
        self.known: dict[str, dict[str, Any]] = restored(kept)

    def name(self, soup: Subset) -> str:
        """`"a*2 b"`."""
        counts = Counter(self.course.tasks[i] for i in soup)
        return " ".join(f"{each}*{n}" if n > 1 else each for each, n in sorted(counts.items()))

    def coding(self, soup: Subset) -> bytes:
        """The coding file of a soup: each ingredient as often as it was taken."""
        counts = Counter(soup)
        shares = [counts[i] / len(soup) for i in range(len(self.course.tasks))]
        return dump_shares(shares, self.course.tasks)

    def __call__(self, soups: Sequence[Subset]) -> list[float]:
        """The score of each, larger is better; NaN where it is no finite number."""
        new = list({self.name(soup): soup for soup in soups if self.name(soup) not in self.known})
        if new:
            by_name = {self.name(soup): soup for soup in soups}
            recipes = [Recipe(self.method, {}, self.coding(by_name[name])) for name in new]
            found = self.experts.evaluate_all(recipes, self.role)
            for name, evaluation in zip(new, found, strict=True):
                self.known[name] = {
                    "score": evaluation.metrics().get(self.metric, math.nan),
                    "correct": packed(evaluation, self.metric),
                }
            self.course.keep.put(self.place, json.dumps(self.known).encode())
        return [self.sign * float(self.known[self.name(soup)]["score"]) for soup in soups]

    def correct(self, soup: Subset) -> NDArray[np.bool_]:
        """Whether each sample of every task is right, of a soup that was scored."""
        return unpacked(self.known[self.name(soup)]["correct"])


def select(config: Mapping[str, Any], experts: Experts, course: Course, report: Report) -> None:
    """Choose ingredients, keep the soup's coding, and report it on the select split.

    Raises:
        InputError: an unknown ingredient or metric; no ingredient with a finite score.
    """
    method = METHODS[config["method"]]
    assert isinstance(method, Selected)
    start = time.perf_counter()
    params = bind(config["method"], method.parameters, config["params"])
    selection = method.selection(**params)
    scores = Scores(config["method"], selection, experts, course, config["trial_key"])
    soup, choices = chosen(selection, scores, experts, course)
    data = scores.coding(soup)
    course.keep.put(learned_name(config["trial_key"]), data)
    found = experts.evaluate(Recipe(config["method"], config["params"], data), "select")
    state = State(step=len(scores.known), seconds=time.perf_counter() - start, choices=choices)
    report(LAST_RUNG, found, state)


def chosen(
    selection: Selection, scores: Scores, experts: Experts, course: Course
) -> tuple[Subset, list[dict[str, Any]]]:
    """The soup, and every decision on the way."""
    pool = pool_of(selection, course)
    known = scores([(i,) for i in pool])
    singles = [-math.inf] * len(course.tasks)
    for i, score in zip(pool, known, strict=True):
        singles[i] = score if math.isfinite(score) else -math.inf
    if selection.single:
        if not any(map(math.isfinite, known)):
            raise InputError("no ingredient has a finite score; at least one needed")
        best = max(pool, key=lambda i: singles[i])
        return (best,), [
            {"candidate": scores.name((i,)), "score": finite(scores.sign * singles[i]),
             "outcome": "accepted" if i == best else "rejected"}
            for i in pool
        ]  # fmt: skip
    order = order_of(
        singles,
        selection.order,
        seed=selection.seed,
        given=pool if selection.order == "given" else None,
        angles=angles(experts.gram().total) if selection.order == "angle" else None,
    )
    kept = set(pool)
    if selection.prune is not None:
        kept &= set(pruned(singles, selection.prune))
    state = begin(
        [i for i in order if i in kept],
        singles,
        start=positions(course.tasks, selection.start) if selection.start else (),
        tie=selection.tie,
        min_delta=selection.min_delta,
        replacement=selection.replacement,
        hashes=course.hashes or None,
    )
    while asked := candidates(state, max(1, experts.replicas)):
        state = advance(state, scores(asked))
    return state.subset, [decision(step, scores) for step in state.steps]


def pool_of(selection: Selection, course: Course) -> list[int]:
    """The ingredients that may be taken, in the order they are named in.

    Raises:
        InputError: an unknown name, or none.
    """
    positions(course.tasks, selection.ingredients)  # checks the names
    return [course.tasks.index(name) for name in selection.ingredients or course.tasks]


def decision(step: Any, scores: Scores) -> dict[str, Any]:
    """One decision in plain types; of an accepted one, how sure its gain in accuracy is."""
    before = step.candidate[:-1]
    said = {
        "candidate": scores.name(step.candidate),
        "ingredient": scores.course.tasks[step.ingredient],
        "outcome": step.outcome,
        "score": None if step.score is None else scores.sign * step.score,
        "best": None if step.best is None else scores.sign * step.best,
        "note": step.note,
    }
    if step.outcome == "accepted" and before and not scores.metric.startswith("nll"):
        gain = accept_interval(
            scores.correct(before), scores.correct(step.candidate), samples=RESAMPLES
        )
        said |= {"gain": gain.difference, "low": gain.low, "high": gain.high, "p": gain.p}
    return said


def packed(evaluation: Evaluation, metric: str) -> str:
    """Which samples are right, in few characters: of the metric's task, or of all in a row."""
    task = metric.partition("/")[2]
    scores = evaluation.scores
    chosen = [scores[task]] if task in scores else list(scores.values())
    correct = np.concatenate([score.correct for score in chosen])
    return f"{len(correct)} {b64encode(np.packbits(correct).tobytes()).decode()}"


def unpacked(text: str) -> NDArray[np.bool_]:
    """The inverse of `packed`."""
    count, data = text.split(" ")
    bits = np.frombuffer(b64decode(data), dtype=np.uint8)
    return np.unpackbits(bits)[: int(count)].astype(bool)


def restored(data: bytes | None) -> dict[str, dict[str, Any]]:
    """The scores of a killed trial; a damaged file counts as none."""
    try:
        found = json.loads(data or b"{}")
        return {name: {"score": v["score"], "correct": v["correct"]} for name, v in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
