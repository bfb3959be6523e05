"""Beta and Dirichlet mixtures by EM with a moment M-step: clusters of mixing coefficients.

Axes: N rows, K clusters, D coordinates of a point on the simplex. A Beta variable x is the
Dirichlet variable (x, 1 − x), so both mixtures share every step but the concentration's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.errors import InputError

Array: TypeAlias = NDArray[np.float64]
Concentration: TypeAlias = Callable[[Array, Array], Array]
"""Function from weighted means [K, D] and variances [K, D] to concentrations κ [K]."""

EPS = float(np.finfo(np.float64).eps)

MIN_CONCENTRATION, MAX_CONCENTRATION = 1e-3, 1e12
"""Limits of a Dirichlet's κ. Equal rows have no variance, so κ would be infinite; beyond 1e12
rounding dominates the log-gammas of the density."""

MIN_VARIATION = 1e-12
"""A coordinate with m(1 − m) at most this is always 0, or always 1, apart from the start's 10ε; it
is ignored in the estimate of κ."""

MIN_CLUSTER_ROWS = 1e-8
"""A cluster with fewer rows than this, summed over responsibilities, is removed."""


@dataclass(frozen=True)
class Mixture:
    """A fitted mixture of K clusters, at most as many as requested."""

    weights: Tensor
    """π [K], float64, sum 1."""
    means: Tensor
    """m [K, D], float64: mean of each cluster; D = 1 for Beta."""
    concentration: Tensor
    """κ [K], float64: the cluster is Dirichlet(κ·m), or Beta(κ·m, κ·(1 − m))."""
    assign: Tensor
    """int64 [N]: cluster with the largest posterior; some clusters may have no row."""
    log_likelihood: float
    """Mean over rows of log Σ_k π_k p_k(row)."""


def fit_beta(
    values: Tensor,
    clusters: int,
    seed: int = 0,
    *,
    restarts: int = 3,
    iterations: int = 1000,
    tolerance: float = 1e-4,
) -> Mixture:
    """Fit a mixture of Beta distributions to `values` [N] by EM.

    E step: exact responsibilities. M step, by moments: m, v the weighted mean and variance, v ←
    min(v, m(1 − m)/4) + 10ε, κ = m(1 − m)/v − 1 (so κ >= 3), Beta(κm, κ(1 − m)). A cluster is
    represented by α/(α + β) = m, the mean weighted by responsibility, not the mean of its assigned
    rows.

    Args:
        values: [N], in [0, 1]. Logarithms of values closer than ε to 0 or 1 are taken at ε.
        clusters: K; where there are fewer distinct values, that many.
        seed: of the k-means starts; restart r draws from seed + r.
        restarts: k-means starts; the fit of largest likelihood is kept. Default 3.
        iterations: at most; default 1000.
        tolerance: stop when the mean log-likelihood changes less; default 1e-4.

    Raises:
        InputError: no values, another shape, values outside [0, 1], counts below 1.

    Source: Oh et al., arXiv:2410.03782 (DaWin); the start (one-hot k-means + 10ε), the M step and
    the defaults are those of its released code.

    >>> fit = fit_beta(torch.tensor([0.1, 0.12, 0.14, 0.7, 0.72, 0.74]), 2)
    >>> sorted(round(mean, 2) for mean in fit.means.flatten().tolist())
    [0.12, 0.72]
    """
    if values.ndim != 1:
        raise InputError(f"values: shape {list(values.shape)}; [N] needed")
    column = checked(values[:, None], clusters, restarts, iterations)
    pairs = np.concatenate([column, 1 - column], axis=1)
    fit = best_fit(pairs, clusters, seed, restarts, iterations, tolerance, beta_concentration)
    return Mixture(fit.weights, fit.means[:, :1], fit.concentration, fit.assign, fit.log_likelihood)


def fit_dirichlet(
    values: Tensor,
    clusters: int,
    seed: int = 0,
    *,
    restarts: int = 5,
    iterations: int = 500,
    tolerance: float = 1e-5,
) -> Mixture:
    """Fit a mixture of Dirichlet distributions to `values` [N, D], rows on the simplex, by EM.

    E step: exact responsibilities. M step, by moments: m the weighted mean, v the weighted variance
    of each coordinate, κ = median_j [m_j(1 − m_j)/v_j − 1] over the coordinates that vary, α = κm.
    A cluster is represented by m.

    Args:
        values: [N, D], D >= 2, entries >= 0, rows that sum to 1 up to 1e-4 (they are divided by
            their sum). Logarithms of entries below ε are taken at ε.
        clusters: K; where there are fewer distinct rows, that many.
        seed: of the k-means starts; restart r draws from seed + r.
        restarts: k-means starts; the fit of largest likelihood is kept. Default 5.
        iterations: at most; default 500.
        tolerance: stop when the mean log-likelihood changes less; default 1e-5.

    Raises:
        InputError: no values, another shape, rows off the simplex, counts below 1.

    Source: Oh et al., arXiv:2410.03782 (DaWin), whose released code has the same start and limits.
    Deviations: the release estimates no concentration (α = m), and fits D clusters whatever number
    is requested.

    >>> rows = [[0.8, 0.1, 0.1], [0.78, 0.12, 0.1], [0.1, 0.2, 0.7], [0.1, 0.22, 0.68]]
    >>> fit = fit_dirichlet(torch.tensor(rows), 2)
    >>> sorted([round(entry, 2) for entry in mean] for mean in fit.means.tolist())
    [[0.1, 0.21, 0.69], [0.79, 0.11, 0.1]]
    """
    if values.ndim != 2 or values.shape[1] < 2:
        raise InputError(f"values: shape {list(values.shape)}; [N, D] with D >= 2 needed")
    rows = checked(values, clusters, restarts, iterations)
    sums = rows.sum(axis=1, keepdims=True)
    if np.abs(sums - 1).max() > 1e-4:
        worst = int(np.abs(sums - 1).argmax())
        raise InputError(f"values: row {worst} sums to {sums[worst, 0]:.6g}; 1 needed")
    rows = rows / sums
    return best_fit(rows, clusters, seed, restarts, iterations, tolerance, dirichlet_concentration)


def checked(values: Tensor, clusters: int, restarts: int, iterations: int) -> Array:
    """The values as float64 on the CPU.

    Raises:
        InputError: no values, values outside [0, 1], counts below 1.
    """
    for name, count in (("clusters", clusters), ("restarts", restarts), ("iterations", iterations)):
        if count < 1:
            raise InputError(f"{name}: {count}; int >= 1 allowed")
    if not len(values):
        raise InputError("values: no rows; at least one needed")
    array: Array = values.detach().to("cpu", torch.float64).numpy()
    inside = (array >= 0) & (array <= 1)  # false for NaN
    if not inside.all():
        raise InputError(f"values: {float(array[~inside][0]):.6g}; float in [0, 1] allowed")
    return array


def best_fit(
    values: Array,
    clusters: int,
    seed: int,
    restarts: int,
    iterations: int,
    tolerance: float,
    concentration: Concentration,
) -> Mixture:
    """The fit with the largest likelihood among the restarts; the first of equals."""
    clusters = min(clusters, len(np.unique(values, axis=0)))
    fits = [
        expectation_maximisation(
            values, start(values, clusters, seed + restart), iterations, tolerance, concentration
        )
        for restart in range(restarts)
    ]
    return max(fits, key=lambda fit: fit.log_likelihood)


def start(values: Array, clusters: int, seed: int) -> Array:
    """Initial responsibilities [N, K]: one-hot k-means (k-means++ seeding) + 10ε."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty cluster: dropped here
        _, labels = scipy.cluster.vq.kmeans2(
            values, clusters, iter=100, minit="++", rng=np.random.default_rng(seed)
        )
    used, cluster = np.unique(labels, return_inverse=True)
    return np.eye(len(used))[cluster] + 10 * EPS


