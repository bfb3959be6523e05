"""WiSE-FT under shift, over experts whose accuracy is a formula: every number by hand."""

import json
import math
from dataclasses import dataclass, field

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from actors.artifacts.coding_file import load_coding
from actors.data.task_rows import Rows, TaskData
from actors.experts.evaluation import Evaluation, TaskScore
from fusion.errors import InputError
from fusion.task_vectors.gram import Gram
from sweeps.analysis.core import finding
from sweeps.analysis.core.evaluated_points import PROBE, Points
from sweeps.analysis.core.inputs import AnalysisInputs, AnalysisOptions
from sweeps.analysis.core.shift_probes import ShiftContext, Shifted, beside
from sweeps.analysis.figures import pictures
from sweeps.analysis.html_page import write_page
from sweeps.analysis.parts.robustness import robustness
from sweeps.analysis.parts.robustness_text import LINEAR, MEAN, PATH, SINGLE
from sweeps.console.progress import Progress
from tests.sweeps.analysis.geometry_pool import pixel_file

N = 1000
NAMES = ("a", "b", "c")
GAINS = torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64)
LOSS = {"noise": 0.1, "fog": 0.2}
"""Of accuracy, under shift."""

FACTS = {"sweep": "s", "select": "val", "report": "test", "linked": False}


@dataclass
class Hill:
    """Reference: 0.6 + gains + α(1 − α)/5 of expert a. Under shift: less LOSS, and less again of b.

    The first rows are right, the others wrong, so that which rows are right follows from accuracy.
    """

    tasks: tuple[str, ...] = ("t",)
    replicas: int = 1
    top: float = 1.0
    fails: str = ""
    fails_after: float = math.inf
    fits: int = 0
    asked: list[tuple[str, tuple[float, ...]]] = field(default_factory=list)

    def accuracy(self, point: torch.Tensor, role: str) -> float:
        a, b, _ = point.tolist()
        clean = 0.6 + float(point @ GAINS) + a * (1 - a) / 5
        name = role.partition("@")[0].removeprefix("shift/")
        return min(1.0, self.top * (clean - (0 if name == PROBE else LOSS[name] + 0.1 * b)))

    def point(self, recipe) -> torch.Tensor:
        return load_coding(recipe.learned, NAMES, ("w",), "test").flatten().double()

    def seen(self, role: str) -> tuple[str, ...]:
        own = role.partition("@")[2]
        return (own,) if own else self.tasks

    def evaluate_all(self, recipes, role):
        return [self.evaluate(recipe, role) for recipe in recipes]

    def evaluate(self, recipe, role):
        point = self.point(recipe)
        if len(self.asked) >= self.fails_after:
            raise ConnectionError("killed")
        self.asked.append((role, tuple(point.tolist())))
        hits = np.arange(N) < round(N * self.accuracy(point, role))
        return Evaluation({task: TaskScore(hits, 0.0) for task in self.seen(role)}, 0.0, 1)

    def logits(self, recipe, role):
        if recipe.method == "wise_ft_linear":
            assert recipe.params == {"alpha": 1.0}
            right = 0.75 if role == PROBE else 0.6
        else:
            right = self.accuracy(self.point(recipe), role)
        hits = torch.arange(N) < round(N * right)
        return {t: torch.stack([hits, ~hits], dim=1).float() for t in self.seen(role)}

    def fit(self, recipe):
        self.fits += 1
        if self.fails:
            raise InputError(self.fails)
        return b"a probe", {}


def given(
    folder, experts=None, *, soup=True, sets=tuple(LOSS), own=(), ranked=NAMES
) -> AnalysisInputs:
    """An analysis of one task by ingredients, or of tasks of their own."""
    experts = experts or Hill()
    progress = Progress(Console(quiet=True))
    rows = Rows(pixel_file(folder / "pixels.arrow", [0] * N))
    probe = Points(experts, NAMES, PROBE, folder / "points/x-probe.json", progress)
    roles = dict.fromkeys((PROBE, *(f"shift/{name}" for name in sets)), rows)
    data = {task: TaskData(task, folder / "head", roles) for task in experts.tasks}
    contexts = [
        ShiftContext(
            experts.tasks if soup else (task,),
            probe if soup else beside(probe, f"{PROBE}@{task}", f"@{task}"),
            {
                name: beside(probe, f"shift/{name}{'' if soup else f'@{task}'}", f"-{name}{task}")
                for name in sets
            },
            None if soup else task,
        )
        for task in own or [None]
    ]
    shifted = Shifted("k", {name: "rows" for name in sets}, (), tuple(contexts if sets else ()))
    total = torch.eye(3, dtype=torch.float64)
    singles = {name: {"acc/mean": 0.9 - 0.1 * at if name in ranked else math.nan}
               for at, name in enumerate(NAMES)}  # fmt: skip
    return AnalysisInputs(
        "x", Gram(NAMES, total, {"w": total}), probe, probe, data, singles, "acc/mean", {},
        "float32", 0, N, soup, shifted,
    )  # fmt: skip


