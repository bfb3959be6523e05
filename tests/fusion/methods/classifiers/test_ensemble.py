"""Ensembles against their formulas in float64."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from fusion.errors import InputError
from fusion.logits.cosine_head import logits
from fusion.logits.head import CosineHead, LinearHead
from fusion.methods.classifiers.ensemble import (
    ensemble,
    fitted_temperatures,
    greedy_ensemble,
    shares,
)
from tests.fusion.laws import toy_embeddings

Z, HEAD = toy_embeddings()


@pytest.mark.parametrize("weights", [None, [1, 1, 1], [1, 2, 5], [1.0, 0.0, 0.0]])
def test_formulas(weights: Any) -> None:
    shares = torch.tensor(weights or [1, 1, 1], dtype=torch.float64)
    shares = (shares / shares.sum())[:, None, None]
    each = normalize(Z, dim=-1) @ HEAD.T
    wanted = {
        "logits": (shares * each).sum(0),
        "probabilities": (shares * each.softmax(-1)).sum(0).log(),
        "features": normalize((shares * Z).sum(0), dim=-1) @ HEAD.T,
    }
    for average, expected in wanted.items():
        fused = ensemble(Z, HEAD, weights=weights, average=average)  # type: ignore[arg-type]
        torch.testing.assert_close(fused, expected)


def test_one_expert_alone() -> None:
    alone = logits(Z[1], HEAD)
    for average in ("logits", "features"):
        fused = ensemble(Z, HEAD, weights=[0, 1, 0], average=average)  # type: ignore[arg-type]
        torch.testing.assert_close(fused, alone)
    fused = ensemble(Z, HEAD, weights=[0, 1, 0], average="probabilities")
    torch.testing.assert_close(fused, alone.log_softmax(-1))


def test_who_has_no_weight_has_no_say_even_where_it_is_not_finite() -> None:
    broken = Z.clone()
    broken[2] = torch.nan
    for average in ("logits", "probabilities", "features"):
        fused = ensemble(broken, HEAD, weights=[1, 3, 0], average=average)  # type: ignore[arg-type]
        wanted = ensemble(Z[:2], HEAD, weights=[1, 3], average=average)  # type: ignore[arg-type]
        assert torch.equal(fused, wanted)
        assert bool(ensemble(broken, HEAD, average=average).isnan().all())  # type: ignore[arg-type]


def test_logits_ignore_the_length_of_embeddings_and_features_do_not() -> None:
    longer = Z * torch.tensor([1.0, 10.0, 1.0])[:, None, None]
    torch.testing.assert_close(ensemble(longer, HEAD), ensemble(Z, HEAD))
    assert not torch.allclose(
        ensemble(longer, HEAD, average="features"), ensemble(Z, HEAD, average="features")
    )


def test_probabilities_sum_to_one() -> None:
    fused = ensemble(Z, HEAD * 100, average="probabilities")
    torch.testing.assert_close(fused.exp().sum(-1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("weights", "average", "message"),
    [
        ([1, 2], "logits", "weights: 2 given; one for each of 3 experts needed"),
        ([1, -1, 0], "logits", "weights: they sum to zero"),
        ([1, 2, float("inf")], "logits", "weights: inf; a finite number needed"),
        ([1, 2, "x"], "logits", "weights: 'x'; a finite number needed"),
        ([2, -1, 1], "probabilities", "weights: negative; probabilities need weights >= 0"),
    ],
)
def test_wrong_weights_are_refused(weights: Any, average: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        ensemble(Z, HEAD, weights=weights, average=average)


@pytest.mark.parametrize("weights", [None, [1, 2, 5]])
def test_temperatures_divide_logits(weights: Any) -> None:
    rates = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    part = torch.tensor(weights or [1, 1, 1], dtype=torch.float64)
    part = (part / part.sum())[:, None, None]
    each = normalize(Z, dim=-1) @ HEAD.T / rates[:, None, None]
    fused = ensemble(Z, HEAD, weights=weights, temperatures=rates.tolist())
    torch.testing.assert_close(fused, (part * each).sum(0))
    fused = ensemble(Z, HEAD, weights=weights, temperatures=rates.tolist(), average="probabilities")
    torch.testing.assert_close(fused, (part * each.softmax(-1)).sum(0).log())


def test_temperatures_of_one_are_none() -> None:
    for average in ("logits", "probabilities"):
        plain = ensemble(Z, HEAD, average=average)  # type: ignore[arg-type]
        ones = ensemble(Z, HEAD, average=average, temperatures=[1, 1, 1])  # type: ignore[arg-type]
        assert torch.equal(plain, ones)


@pytest.mark.parametrize(
    ("temperatures", "average", "message"),
    [
        ([1, 2], "logits", "temperatures: 2 given; one for each of 3 experts needed"),
        ([1, 0, 1], "logits", "temperatures: 0.0; a number > 0 needed"),
        ([1, -2, 1], "probabilities", "temperatures: -2.0; a number > 0 needed"),
        ([1, float("nan"), 1], "logits", "temperatures: nan; a finite number needed"),
        ([1, 1, 1], "features", "temperatures: given; features have none"),
    ],
)
def test_wrong_temperatures_are_refused(temperatures: Any, average: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        ensemble(Z, HEAD, temperatures=temperatures, average=average)


def votes(experts: int = 5, n: int = 60, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits [T, N, C] of experts that are right more often than not, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    z = torch.randn(experts, n, classes, generator=generator)
    z[:, torch.arange(n), labels] += torch.linspace(0.6, 1.2, experts)[:, None]
    return z, labels


def nll(logits: Tensor, labels: Tensor) -> float:
    return float(cross_entropy(logits.double(), labels))


def test_fitted_temperatures_are_the_minimum() -> None:
    z, labels = votes()
    scaled = z * torch.tensor([1.0, 3.0, 0.2, 1.0, 1.0])[:, None, None]
    plain, found = fitted_temperatures(z, labels), fitted_temperatures(scaled, labels)
    for factor, before, after in zip([1.0, 3.0, 0.2, 1.0, 1.0], plain, found, strict=True):
        assert after == pytest.approx(factor * before, rel=1e-5)
    for t, temperature in enumerate(found):
        best = nll(scaled[t] / temperature, labels)
        for factor in (0.9, 0.99, 1.01, 1.1):
            assert nll(scaled[t] / (factor * temperature), labels) > best


def test_temperatures_end_where_the_range_does() -> None:
    labels = torch.tensor([0, 1])
    z = torch.stack([torch.eye(2), 1 - torch.eye(2)])  # always right, always wrong
    assert fitted_temperatures(z, labels) == pytest.approx([0.01, 100.0])


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("replacement", [False, True])
def test_greedy_ensemble_by_the_book(metric: Any, average: Any, replacement: bool) -> None:
    z, labels = votes()
    temperatures = [1.0, 0.5, 2.0, 1.0, 0.1]
    each = z.double() / torch.tensor(temperatures, dtype=torch.float64)[:, None, None]

    def score(subset: Sequence[int]) -> float:
        members = each[list(subset)]
        mean = members.mean(0) if average == "logits" else members.softmax(-1).mean(0).log()
        if metric == "nll":
            return -nll(mean, labels)
        return int((mean.argmax(-1) == labels).sum()) / len(labels)

    order = sorted(range(5), key=lambda t: -score([t]))
    taken, best, quiet = [order[0]], score(order[:1]), 0
    for i in [*order[1:], *order * 7] if replacement else order[1:]:
        value = score([*taken, i])
        if (value > best if i in taken else value >= best) and set(taken) != {i}:
            taken, best, quiet = [*taken, i], value, 0
        else:
            quiet += 1
        if quiet == 5:
            break
    found = greedy_ensemble(
        z.double(), labels, metric=metric, average=average, temperatures=temperatures,
        replacement=replacement,
    )  # fmt: skip
    assert found.subset == tuple(taken)
    assert found.best == pytest.approx(best, abs=1e-12)
    assert len(taken) > 1  # else nothing was tested


def test_the_subset_as_weights_of_an_ensemble() -> None:
    embeddings = torch.randn(4, 50, 6, generator=torch.Generator().manual_seed(0))
    head = 10 * normalize(torch.randn(3, 6, generator=torch.Generator().manual_seed(1)), dim=-1)
    labels = torch.randint(0, 3, (50,), generator=torch.Generator().manual_seed(2))
    z = torch.stack([logits(expert, head) for expert in embeddings])
    found = greedy_ensemble(z, labels, metric="nll", replacement=True)
    fused = ensemble(embeddings, head, weights=shares(found.subset, 4))
    assert -nll(fused, labels) == pytest.approx(found.best, abs=1e-5)


def test_a_given_order_asks_only_what_it_names() -> None:
    z, labels = votes(experts=3)
    found = greedy_ensemble(z, labels, order="given", given=[0, 2])
    assert [step.candidate for step in found.steps] == [(0, 2)]
    both = float((z[[0, 2]].sum(0).argmax(-1) == labels).double().mean())
    alone = float((z[0].argmax(-1) == labels).double().mean())
    assert both > alone
    assert (found.subset, found.best) == ((0, 2), both)


def test_copies_and_experts_without_finite_logits() -> None:
    z, labels = votes()
    z = torch.cat([z, z[4:]])  # 5 is a copy of 4, the best
    z[1, 7, 2] = float("nan")
    z[2, 3] = float("inf")
    z[3, 0, 1] = -math.inf  # a class that is ruled out is no fault
    for metric in ("accuracy", "nll"):
        found = greedy_ensemble(z, labels, metric=metric)  # type: ignore[arg-type]
        assert found.failed == (1, 2)
        assert not {1, 2} & set(found.subset)
        assert not {4, 5} <= set(found.subset)
    with pytest.raises(InputError, match="no ingredient has a finite score"):
        greedy_ensemble(z[1:3], labels)


def test_probabilities_do_not_underflow() -> None:
    z = torch.tensor([[[0.0, 200.0]], [[0.0, 300.0]]])  # e^−200 is no float32
    found = greedy_ensemble(z, torch.tensor([0]), metric="nll", average="probabilities")
    assert found.failed == ()
    assert found.best == -200.0
    assert found.steps[0].score == pytest.approx(-200 - math.log(2))  # log ½(e^−200 + e^−300)


@pytest.mark.parametrize(
    ("z", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2), "logits and labels: shapes [2, 3] and [2]; [T, N, C]"),
        (torch.zeros(2, 3, 4), torch.zeros(2), "logits and labels: shapes [2, 3, 4] and [2]"),
        (torch.zeros(2, 2, 4), torch.tensor([0, 4]), "labels: 4; 0 to 3 allowed"),
        (torch.zeros(2, 2, 4), torch.tensor([-1, 0]), "labels: -1; 0 to 3 allowed"),
    ],
)
def test_wrong_logits_are_refused(z: Tensor, labels: Tensor, message: str) -> None:
    for call in (greedy_ensemble, fitted_temperatures):
        with pytest.raises(InputError, match=re.escape(message)):
            call(z, labels)


def test_no_temperature_fits_what_is_not_finite() -> None:
    z, labels = votes()
    z[3, 0, 0] = float("nan")
    with pytest.raises(InputError, match="logits: those of expert 3 are not finite"):
        fitted_temperatures(z, labels)


@pytest.mark.parametrize("average", ["logits", "probabilities", "features"])
def test_heads_other_than_cosine_heads(average: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    weights, shares = [1.0, 2.0, 1.0], torch.tensor([0.25, 0.5, 0.25]).double()
    found = ensemble(z, CosineHead(weight), weights=weights, average=average)
    assert torch.equal(found, ensemble(z, weight, weights=weights, average=average))
    bias = torch.tensor([0.5, -1.0]).double()
    found = ensemble(z, LinearHead(weight, bias), weights=weights, average=average)
    each = z @ weight.T + bias
    wanted = {
        "logits": (shares[:, None, None] * each).sum(0),
        "probabilities": (shares[:, None, None] * each.softmax(-1)).sum(0).log(),
        "features": (shares[:, None, None] * z).sum(0) @ weight.T + bias,
    }[average]
    torch.testing.assert_close(found, wanted)
