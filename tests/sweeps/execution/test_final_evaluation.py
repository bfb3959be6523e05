"""Times of rows: measured one by one, kept by trial, and never the end of a sweep."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from actors.experts.requests import Time
from actors.experts.timing import Timing
from fusion.errors import InputError
from sweeps.execution import final_evaluation
from sweeps.execution.final_evaluation import measure_times
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