def lines_of(found, table="points", **wanted):
    return [row for row in found.tables[table] if all(row[k] == v for k, v in wanted.items())]


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_the_path_to_the_best_model(tmp_path):
    found = robustness(given(tmp_path), AnalysisOptions())
    path = lines_of(found, curve=PATH, set="noise")
    assert [row["alpha"] for row in path] == [step / 10 for step in range(11)]
    assert {row["model"] for row in path} == {"a"}
    for row in path:
        alpha = row["alpha"]
        expected = 0.6 + 0.3 * alpha + alpha * (1 - alpha) / 5
        assert row["reference"] == pytest.approx(expected, abs=6e-4)
        assert row["shift"] == pytest.approx(expected - 0.1, abs=6e-4)
        assert row["relative"] == pytest.approx(row["shift"] - 0.5)
    assert (path[0]["reference"], path[-1]["reference"]) == (0.6, 0.9)
    mean = lines_of(found, curve=PATH, set=MEAN)
    assert mean[5]["shift"] == pytest.approx(0.8 - 0.15)
    assert found.context == "x-k"
    said = " ".join(found.lines)
    assert "End to end, from the base to a: the reference goes from 60.0 to 90.0 %" in said
    assert "End to end: no α beats both ends" in said
    assert "End to end: accuracy is nowhere below the straight line" in said
    assert "+30.0 points after fine-tuning" in said
    # a is right where the base is, and on 300 rows more
    assert "disagree and one of them is right: reference 30.0 %, noise 30.0 %" in said


def test_the_baseline_is_of_the_models_and_not_of_the_base(tmp_path):
    found = robustness(given(tmp_path), AnalysisOptions())
    models = lines_of(found, curve=SINGLE, set="noise")
    pairs = [(row["reference"], row["shift"]) for row in models]
    assert pairs == [(0.9, 0.8), (0.8, 0.6), (0.7, 0.6)]
    x, y = (np.array([logit(pair[at]) for pair in pairs]) for at in (0, 1))
    slope, intercept = np.polyfit(x, y, 1)
    (baseline,) = lines_of(found, "baselines", set="noise")
    assert (baseline["models"], baseline["fault"]) == (3, "")
    assert baseline["slope"] == pytest.approx(slope)
    assert baseline["intercept"] == pytest.approx(intercept)
    for row in lines_of(found, set="noise"):
        expected = 1 / (1 + math.exp(-slope * logit(row["reference"]) - intercept))
        assert row["expected"] == pytest.approx(expected)
        assert row["effective"] == pytest.approx(row["shift"] - expected)
    assert any("over the baseline of 3 models" in line and "hardly known" in line
               for line in found.lines)  # fmt: skip


def test_the_linear_path_is_a_path_of_logits(tmp_path):
    experts = Hill()
    found = robustness(given(tmp_path, experts), AnalysisOptions(alphas=5))
    # Rows 600 to 749 are right from the middle on, where both classes are equal and the first is 0.
    path = lines_of(found, curve=LINEAR, set="noise")
    assert [row["reference"] for row in path] == [0.6, 0.6, 0.75, 0.75, 0.75]
    assert [row["shift"] for row in path] == [0.5, 0.5, 0.6, 0.6, 0.6]
    assert experts.fits == 1
    robustness(given(tmp_path, experts), AnalysisOptions(alphas=3))
    assert experts.fits == 1  # its file is kept
    none = robustness(given(tmp_path / "none", experts), AnalysisOptions(linear=False))
    assert experts.fits == 1
    assert not lines_of(none, curve=LINEAR)
    unfit = robustness(
        given(tmp_path / "unfit", Hill(fails="task 't': one class")), AnalysisOptions()
    )
    assert not lines_of(unfit, curve=LINEAR)
    assert unfit.lines[0] == "There is no path of the linear classifier: task 't': one class."


def test_another_path_may_be_asked_for(tmp_path):
    experts = Hill()
    found = robustness(given(tmp_path, experts), AnalysisOptions(path="b", alphas=3, linear=False))
    assert [row["shift"] for row in lines_of(found, curve=PATH, set="noise")] == [0.5, 0.55, 0.6]
    assert (PROBE, (0.0, 0.5, 0.0)) in experts.asked


