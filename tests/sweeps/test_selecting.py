"""Selecting ingredients with scores from a table: decisions, resume, what is kept."""

import json
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from actors.codings import load_coding
from actors.evaluation import Evaluation, TaskScore
from fusion.errors import InputError
from fusion.gram import Gram
from sweeps.keeper import Folder
from sweeps.learning import LAST_RUNG, Course, learned_name, state_name
from sweeps.selecting import packed, select, unpacked

N = 200
NAMES = ("a", "b", "c", "d")
TABLE = {
    "a": 160, "b": 150, "c": 140, "d": 130,
    "a b": 158, "a c": 165, "a d": 150, "a c d": 165, "a b c": 161, "b c": 170, "a b d": 100,
    "a c*2": 1, "a*2 c": 1,
}  # fmt: skip
"""Soup -> how many of the samples it gets right."""


def evaluation(correct: int, nll: float = 1.0) -> Evaluation:
    hits = np.arange(N) < correct
    return Evaluation({"t": TaskScore(hits, nll)}, 0.01, 1)


@dataclass
class Table:
    """Experts whose soups' accuracies are in a table."""

    replicas: int = 1
    fails_after: float = math.inf
    asked: list[list[str]] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)

    def soup(self, recipe) -> str:
        coding = load_coding(recipe.learned, NAMES, ("w",), "test").flatten()
        least = coding[coding > 0].min()
        counts = {n: round(float(c / least)) for n, c in zip(NAMES, coding, strict=True) if c}
        return " ".join(f"{n}*{m}" if m > 1 else n for n, m in counts.items())

    def evaluate_all(self, recipes, role):
        names = [self.soup(recipe) for recipe in recipes]
        if sum(map(len, self.asked)) + len(names) > self.fails_after:
            raise ConnectionError("killed")
        self.asked.append(names)
        self.roles.append(role)
        return [evaluation(TABLE[name], nll=1 - TABLE[name] / N) for name in names]

    def evaluate(self, recipe, role):
        assert role == "select"
        return evaluation(TABLE[self.soup(recipe)])

    def gram(self):
        # a at 0°, b at 90°, c at 60°, d at 30° to it
        at = torch.tensor([0.0, 90.0, 60.0, 30.0]).deg2rad().double()
        total = torch.cos(at[:, None] - at[None, :])
        return Gram(NAMES, total, {"w": total})


def run(tmp_path, experts=None, method="greedy_soup", hashes=(), **params):
    experts = experts or Table()
    course = Course(NAMES, ("w",), {}, {}, {}, Folder(tmp_path), frozenset(), hashes=hashes)
    reports = []
    config = {"method": method, "params": params, "trial_key": "k", "seed": 0}
    select(config, experts, course, lambda *given: reports.append(given))
    ((rung, found, state),) = reports
    assert rung == LAST_RUNG
    data = (tmp_path / learned_name("k")).read_bytes()
    coding = load_coding(data, NAMES, ("w",), "test").flatten().tolist()
    return coding, found, state


@pytest.mark.parametrize("replicas", [1, 2, 8])
@pytest.mark.parametrize(
    ("tie", "wanted"), [("ge", [1 / 3, 0, 1 / 3, 1 / 3]), ("gt", [0.5, 0, 0.5, 0])]
)
def test_decisions_do_not_depend_on_how_many_are_asked_at_once(tmp_path, replicas, tie, wanted):
    coding, found, state = run(tmp_path, Table(replicas), tie=tie)
    assert coding == pytest.approx(wanted)
    assert found.metrics()["acc/mean"] == 165 / N
    said = [(c["candidate"], c["outcome"]) for c in state.choices]
    last = "accepted" if tie == "ge" else "rejected"
    assert said == [("a b", "rejected"), ("a c", "accepted"), ("a c d", last)]
    gain = state.choices[1]
    assert gain["gain"] == pytest.approx(5 / N)
    assert gain["low"] <= gain["gain"] <= gain["high"]
    assert gain["p"] == pytest.approx(2 * 0.5**5)


def test_a_killed_trial_goes_on_without_asking_again(tmp_path):
    whole = run(tmp_path / "whole")
    cut = tmp_path / "cut"
    first = Table(fails_after=5)
    with pytest.raises(ConnectionError):
        run(cut, first)
    assert json.loads((cut / state_name("k")).read_bytes()).keys() == {*"abcd", "a b"}
    second = Table()
    again = run(cut, second)
    assert again[0] == whole[0]
    assert again[2].choices == whole[2].choices
    assert second.asked == [["a c"], ["a c d"]]
    (cut / state_name("k")).write_bytes(b'{"a": 1}')  # damaged: begins anew
    assert run(cut)[0] == whole[0]


def test_the_best_single_and_the_oracle(tmp_path):
    experts = Table()
    coding, _, state = run(tmp_path, experts, method="best_single")
    assert coding == [1, 0, 0, 0]
    assert experts.roles == ["select"]
    assert [c["outcome"] for c in state.choices] == ["accepted", *["rejected"] * 3]
    oracle = Table()
    run(tmp_path / "oracle", oracle, method="oracle_single")
    assert oracle.roles == ["report"]


def test_orders_prunes_and_given_pools(tmp_path):
    first = run(tmp_path / "1", order="given", ingredients=["b", "c"])[0]
    assert first == [0, 0.5, 0.5, 0]
    pruned = run(tmp_path / "2", prune=0.06)[2].choices
    assert [c["candidate"] for c in pruned] == ["a b"]
    angled = run(tmp_path / "3", order="angle")[2].choices
    assert [c["ingredient"] for c in angled] == ["b", "c", "d"]
    started = run(tmp_path / "4", start=["b", "c"], ingredients=["a", "b", "c"])[2].choices
    assert [(c["candidate"], c["outcome"]) for c in started] == [
        ("b c", "start"), ("a b c", "rejected"),
    ]  # fmt: skip
    losses = run(tmp_path / "5", metric="nll/mean")[2].choices
    assert losses[0]["best"] == pytest.approx(0.2)  # a loss again, not its negative
    assert not any("gain" in choice for choice in losses)  # a gain is one of accuracy


def test_copies_are_not_taken_twice(tmp_path):
    coding, _, state = run(tmp_path, hashes=("x", "y", "x", "z"))
    assert coding == [1, 0, 0, 0]
    assert [c["outcome"] for c in state.choices] == ["rejected", "duplicate", "rejected"]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"ingredients": ["z"]}, "unknown ingredient 'z'"),
        ({"order": "given"}, "order 'given' needs ingredients"),
        ({"metric": "acc/nothing"}, "no ingredient has a finite score"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, params, said):
    with pytest.raises(InputError, match=said):
        run(tmp_path, **params)


def test_correctness_is_packed_and_unpacked():
    hits = np.random.default_rng(0).random(77) < 0.5
    found = Evaluation({"t": TaskScore(hits[:30], 0.0), "u": TaskScore(hits[30:], 0.0)}, 0, 0)
    assert (unpacked(packed(found, "acc/mean")) == hits).all()
    assert (unpacked(packed(found, "acc/u")) == hits[30:]).all()
