"""Metrics: direction, samples, and a metric of a test that follows them into the comparison."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from scipy.stats import spearmanr

from actors.experts import metrics
from actors.experts.evaluation import Evaluation, score
from actors.experts.metrics import (
    ACCURACY,
    EXACT,
    NLL,
    PAIRED,
    metric_of,
    own_samples,
    paired,
    ranked_by,
    sign_of,
)
from sweeps.report.significance_text import matrix, verdict
from sweeps.results.comparison import Header, Row, compare
from sweeps.results.comparison_file import document, read, write
from sweeps.results.correctness_file import Kept, read_correct, write_kept
from sweeps.results.ledger import Entry
from sweeps.results.rows.winners import winners
from sweeps.spec.metric import metric_names

RNG = np.random.default_rng(3)


@dataclass(frozen=True)
class Toy:
    """A metric of all rows together: Spearman's rank correlation, or Matthews'."""

    name: str
    title: str = "correlation"
    larger_is_better: bool = True
    ranks: bool = True
    per_sample: bool = False

    def samples(self, output: torch.Tensor, targets: torch.Tensor) -> Any:
        guess = output.argmax(dim=1) if self.name == "mcc" else output[:, -1]
        return torch.stack([guess, targets], dim=1).double().numpy()

    def score(self, samples: Any) -> float:
        guess, target = samples.T
        if self.name == "rho":
            return float(spearmanr(guess, target).statistic)
        if np.ptp(guess) == 0 or np.ptp(target) == 0:
            return float("nan")
        return float(np.corrcoef(guess, target)[0, 1])  # of two classes: Matthews' coefficient

    def __call__(self, output: torch.Tensor, targets: torch.Tensor) -> float:
        return self.score(self.samples(output, targets))


@pytest.fixture(params=["rho", "mcc"])
def toy(request, monkeypatch) -> Toy:
    found = Toy(request.param)
    monkeypatch.setitem(metrics.METRICS, found.name, found)
    return found


def test_accuracy_and_nll_are_those_of_torch():
    z, labels = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 4
    found = score(z, labels)
    assert found.nll == NLL(z, labels) == torch.nn.functional.cross_entropy(z.double(), labels)
    assert np.array_equal(found.correct, (z.argmax(1) == labels).numpy())
    assert ACCURACY(z, labels) == found.accuracy == found.correct.mean()
    assert not ACCURACY.samples(torch.tensor([[1.0, torch.nan]]), torch.tensor([0])).any()


def test_directions_and_what_reports_rank_by():
    assert (sign_of("acc/a"), sign_of("nll/a")) == (1.0, -1.0)
    assert ranked_by("nll/mean") is ranked_by("acc/mean") is ACCURACY
    assert metric_of("nll/mean") is NLL
    assert metric_names(["a"]) == ["acc/mean", "acc/a", "nll/mean", "nll/a"]


def test_exact_match_is_measured_where_a_model_writes_answers():
    z, labels = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), torch.arange(4) % 3
    written = torch.tensor([0, -1, 2, 1])
    found = Evaluation(
        {"a": score(z, labels, written=written), "b": score(z, labels)}, 0.0, 0
    ).metrics()
    assert (found["exact/a"], found["exact/mean"]) == (0.5, 0.5)
    assert "exact/b" not in found
    assert (metric_of("exact/mean"), ranked_by("exact/a").title) == (EXACT, "exact match")
    assert "exact/mean" not in metric_names(["a"])


def test_an_evaluation_has_the_values_of_every_metric(toy):
    z, labels = torch.randn(40, 2, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 2
    found = Evaluation({"a": score(z, labels), "b": score(z + 1, labels)}, 0.0, 0).metrics()
    assert found[f"{toy.name}/a"] == toy(z, labels)
    assert found[f"{toy.name}/mean"] == pytest.approx((toy(z, labels) + toy(z + 1, labels)) / 2)
    assert list(found)[:3] == ["acc/a", "acc/b", "acc/mean"]


def test_samples_that_are_pairs_are_kept_and_read_back(toy, tmp_path):
    pairs = RNG.standard_normal((5, 2))
    at = np.arange(5)
    write_kept(tmp_path / "m.arrow", Kept("k", {}, np.array(["a"] * 5), at, pairs, toy.name))
    assert np.array_equal(read_correct(tmp_path)["m"]["a"], pairs)


def samples(noise: float, n: int = 60) -> np.ndarray:
    """Predictions of labels 0 and 1, the worse the more noise."""
    target = np.arange(n) % 2
    return np.stack([target + noise * RNG.standard_normal(n) > 0.5, target], axis=1).astype(float)


def test_a_comparison_ranks_and_tests_by_the_metric(toy, tmp_path):
    kept = {"good": {"a": samples(0.1)}, "bad": {"a": samples(2.0)}}
    kept["twin"] = {"a": kept["good"]["a"].copy()}
    rows = [Row(name, "static", val={f"{toy.name}/mean": 0.5}, trials=1) for name in kept]
    made = compare(Header("s", "h", "val", metric=f"{toy.name}/mean", tasks=("a",)), rows, kept)
    assert made.headline == f"{toy.name}/mean"
    assert made.rows[0].method == "bad"
    assert made.score(made.rows[-1]) == pytest.approx(toy.score(kept["good"]["a"]))
    low, high = made.rows[0].test_ci95[made.headline]
    assert low < made.score(made.rows[0]) < high
    pairs = {frozenset((pair.first, pair.second)): pair for pair in made.pairs}
    apart, equal = pairs[frozenset(("good", "bad"))], pairs[frozenset(("good", "twin"))]
    assert (apart.p, apart.b, apart.c) == (pytest.approx(2 / 2001), 0, 0)
    assert abs(apart.difference) == pytest.approx(
        toy.score(kept["good"]["a"]) - toy.score(kept["bad"]["a"])
    )
    assert (equal.p, equal.difference) == (1.0, 0.0)
    assert "only" not in matrix(made)["lines"][0][1][0]["title"]
    assert "is best" in verdict(made)[0]
    write(made, tmp_path)
    assert read(tmp_path) == made


def test_pairs_of_counted_samples_have_no_difference_in_the_file():
    kept = {"a": {"t": np.array([True, False])}, "b": {"t": np.array([True, True])}}
    made = compare(Header("s", "", "val"), [Row("a", ""), Row("b", "")], kept)
    assert set(document(made)["pairs"][0]) == {"first", "second", "n", "b", "c", "p", "p_holm"}


def test_a_smaller_score_wins_where_it_is_better(monkeypatch):
    toy = Toy("err", larger_is_better=False)
    monkeypatch.setitem(metrics.METRICS, "err", toy)
    entries = [
        Entry(f"k{at}", "ties", "static", {"at": at}, "done", "select", {"err/mean": value})
        for at, value in enumerate((0.3, 0.1, 0.2))
    ]
    assert winners(entries, "err/mean")[0].params == {"at": 1}
    rows = [Row(name, "", val={"err/mean": value}) for name, value in (("x", 0.3), ("y", 0.1))]
    made = compare(Header("s", "", "val", metric="err/mean"), rows, {})
    assert made.best.method == made.rows[-1].method == "y"


def logits_of(classes: list[int], count: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), count).float()


def test_matthews_and_f1_are_those_of_scikit_learn():
    draw = np.random.default_rng(5)
    for classes in (2, 4):
        guess, labels = draw.integers(classes, size=(2, 60))
        z, targets = logits_of(guess.tolist(), classes), torch.from_numpy(labels)
        expected = sklearn.metrics.matthews_corrcoef(labels, guess)
        assert PAIRED["matthews"](z, targets) == pytest.approx(expected, abs=1e-12)
        if classes == 2:
            assert PAIRED["f1"](z, targets) == sklearn.metrics.f1_score(labels, guess)
    assert PAIRED["matthews"](logits_of([1, 1], 2), torch.tensor([0, 1])) == 0.0
    assert PAIRED["f1"](logits_of([0, 0], 2), torch.tensor([0, 0])) == 0.0


def test_correlations_are_of_the_values_of_classes():
    guess, labels, values = [0, 2, 1, 2, 0], [0, 1, 1, 2, 2], (0.0, 0.5, 4.0)
    z, targets = logits_of(guess, 3), torch.tensor(labels)
    x, y = ([values[at] for at in each] for each in (guess, labels))
    assert paired("pearson", values)(z, targets) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert paired("spearman", values)(z, targets) == pytest.approx(spearmanr(x, y).statistic)
    assert paired("pearson", None)(z, targets) == pytest.approx(np.corrcoef(guess, labels)[0, 1])
    assert np.isnan(PAIRED["spearman"](logits_of([1, 1], 2), torch.tensor([0, 1])))


def test_a_logit_that_is_no_number_leaves_no_score():
    z = torch.tensor([[1.0, 0.0], [torch.nan, 0.0], [0.0, 1.0]])
    for metric in PAIRED.values():
        kept = metric.samples(z, torch.tensor([0, 1, 1]))
        assert np.isnan(kept[1, 0])
        assert np.isnan(metric.score(kept))


def test_each_task_by_its_own_metric(tmp_path):
    z, labels = logits_of([0, 1, 1, 0, 1, 1], 2), torch.tensor([0, 1, 0, 0, 1, 1])
    scores = {"a": score(z, labels), "b": score(z, labels, "matthews")}
    found = Evaluation(scores, 0.0, 0, own=True).metrics()
    assert found["score/a"] == found["acc/a"] == pytest.approx(5 / 6)
    assert found["score/b"] == found["matthews/b"] == found["matthews/mean"]
    assert found["score/mean"] == pytest.approx((found["acc/a"] + found["matthews/b"]) / 2)
    assert "matthews/a" not in found
    kept = Evaluation(scores, 0.0, 0, own=True).samples("score")
    made = compare(
        Header("s", "h", "val", metric="score/mean", tasks=("a", "b")),
        [Row("m", "static"), Row("n", "static")],
        {"m": kept, "n": {**kept, "b": own_samples("matthews", samples(2.0, 6))}},
    )
    assert made.headline == "score/mean"
    row = next(row for row in made.rows if row.method == "m")
    assert row.test["score/mean"] == pytest.approx(found["score/mean"])
    low, high = row.test_ci95["score/a"]
    assert low <= 5 / 6 <= high
    assert made.pairs[0].difference is not None
    write_kept(
        tmp_path / "m.arrow",
        Kept("k", {}, np.array(["b"] * 6), np.arange(6), kept["b"], "score"),
    )
    assert np.array_equal(read_correct(tmp_path)["m"]["b"], kept["b"])


def test_evaluations_of_tasks_without_a_metric_of_their_own_have_no_score():
    z, labels = logits_of([0, 1], 2), torch.tensor([0, 1])
    assert list(Evaluation({"a": score(z, labels)}, 0.0, 0).metrics()) == [
        "acc/a", "acc/mean", "nll/a", "nll/mean"
    ]  # fmt: skip