def test_a_set_that_was_measured_goes_on_where_it_was_killed(tmp_path):
    whole = robustness(given(tmp_path / "whole"), AnalysisOptions())
    with pytest.raises(ConnectionError):
        robustness(given(tmp_path / "cut", Hill(fails_after=14)), AnalysisOptions())
    second = Hill()
    assert robustness(given(tmp_path / "cut", second), AnalysisOptions()) == whole
    once = Hill()
    robustness(given(tmp_path / "once", once), AnalysisOptions())
    # 11 of the reference and, of a chunk of 4 under shift that was cut, none were kept
    assert len(second.asked) == len(once.asked) - 11
    assert len(set(once.asked)) == len(once.asked)


def test_each_expert_walks_on_its_own_task(tmp_path):
    experts = Hill(tasks=("a", "b", "unseen"))
    look = given(tmp_path, experts, soup=False, own=("a", "b"))
    found = robustness(look, AnalysisOptions(alphas=3))
    assert {role for role, _ in experts.asked} == {
        f"{role}@{task}" for task in "ab" for role in (PROBE, "shift/noise", "shift/fog")
    }
    (middle,) = lines_of(found, task=MEAN, curve=PATH, set="noise", alpha=0.5)
    assert middle["reference"] == pytest.approx((0.8 + 0.7) / 2)
    assert middle["shift"] == pytest.approx((0.7 + 0.55) / 2)
    (alone,) = lines_of(found, task="b", curve=PATH, set="noise", alpha=1.0)
    assert (alone["reference"], alone["shift"], alone["effective"]) == (0.8, 0.6, None)
    assert not lines_of(found, curve=SINGLE)
    assert any("experts of different tasks" in line for line in found.lines)
    assert {line["model"] for line in lines_of(found, curve=PATH)} == {"each task's own expert"}
    one = robustness(
        given(tmp_path, experts, soup=False, own=("a", "b")), AnalysisOptions(path="b")
    )
    assert {(row["task"], row["model"]) for row in lines_of(one, curve=PATH)} == {("b", "b")}
    assert pictures(found)


def test_what_is_skipped_says_why(tmp_path):
    plain = given(tmp_path, sets=())
    assert robustness(plain, AnalysisOptions()).lines == ("Skipped: the file has no `shifts`.",)
    blind = AnalysisInputs(
        **{**vars(plain), "shifted": Shifted("", {}, ("Shift set 's' is left out.",))}
    )
    assert robustness(blind, AnalysisOptions()).lines == (
        "Shift set 's' is left out.", "Skipped: no shift set has rows of select's side.",
    )  # fmt: skip
    assert (
        "no model with a finite score"
        in robustness(given(tmp_path, ranked=()), AnalysisOptions()).lines[0]
    )
    away = given(tmp_path, Hill(tasks=("a", "b")), soup=False, own=("a",))
    assert "of the task of b" in robustness(away, AnalysisOptions(path="b")).lines[0]


def test_too_few_models_for_a_baseline(tmp_path):
    found = robustness(given(tmp_path, ranked=("a",)), AnalysisOptions())
    assert any("no baseline: 1 model; two different needed" in line for line in found.lines)
    (line,) = lines_of(found, "baselines", set=MEAN)
    assert (line["models"], line["slope"]) == (1, None)


def test_files_and_pictures(tmp_path):
    found = robustness(given(tmp_path), AnalysisOptions())
    finding.write(found, tmp_path / "out")
    back = finding.read(tmp_path / "out", "robustness", "x-k")
    rows = pq.read_table(tmp_path / "out/robustness-points.parquet").to_pylist()
    assert rows == back.tables["points"]
    (row,) = [row for row in back.tables["summary"] if (row["curve"], row["alpha"]) == (PATH, 0.5)]
    assert row["reference"] == 0.8
    assert row["mean"] == pytest.approx(0.65)
    assert row["shift/noise"] == 0.7
    page, drawn = write_page([back], tmp_path / "out", FACTS)
    assert [path.stem for path in drawn] == ["robustness", "robustness-sets"]
    assert all(path.stat().st_size > 10_000 for path in drawn)
    assert "Robustness to shift" in page.read_text()
    assert json.loads((tmp_path / "out/robustness.json").read_text())["lines"] == back.lines
    (only,) = pictures(robustness(given(tmp_path / "one", sets=("fog",)), AnalysisOptions()))
    assert only.figure.axes[0].get_ylabel() == "accuracy under shift, %: fog"


def test_accuracies_of_one_are_drawn(tmp_path):
    found = robustness(given(tmp_path, Hill(top=3.0)), AnalysisOptions())
    assert {row["reference"] for row in lines_of(found, curve=PATH)} == {1.0}
    assert any("all models have one reference accuracy" in line for line in found.lines)
    (main, _) = pictures(found)
    assert "above 99.9 % are drawn there" in main.title
    axes = main.figure.axes[0]
    assert all(math.isfinite(limit) for limit in (*axes.get_xlim(), *axes.get_ylim()))
    assert "99.9" in [tick.get_text() for tick in axes.get_xticklabels()]
