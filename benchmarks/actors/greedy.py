"""Greedy soup with several candidates asked at once: how many rounds it takes.

    python -m benchmarks.actors.greedy [--save] [--repeats 400]

Simulated: 72 ingredients of which 4 or 10 more than the first are taken, at random places; a round
asks p candidates, as if all before them were rejected (`fusion.methods.soups.greedy`). Beside the
mean over many
orders stands its expectation, from the distribution of gaps between places, worked out apart from
that code: with A taken of n = 71 places, a gap is g with probability C(n − g, A − 1)/C(n, A), and
costs ⌈g/p⌉ rounds; the rest behind the last one is a gap less one.

Real: a trial of `greedy_soup` (`sweeps.trials.select_ingredients`) over random ingredients of an
embedded size. Its
model is one here, so p candidates are evaluated one after the other; where p replicas evaluate them
side by side, a round lasts as long as its longest evaluation, and so it is counted. The subsets and
all decisions must be the same for every p.
"""

from __future__ import annotations

import math
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from actors.artifacts.recipe import Recipe
from actors.experts.evaluation import Evaluation
from actors.experts.local import LocalExperts
from actors.families.registry import inspect
from benchmarks.environment import Row, finish
from benchmarks.fusion.layers import arguments
from benchmarks.pools import EMBEDDED, ROLE, experts, random_vectors, write_base, write_data
from fusion.methods.soups.greedy import Subset, greedy
from fusion.task_vectors.gram import Gram
from sweeps.results.folder import learned_name
from sweeps.results.trial_state import State
from sweeps.trials.artifact_store import LocalStore
from sweeps.trials.learn_coding import LearningInputs
from sweeps.trials.select_ingredients import select

INGREDIENTS = 72
PUBLISHED: dict[tuple[int, int], tuple[float, float] | None] = {
    (4, 1): (71, 71), (4, 4): (19.7, 77), (4, 8): (11.2, 86),
    (10, 1): (71, 71), (10, 4): None, (10, 8): (14.7, 112),
}  # fmt: skip
"""(taken, p) -> rounds and evaluations that are aimed at."""

RUNS = 16
ROWS = 256


def simulated(taken: int, p: int, repeats: int) -> tuple[float, float]:
    """Mean rounds and evaluations over random places of those that are taken."""
    rounds = evaluations = 0
    for seed in range(repeats):
        good = set(random.Random(seed).sample(range(1, INGREDIENTS), taken))

        def evaluate(asked: Sequence[Subset], good: set[int] = good) -> list[float]:
            return [float(len(subset)) if subset[-1] in good else 0.0 for subset in asked]

        state = greedy(range(INGREDIENTS), [1.0] * INGREDIENTS, evaluate, p)
        assert set(state.subset) == good | {0}
        rounds, evaluations = rounds + state.rounds, evaluations + state.evaluations
    return rounds / repeats, evaluations / repeats


def expected(taken: int, p: int) -> float:
    """The expectation of the rounds, from the distribution of a gap."""
    places = INGREDIENTS - 1
    chance = {
        gap: math.comb(places - gap, taken - 1) / math.comb(places, taken)
        for gap in range(1, places - taken + 2)
    }
    # The places behind the last one that is taken are distributed as a gap less its end.
    return sum(
        each * (taken * math.ceil(gap / p) + math.ceil((gap - 1) / p))
        for gap, each in chance.items()
    )


@dataclass
class SideBySide:
    """Experts as p replicas would be: a round lasts as long as its longest evaluation."""

    local: LocalExperts
    replicas: int
    rounds: list[tuple[int, float]] = field(default_factory=list)
    """Candidates and seconds of each; the first is that of the ingredients' own scores."""

    def evaluate_all(self, recipes: Sequence[Recipe], role: str) -> list[Evaluation]:
        """One after the other, counted side by side."""
        found, each = [], []
        for recipe in recipes:
            start = time.perf_counter()
            found.append(self.local.evaluate(recipe, role))
            each.append(time.perf_counter() - start)
        self.rounds.append((len(recipes), max(each)))
        return found

    def evaluate(self, recipe: Recipe, role: str) -> Evaluation:
        """The soup at the end."""
        return self.local.evaluate(recipe, role)

    def gram(self) -> Gram:
        """Of the order by angle."""
        return self.local.gram()


def trial(local: LocalExperts, p: int, folder: Path) -> tuple[bytes, list[Any], SideBySide]:
    """One trial of `greedy_soup`: its coding, its decisions, and who evaluated."""
    asked, reports = SideBySide(local, p), list[State]()
    inputs = LearningInputs(
        local.runner.tasks,
        local.runner.pipeline.groups,
        {},
        {},
        {},
        LocalStore(folder),
        frozenset(),
    )
    config = {"method": "greedy_soup", "params": {}, "trial_key": "x", "seed": 0}
    select(config, asked, inputs, lambda rung, found, state: reports.append(state))  # type: ignore[arg-type]
    return (folder / learned_name("x")).read_bytes(), reports[0].choices, asked


def real(folder: Path) -> list[Row]:
    """Figures of the real trials."""
    base = inspect(str(write_base(EMBEDDED, folder / "base")), "base")
    data = write_data(EMBEDDED, ("task",), ROWS, folder / "data")
    data = {name: replace(task, rows={"select": task.rows[ROLE]}) for name, task in data.items()}
    names = tuple(f"run{i}" for i in range(RUNS))
    local = experts(base, random_vectors(base, names, "cpu"), data, "cpu")
    trial(local, 1, folder / "warm")
    found = {p: trial(local, p, folder / f"p{p}") for p in (1, 4, 8)}
    coding, choices, one = found[1]
    alone = sum(seconds for _, seconds in one.rounds[1:])
    assert all(each[:2] == (coding, choices) for each in found.values())
    taken = sum(choice["outcome"] == "accepted" for choice in choices)
    rows = []
    for p, (_, _, asked) in found.items():
        counts, seconds = zip(*asked.rounds[1:], strict=True)
        how = f"{sum(counts)} evaluations; {taken} of {RUNS - 1} taken"
        rows.append(Row(f"real, p = {p}: rounds", len(counts), "", how))
        if p > 1:
            how = f"{alone:.3g} ÷ {sum(seconds):.3g} s, side by side"
            rows.append(
                Row(f"real, p = {p}: time of p = 1 ÷ its own", alone / sum(seconds), "", how)
            )
    return [*rows, Row("real: subsets and decisions that differ", 0, "0", "p = 1, 4, 8")]


def main() -> None:
    """Measure, print, and keep with `--save`."""
    given = arguments(__doc__, 400).parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    for (taken, p), aim in PUBLISHED.items():
        rounds, evaluations = simulated(taken, p, given.repeats)
        about = f"{taken} taken, p = {p}"
        aims = ("", "") if aim is None else (f"≈ {aim[0]:g}", f"≈ {aim[1]:g}")
        how = f"expected {expected(taken, p):.4g}"
        rows.append(Row(f"{about}: rounds", rounds, aims[0], how))
        rows.append(Row(f"{about}: evaluations", evaluations, aims[1], ""))
    folder = Path(tempfile.mkdtemp(prefix="greedy-"))
    try:
        rows += real(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sizes = f"{INGREDIENTS} ingredients, {given.repeats} random orders; real: {RUNS} of {EMBEDDED}"
    finish("greedy", f"{sizes}, {ROWS} images", rows)


if __name__ == "__main__":
    main()
