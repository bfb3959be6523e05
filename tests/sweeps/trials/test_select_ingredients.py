"""Selecting ingredients with scores from a table: decisions, resume, what is kept."""

import json
import math
import shutil
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from actors.artifacts.coding_file import load_coding
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.evaluation import Evaluation, TaskScore
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.pool.pool import open_pool
from actors.pool.vectors_on_disk import file_vectors, opened_vectors
from fusion.errors import InputError, Vanished
from fusion.task_vectors.gram import Gram
from sweeps.planning.learning_needs import LAST_RUNG
from sweeps.results.folder import learned_name, state_name
from sweeps.results.rows.winners import remarks
from sweeps.trials.artifact_store import LocalStore
from sweeps.trials.learn_coding import LearningInputs
from sweeps.trials.select_ingredients import NO_INTERVAL, packed, select, unpacked

N = 200
NAMES = ("a", "b", "c", "d")
TABLE = {
    "a": 160, "b": 150, "c": 140, "d": 130,
    "a b": 158, "a c": 165, "a d": 150, "a c d": 165, "a b c": 161, "b c": 170, "a b d": 100,
    "b c d": 120, "a c*2": 1, "a*2 c": 1,
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
    inputs = LearningInputs(
        NAMES, ("w",), {}, {}, {}, LocalStore(tmp_path), frozenset(), hashes=hashes
    )
    reports = []
    config = {"method": method, "params": params, "trial_key": "k", "seed": 0}
    select(config, experts, inputs, lambda *given: reports.append(given))
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
    taken = [choice for choice in losses if choice["outcome"] == "accepted"]
    assert [choice["note"] for choice in taken] == [NO_INTERVAL] * 2


def test_copies_are_not_taken_twice(tmp_path):
    coding, _, state = run(tmp_path, hashes=("x", "y", "x", "z"))
    assert coding == [1, 0, 0, 0]
    assert [c["outcome"] for c in state.choices] == ["rejected", "duplicate", "rejected"]
    assert [c["note"] for c in state.choices] == ["", "a copy of a", ""]
    coding, _, state = run(tmp_path / "all", hashes="xxxx")
    assert coding == [1, 0, 0, 0]
    assert [c["note"] for c in state.choices] == ["a copy of a"] * 3


@dataclass
class Gone(Table):
    """The file of `member` is not there any more, from the call `since` on."""

    member: str = "c"
    since: int = 0
    calls: int = 0

    def check(self, recipes):
        self.calls += 1
        names = {each for recipe in recipes for each in self.soup(recipe).split()}
        if self.calls > self.since and self.member in {name[0] for name in names}:
            raise Vanished(self.member, f"expert {self.member!r}: x.safetensors: no such file")

    def evaluate_all(self, recipes, role):
        self.check(recipes)
        return super().evaluate_all(recipes, role)

    def evaluate(self, recipe, role):
        self.check([recipe])
        return super().evaluate(recipe, role)


@pytest.mark.parametrize(
    ("since", "member"),
    [(0, "c"), (2, "c"), (3, "c"), (0, "a"), (2, "a"), (4, "a"), (0, "d"), (4, "d")],
)
def test_an_ingredient_that_vanishes_is_left_out_and_named(tmp_path, since, member):
    left = [name for name in NAMES if name != member]
    wanted = run(tmp_path / "without", ingredients=left)
    experts = Gone(member=member, since=since)
    coding, found, state = run(tmp_path / "gone", experts)
    assert experts.calls > since
    assert coding == wanted[0]
    assert found.metrics() == wanted[1].metrics()
    assert state.choices[1:] == wanted[2].choices
    lost = state.choices[0]
    assert (lost["ingredient"], lost["outcome"]) == (member, "vanished")
    assert remarks(state.choices) == (f"ingredient {member}: its file vanished; left out",)
    asked = [name for names in experts.asked for name in names]
    assert len(asked) == len(set(asked))  # what is known is not asked again


def test_a_file_that_is_removed_in_mid_soup_is_left_out(tiny_pool, tmp_path):
    """Real files that are read all the time: one goes after the ingredients were scored."""
    root, names = tiny_pool.root, ("lines", "tones", "blobs")
    for name in names:
        shutil.copytree(root / "experts" / name, tmp_path / name)
    pool = open_pool(str(root / "base"), {name: str(tmp_path / name) for name in names})
    tasks = {"t": open_task(TaskSource("t", str(root / "data/blobs")))}
    data = prepare_data(pool.base, tasks, Splits(), ["select", "report"], tmp_path / "cache")
    identity = {name: name for name in (*names, "pretrained")}
    vectors = opened_vectors(file_vectors(pool))

    def trial(folder, **params):
        cache = EmbeddingCache(tmp_path / "e", identity)
        experts = local_experts(pool, data, cache, vectors=vectors)
        inputs = LearningInputs(names, vectors.groups, {}, {}, {}, LocalStore(folder), frozenset())
        reports = []
        config = {"method": "greedy_soup", "params": params, "trial_key": "k", "seed": 0}
        select(config, experts, inputs, lambda *given: reports.append(given))
        return load_coding(
            (folder / learned_name("k")).read_bytes(), names, ("w",), "test"
        ), reports

    whole = trial(tmp_path / "1")
    second = whole[1][0][2].choices[0]["ingredient"]
    (tmp_path / second / "model.safetensors").unlink()
    left = [name for name in names if name != second]
    wanted, ((_, metrics, without),) = trial(tmp_path / "2", ingredients=left)
    coding, ((_, found, state),) = trial(tmp_path / "3")  # all single scores are at hand
    assert torch.equal(coding, wanted)
    assert found.metrics() == metrics.metrics()
    assert state.choices[1:] == without.choices
    assert remarks(state.choices) == (f"ingredient {second}: its file vanished; left out",)


def test_a_vanished_ingredient_of_the_start_and_of_the_best_single(tmp_path):
    started = run(tmp_path / "1", Gone(member="b"), start=["b", "c"])
    assert started[0] == run(tmp_path / "2", start=["c"], ingredients=["a", "c", "d"])[0]
    coding, _, state = run(tmp_path / "3", Gone(member="a"), method="best_single")
    assert coding == [0, 1, 0, 0]
    assert [c["outcome"] for c in state.choices] == ["vanished", "accepted", *["rejected"] * 2]


def test_what_cannot_be_done_without_is_an_error(tmp_path):
    class Never(Table):
        def evaluate_all(self, recipes, role):
            raise Vanished("b", "expert 'b': x.safetensors: no such file")

    with pytest.raises(Vanished, match="expert 'b'"):
        run(tmp_path / "1", Never())
    with pytest.raises(InputError, match="no ingredient is left: the files of c vanished"):
        run(tmp_path / "2", Gone(member="c"), ingredients=["c"])


def test_logits_that_are_no_numbers_are_left_out_and_named(tmp_path):
    class Broken(Table):
        broken = ("b", "a c")

        def evaluate_all(self, recipes, role):
            names = [self.soup(recipe) for recipe in recipes]
            found = super().evaluate_all(recipes, role)
            return [
                evaluation(N, math.nan) if name in self.broken else each
                for name, each in zip(names, found, strict=True)
            ]

    coding, _, state = run(tmp_path / "1", Broken())
    assert coding == [1, 0, 0, 0]
    said = [(c["candidate"], c["outcome"]) for c in state.choices]
    assert said == [("b", "failed"), ("a c", "failed"), ("a d", "rejected")]
    assert state.choices[0]["note"] == "its logits are NaN or infinite; left out"
    json.dumps(state.choices, allow_nan=False)
    assert remarks(state.choices) == (
        "ingredient b: its logits are NaN or infinite; left out",
        "soup a c: its logits are NaN or infinite; left out",
    )
    pruned = run(tmp_path / "2", Broken(), prune=0.0)[2].choices
    assert [(c["candidate"], c["outcome"]) for c in pruned] == [("b", "failed")]
    single = run(tmp_path / "3", Broken(), method="best_single")
    assert single[0] == [1, 0, 0, 0]
    assert [c["outcome"] for c in single[2].choices] == [
        "accepted", "failed", "rejected", "rejected",
    ]  # fmt: skip
    Broken.broken = NAMES
    for method in ("greedy_soup", "best_single"):
        said = "no ingredient has a finite acc/mean on select: the logits of a, b, c, d are NaN"
        with pytest.raises(InputError, match=said):
            run(tmp_path / method, Broken(), method=method)


def test_the_interval_is_of_what_is_compared(tmp_path):
    """Tasks of 100 and 10 samples: the mean of their gains, not that of the 110 samples."""

    class Two(Table):
        def evaluate_all(self, recipes, role):
            return [self.two(self.soup(recipe)) for recipe in recipes]

        def evaluate(self, recipe, role):
            return self.two(self.soup(recipe))

        def two(self, name):
            large, small = {"a": (80, 5), "b": (50, 4), "a b": (77, 8)}.get(name, (1, 1))
            return Evaluation(
                {"t": TaskScore(np.arange(100) < large, 1.0),
                 "u": TaskScore(np.arange(10) < small, 1.0)}, 0.0, 1,
            )  # fmt: skip

    for metric, gain, p in (
        ("acc/mean", (0.3 - 0.03) / 2, None),
        ("acc/u", 0.3, 2 * 0.5**3),
    ):
        where = tmp_path / metric.replace("/", "-")
        taken = run(where, Two(), metric=metric, ingredients=["a", "b"])[2].choices[0]
        assert taken["outcome"] == "accepted"
        assert taken["gain"] == pytest.approx(gain)
        assert taken["low"] < gain < taken["high"]
        # Of T(x) = Σ ±1/100 (3 times) ± 1/10 (3 times), as far from 0 as 0.27: 0.3 with any of
        # the three signs of the other task: 2 of the 8 outcomes of the small task.
        assert taken["p"] == pytest.approx(p or 2 / 8, abs=0.01)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"ingredients": ["z"]}, "unknown ingredient 'z'"),
        ({"order": "given"}, "order 'given' needs ingredients"),
        ({"metric": "acc/nothing"}, "unknown metric 'acc/nothing'"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, params, said):
    with pytest.raises(InputError, match=said):
        run(tmp_path, **params)


def test_correctness_is_packed_and_unpacked():
    hits = np.random.default_rng(0).random(77) < 0.5
    found = Evaluation({"t": TaskScore(hits[:30], 0.0), "u": TaskScore(hits[30:], 0.0)}, 0, 0)
    both = packed(found, "acc/mean")
    assert list(both) == ["t", "u"]
    assert (unpacked(both["t"]) == hits[:30]).all()
    assert (unpacked(both["u"]) == hits[30:]).all()
    assert packed(found, "acc/u") == {"u": both["u"]}
