"""Soup against ensemble: difference between the losses of averaged weights and averaged logits.

Axes: N samples, C classes. Two nearly equal numbers are subtracted, so logits are at least float32,
sums are made in float64, and all terms use the same samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.errors import InputError
from fusion.logits.calibration import check, chunks, losses


@dataclass(frozen=True)
class SoupGap:
    """Loss of the soup minus loss of the ensemble (cross-entropy of βz), with its approximation."""

    soup: float
    """Mean cross-entropy of the soup, f(θ_α)."""
    ensemble: float
    """Mean cross-entropy of the ensemble, (1 − α)·f(θ₀) + α·f(θ₁)."""
    gap: float
    """soup − ensemble."""
    approximation: float
    """½α(1 − α)·(variance − curvature)."""
    curvature: float
    """d²L_soup/dα², convexity of the loss along the segment; a large value favours the soup."""
    variance: float
    """β²·mean Var_{Y∼softmax(βf(θ_α))}[Δ_Y], Δ = f(θ₁) − f(θ₀); a large value favours the
    ensemble."""
    gap_error: float
    """Bootstrap standard error of `gap`, paired over samples."""
    approximation_error: float
    """Bootstrap standard error of `approximation`; NaN if only the mean of the second derivative is
    known."""


def soup_gap(
    logits0: Tensor,
    logits1: Tensor,
    logits_mid: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    beta: float,
    second: Tensor | float,
    samples: int = 1000,
    seed: int = 0,
) -> SoupGap:
    """Measure and approximate the difference between soup loss and ensemble loss.

    L_soup − L_ens ≈ ½α(1−α)·{−d²L_soup/dα² + β²·E_x Var_{Y∼softmax(βf(x;θ_α))}[Δ_Y(x)]}.
    Third-order terms are neglected: it is exact for linear models (0) and at α = 0 and 1, and
    inaccurate if fine-tuning moved far (large learning rates).

    Args:
        logits0: [N, C] of θ₀, float32 or float64.
        logits1: [N, C] of θ₁, on the same samples.
        logits_mid: [N, C] of θ_α = (1 − α)θ₀ + αθ₁.
        labels: [N].
        alpha: in [0, 1].
        beta: inverse temperature, of soup and ensemble; from `calibrated_beta` on other samples.
        second: d²ℓ/dα² of the cross-entropy of βf(θ_α): [N], or its mean.
        samples: bootstrap samples. Default 1000; 0: no standard errors (NaN).
        seed: of the bootstrap.

    Raises:
        InputError: shapes that do not fit, half precision, NaN or Inf, labels out of range.

    Source: Wortsman et al. 2022, arXiv:2203.05482, §4 and App. K.
    """
    check(labels, logits0=logits0, logits1=logits1, logits_mid=logits_mid)
    if not 0 <= alpha <= 1 or not beta > 0:
        raise InputError(f"alpha: {alpha!r}, beta: {beta!r}; alpha in [0, 1], beta > 0 needed")
    bend = torch.as_tensor(second, dtype=torch.float64).detach().cpu()
    if bend.shape not in ((), labels.shape) or not bool(bend.isfinite().all()):
        raise InputError(f"second: shape {list(bend.shape)}; a finite number, or one a sample")
    soup = losses(logits_mid, labels, beta)
    blend = torch.cat(
        [
            losses((1 - alpha) * a.double() + alpha * b.double(), y, beta)
            for a, b, y in chunks(logits0, logits1, labels)
        ]
    )
    variance = beta**2 * logit_variance(logits_mid, logits1, logits0, beta)
    approximation = 0.5 * alpha * (1 - alpha) * (variance - bend)
    columns = torch.stack([soup - blend, approximation], dim=1).numpy()
    errors = bootstrap_errors(columns, samples=samples, seed=seed)
    return SoupGap(
        soup=float(soup.mean()),
        ensemble=float(blend.mean()),
        gap=float(columns[:, 0].mean()),
        approximation=float(columns[:, 1].mean()),
        curvature=float(bend.mean()),
        variance=float(variance.mean()),
        gap_error=float(errors[0]),
        approximation_error=float(errors[1]) if bend.ndim else math.nan,
    )


def logit_variance(logits: Tensor, upper: Tensor, lower: Tensor, beta: float) -> Tensor:
    """Variance Var_{Y∼softmax(βz)}[Δ_Y] of Δ = upper − lower for each sample: float64 [N].

    Computed as Σ_c p_c(Δ_c − Σ p Δ)², which cannot be negative. A constant added to Δ has no
    effect.
    """
    parts = []
    for z, high, low in chunks(logits, upper, lower):
        p = (beta * z.double()).softmax(-1)
        delta = high.double() - low.double()
        mean = (p * delta).sum(-1, keepdim=True)
        parts.append((p * (delta - mean).square()).sum(-1))
    return torch.cat(parts).detach().cpu()


def second_difference(minus: Tensor, middle: Tensor, plus: Tensor, step: float) -> Tensor:
    """Second difference (ℓ(α − ε) − 2ℓ(α) + ℓ(α + ε))/ε² in float64, of losses [N] or their means.

    The error is O(ε²) times the fourth derivative, plus the rounding of the losses divided by ε²; ε
    of 0.02 to 0.1 is suitable for float32 logits.

    Raises:
        InputError: a step that is not positive.

    >>> float(second_difference(torch.tensor(4.0), torch.tensor(1.0), torch.tensor(0.0), 1.0))
    2.0
    """
    if not step > 0:
        raise InputError(f"step: {step!r}; float > 0 allowed")
    return (minus.double() - 2 * middle.double() + plus.double()) / step**2


def bootstrap_errors(
    values: NDArray[np.float64], *, samples: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Bootstrap standard errors [K] of column means of [N, K], rows resampled together (paired).

    NaN if there are fewer than two bootstrap samples.
    """
    if samples < 2:
        return np.full(values.shape[1], np.nan)
    rng = np.random.default_rng(seed)
    count = len(values)
    means = np.empty((samples, values.shape[1]))
    for row in means:
        drawn = np.bincount(rng.integers(count, size=count), minlength=count)
        row[:] = drawn @ values / count
    return np.asarray(means.std(axis=0, ddof=1))
