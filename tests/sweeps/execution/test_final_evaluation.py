"""Times of rows: measured one by one, kept by trial, and never the end of a sweep."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from actors.experts.evaluation import Timing
from actors.experts.requests import ExpertScores, Time
from fusion.errors import InputError
from fusion.task_vectors.gram import Gram
from sweeps.execution import final_evaluation
from sweeps.execution.final_evaluation import measure_experts, measure_times
from sweeps.results import expert_matrix
from sweeps.results.comparison import Row

ROWS = [
    Row("pretrained", "reference", trial_key="p"),
    Row("ties", "static", trial_key="t", cost={"models": 1}),
    Row("fisher", "static"),  # no trial succeeded
]


class Fleet:
    """A client that counts its calls, and refuses a method."""

    def __init__(self, refused: str = "") -> None:
        self.asked: list[str] = []
        self.refused = refused

    def submit(self, request: Time) -> Timing:
        assert request.role == "report"
        self.asked.append(request.recipe.method)
        if request.recipe.method == self.refused:
            raise InputError("logits that are not finite")
        return Timing(None if request.recipe.method == "pretrained" else 0.5, 0.001, 64)


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(final_evaluation, "fetched", lambda ref: ref)
    said: list[str] = []
    progress = SimpleNamespace(start=lambda *_: None, advance=lambda *_: None, say=said.append)

    def call(fleet: Fleet, rows: list[Row] = ROWS) -> list[Row]:
        return measure_times(fleet, rows, tmp_path, tmp_path / "learned", progress)  # type: ignore

    call.said = said
    return call


def test_times_are_added_to_costs_and_kept_by_trial(measure):
    fleet = Fleet()
    base, ties, fisher = measure(fleet)
    assert base.cost == {"merge_s": None, "input_s": 0.001}
    assert ties.cost == {"models": 1, "merge_s": 0.5, "input_s": 0.001}
    assert fisher.cost == {}
    assert fleet.asked == ["pretrained", "ties"]
    assert [row.cost for row in measure(fleet)] == [base.cost, ties.cost, {}]
    assert fleet.asked == ["pretrained", "ties"]  # the same costs, not measured again
    measure(fleet, [Row("ties", "static", trial_key="another")])
    assert fleet.asked[2:] == ["ties"]


def test_a_damaged_file_is_measured_again(measure, tmp_path):
    fleet = Fleet()
    measure(fleet)
    (tmp_path / "ties.times.json").write_text("{")
    assert measure(fleet)[1].cost["merge_s"] == 0.5
    assert fleet.asked[2:] == ["ties"]


def test_what_cannot_be_measured_is_said_and_left_out(measure):
    found = measure(Fleet(refused="ties"))
    assert found[1].cost == {"models": 1}
    (line,) = measure.said
    assert line.startswith("the times of ties could not be made: logits that are not finite")


SCORES = {"pretrained": {"a": {"acc": 0.5}}, "a": {"a": {"acc": 0.75}}, "b": {"a": {"acc": 0.25}}}


class Pool:
    """A client that knows two experts, with task vectors (3, 4) and (4, 3)."""

    asked = 0

    def submit(self, request: ExpertScores) -> object:
        assert request == ExpertScores("report")
        self.asked += 1
        return SCORES

    def gram(self) -> Gram:
        return Gram(("a", "b"), torch.tensor([[25.0, 24.0], [24.0, 25.0]], dtype=torch.double), {})


def test_experts_are_measured_once_for_a_pool(measure, tmp_path):
    progress = SimpleNamespace(say=measure.said.append, doing=lambda _: nullcontext())
    pool = Pool()
    for key in ("one", "one", "two"):
        measure_experts(pool, tmp_path, key, progress)  # type: ignore[arg-type]
    assert pool.asked == 2
    found = expert_matrix.read(tmp_path, "two")
    assert found is not None
    assert found.scores == SCORES
    assert found.cosines == {"a": {"a": 1.0, "b": pytest.approx(0.96)},
                             "b": {"a": pytest.approx(0.96), "b": 1.0}}  # fmt: skip
    assert expert_matrix.read(tmp_path, "one") is None
    (tmp_path / "experts.json").write_text("{}")
    assert expert_matrix.read(tmp_path) is None
    assert measure.said == []
