"""The soup-against-ensemble approximation: where it is exact or close, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from fusion.analysis.soup_vs_ensemble import (
    SoupGap,
    bootstrap_errors,
    logit_variance,
    second_difference,
    soup_gap,
)
from fusion.errors import InputError
from fusion.logits.calibration import losses

N, C = 200, 5


def second_by_jvp(function: Callable[[Tensor], Tensor], alpha: float) -> Tensor:
    """d²/dα² of `function` at `alpha`, exact: forward mode over forward mode.

    Args:
        function: α (a float64 scalar tensor) -> losses [N] or their mean, through
            `torch.func.functional_call` of the module with weights (1 − α)θ₀ + αθ₁. Its
            operations must have forward-mode rules; fused attention has none.
        alpha: where.
    """
    point = torch.tensor(alpha, dtype=torch.float64)
    one = torch.ones_like(point)

    def first(at: Tensor) -> Tensor:
        slope: Tensor = jvp(function, (at,), (one,))[1]
        return slope

    bend: Tensor = jvp(first, (point,), (one,))[1]
    return bend.detach()


class Pair:
    """Two networks near one another, and everything along the segment between them."""

    def __init__(self, linear: bool = False, move: float = 0.3) -> None:
        torch.manual_seed(0)
        self.net: nn.Module = nn.Linear(8, C) if linear else hidden()
        self.net.double()
        self.start = {name: p.detach().clone() for name, p in self.net.named_parameters()}
        generator = torch.Generator().manual_seed(1)
        self.step = {
            name: move * torch.randn(p.shape, generator=generator, dtype=torch.float64)
            for name, p in self.start.items()
        }
        self.inputs = torch.randn(N, 8, generator=generator, dtype=torch.float64)
        self.labels = torch.randint(C, (N,), generator=generator)

    def logits(self, alpha: Tensor | float) -> Tensor:
        weights = {name: p + alpha * self.step[name] for name, p in self.start.items()}
        found: Tensor = functional_call(self.net, weights, (self.inputs,))
        return found

    def loss(self, alpha: Tensor | float, beta: float) -> Tensor:
        z = beta * self.logits(alpha)
        return torch.nn.functional.cross_entropy(z, self.labels, reduction="none")

    def gap(self, alpha: float, beta: float = 1.0, swap: bool = False) -> SoupGap:
        second = second_by_jvp(lambda a: self.loss(a, beta), alpha)
        ends = (self.logits(0.0), self.logits(1.0))
        return soup_gap(
            *(ends[::-1] if swap else ends),
            self.logits(alpha),
            self.labels,
            alpha=1 - alpha if swap else alpha,
            beta=beta,
            second=second,
            samples=50,
        )


def hidden() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, C))


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_linear_heads_have_no_gap(alpha: float) -> None:
    found = Pair(linear=True).gap(alpha, beta=1.7)
    assert found.gap == pytest.approx(0, abs=1e-12)
    assert found.approximation == pytest.approx(0, abs=1e-12)
    assert found.variance > 1e-3  # two large numbers that cancel, not two zeros
    assert found.curvature == pytest.approx(found.variance)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_ends_have_no_gap(alpha: float) -> None:
    found = Pair().gap(alpha)
    assert found.gap == pytest.approx(0, abs=1e-12)
    assert found.approximation == 0


def test_swapping_the_ends_changes_nothing() -> None:
    pair = Pair()
    one, other = pair.gap(0.3), pair.gap(0.3, swap=True)
    assert other.approximation == pytest.approx(one.approximation, rel=1e-12)
    assert other.gap == pytest.approx(one.gap, rel=1e-10)


@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_it_approximates_the_gap_of_near_models(alpha: float) -> None:
    # The error is of third order in the step: halve the step, and it falls by some 8 (gap: 4).
    errors = []
    for move in (0.1, 0.05, 0.025):
        found = Pair(move=move).gap(alpha, beta=2.0)
        assert found.approximation == pytest.approx(found.gap, rel=0.3)
        errors.append(abs(found.approximation - found.gap))
    assert errors[1] < errors[0] / 5
    assert errors[2] < errors[1] / 5


def test_jvp_is_the_finite_difference() -> None:
    pair = Pair()
    exact = second_by_jvp(lambda a: pair.loss(a, 1.5), 0.4)
    step = 1e-3
    found = second_difference(
        *(pair.loss(0.4 + shift, 1.5).detach() for shift in (-step, 0.0, step)), step
    )
    assert exact.shape == (N,)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)
    mean = second_by_jvp(lambda a: pair.loss(a, 1.5).mean(), 0.4)
    assert float(mean) == pytest.approx(float(exact.mean()))
    assert float(second_by_jvp(lambda a: a**3, 2.0)) == pytest.approx(12)


def test_variance_by_hand_and_its_invariance() -> None:
    # p = (¼, ¾) and Δ = (0, 2): mean 1.5, variance ¼·2.25 + ¾·0.25 = 0.75.
    z = torch.tensor([[0.0, math.log(3)]]).double()
    delta = torch.tensor([[0.0, 2.0]]).double()
    assert float(logit_variance(z, delta, torch.zeros(1, 2), 1.0)) == pytest.approx(0.75)
    pair = Pair()
    low, high, mid = (pair.logits(a) for a in (0.0, 1.0, 0.5))
    before = logit_variance(mid, high, low, 1.3)
    torch.testing.assert_close(logit_variance(mid, high + 100.0, low, 1.3), before)
    assert bool((logit_variance(mid, low, low, 1.3) == 0).all())


def test_losses_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()
    before = pair.gap(0.5)
    monkeypatch.setattr("fusion.logits.calibration.CHUNK", 7)
    assert pair.gap(0.5) == before
    assert losses(pair.logits(0.5).float(), pair.labels).dtype == torch.float64


def test_standard_errors() -> None:
    values = np.random.default_rng(0).normal(size=(400, 2)) * [1.0, 3.0]
    found = bootstrap_errors(values, samples=2000, seed=1)
    np.testing.assert_allclose(found, values.std(axis=0) / 20, rtol=0.1)
    np.testing.assert_array_equal(found, bootstrap_errors(values, samples=2000, seed=1))
    assert np.isnan(bootstrap_errors(values, samples=0)).all()
    # Paired: soup and ensemble differ by a constant, however much their losses vary.
    gap = values[:, :1] + 0.5 - values[:, :1]
    assert float(bootstrap_errors(gap)[0]) == pytest.approx(0, abs=1e-12)


def test_a_mean_second_derivative_has_no_error_of_its_own() -> None:
    pair = Pair()
    each = pair.gap(0.5)
    args = (pair.logits(0.0), pair.logits(1.0), pair.logits(0.5), pair.labels)
    found = soup_gap(*args, alpha=0.5, beta=1.0, second=each.curvature, samples=50)
    assert found.approximation == pytest.approx(each.approximation)
    assert math.isnan(found.approximation_error)
    assert each.approximation_error > 0
    assert found.gap_error == each.gap_error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits0": torch.zeros(3, 2).half()}, "logits0: dtype torch.float16; float32 or"),
        ({"logits1": torch.zeros(2, 2)}, r"logits1: shape \[2, 2\] with \[3\] labels"),
        ({"logits_mid": torch.full((3, 2), math.nan)}, "logits_mid: NaN or Inf"),
        ({"labels": torch.tensor([0, 1, 2])}, "labels: 0 to 2; 0 to 1"),
        ({"alpha": 1.5}, r"alpha: 1\.5, beta: 1\.0"),
        ({"beta": 0.0}, r"beta: 0\.0; alpha in \[0, 1\], beta > 0"),
        ({"second": torch.zeros(2)}, r"second: shape \[2\]; a finite number, or one a sample"),
        ({"second": math.nan}, "a finite number"),
    ],
)
def test_wrong_input(change: dict[str, object], message: str) -> None:
    fine: dict[str, object] = {
        "logits0": torch.zeros(3, 2),
        "logits1": torch.zeros(3, 2),
        "logits_mid": torch.zeros(3, 2),
        "labels": torch.tensor([0, 1, 0]),
        "alpha": 0.5,
        "beta": 1.0,
        "second": 0.0,
    }
    assert soup_gap(**fine).gap == 0  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        soup_gap(**(fine | change))  # type: ignore[arg-type]


def test_wrong_steps() -> None:
    with pytest.raises(InputError, match="step: 0"):
        second_difference(torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0.0), 0)