def expectation_maximisation(
    values: Array,
    responsibilities: Array,
    iterations: int,
    tolerance: float,
    concentration: Concentration,
) -> Mixture:
    """EM from responsibilities [N, K]; returns the mixture with the last parameters."""
    logs = np.log(values.clip(EPS))
    before = -np.inf
    for _ in range(iterations):
        responsibilities = responsibilities[:, responsibilities.sum(axis=0) > MIN_CLUSTER_ROWS]
        weights, means, variances = moments(values, responsibilities)
        kappa = concentration(means, variances)
        joint = np.log(weights) + log_density(logs, means, kappa)
        evidence = scipy.special.logsumexp(joint, axis=1, keepdims=True)
        responsibilities = np.exp(joint - evidence)
        likelihood = float(evidence.mean())
        if abs(likelihood - before) < tolerance:
            break
        before = likelihood
    return Mixture(
        weights=torch.from_numpy(weights),
        means=torch.from_numpy(means),
        concentration=torch.from_numpy(kappa),
        assign=torch.from_numpy(joint.argmax(axis=1)),
        log_likelihood=likelihood,
    )


def moments(values: Array, responsibilities: Array) -> tuple[Array, Array, Array]:
    """Weights [K], weighted means [K, D] and variances [K, D] of the clusters."""
    rows = responsibilities.sum(axis=0)
    means = responsibilities.T @ values / rows[:, None]
    centred = [
        shares @ (values - mean) ** 2
        for shares, mean in zip(responsibilities.T, means, strict=True)
    ]
    return rows / rows.sum(), means, np.stack(centred) / rows[:, None]


def log_density(logs: Array, means: Array, kappa: Array) -> Array:
    """log Dirichlet(x | κ_k m_k) [N, K], from log x [N, D].

    A mean of exactly 0 (all its rows on an edge) counts as ε: α = 0 has no density.
    """
    alphas = kappa[:, None] * means.clip(EPS)
    normaliser = scipy.special.gammaln(alphas.sum(axis=1)) - scipy.special.gammaln(alphas).sum(
        axis=1
    )
    return np.asarray(logs @ (alphas - 1).T + normaliser)


def beta_concentration(means: Array, variances: Array) -> Array:
    """Concentration κ of Beta distributions, from the first of the coordinates (x, 1 − x)."""
    mean = means[:, 0]
    kappa = mean * (1 - mean) / (variances[:, 0] + 10 * EPS) - 1
    return np.asarray(kappa.clip(3.0))  # that is, v at most m(1 − m)/4


def dirichlet_concentration(means: Array, variances: Array) -> Array:
    """Concentration κ of Dirichlet distributions: the median of the coordinates' estimates."""
    limit = means * (1 - means)
    varies = limit > MIN_VARIATION
    least = np.maximum(limit, MIN_VARIATION) / MAX_CONCENTRATION  # so that nothing is divided by 0
    kappa = np.where(varies, limit / variances.clip(least) - 1, np.nan)
    kappa[~varies.any(axis=1)] = MAX_CONCENTRATION
    return np.asarray(np.nanmedian(kappa, axis=1).clip(MIN_CONCENTRATION, MAX_CONCENTRATION))
