"""Mixtures: by hand, against scipy's densities, and on samples of known distributions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.special import logsumexp
from torch import Tensor

from fusion.errors import InputError
from fusion.methods.routed.mixtures import (
    Mixture,
    dirichlet_concentration,
    expectation_maximisation,
    fit_beta,
    fit_dirichlet,
)

RANDOM = np.random.default_rng(5)
APART = torch.from_numpy(np.concatenate([RANDOM.beta(8, 40, 3000), RANDOM.beta(30, 6, 1000)]))
OVERLAPPING = torch.from_numpy(np.concatenate([RANDOM.beta(4, 6, 2000), RANDOM.beta(7, 3, 2000)]))
ALPHAS = np.array([[20.0, 3, 4, 2], [2, 2, 30, 9], [3, 14, 2, 3]])
SIMPLEX = torch.from_numpy(
    np.concatenate([RANDOM.dirichlet(a, n) for a, n in zip(ALPHAS, (1500, 900, 600), strict=True)])
)


def beta_logpdf(fit: Mixture, values: Tensor) -> NDArray[np.float64]:
    mean, kappa = fit.means[:, 0].numpy(), fit.concentration.numpy()
    parts = zip(kappa * mean, kappa * (1 - mean), strict=True)
    return np.stack([stats.beta.logpdf(values.numpy(), a, b) for a, b in parts], axis=1)


def dirichlet_logpdf(fit: Mixture, values: Tensor) -> NDArray[np.float64]:
    alphas = (fit.concentration[:, None] * fit.means).numpy()
    rows = values.numpy()
    rows = rows / rows.sum(axis=1, keepdims=True)
    return np.stack([stats.dirichlet.logpdf(rows.T, alpha) for alpha in alphas], axis=1)


def posterior(fit: Mixture, densities: NDArray[np.float64]) -> NDArray[np.float64]:
    joint = densities + np.log(fit.weights.numpy())
    return np.asarray(np.exp(joint - logsumexp(joint, axis=1, keepdims=True)))


def test_one_beta_has_the_samples_moments() -> None:
    values = torch.tensor([0.2, 0.3, 0.4, 0.7], dtype=torch.float64)  # mean .4, variance .035
    fit = fit_beta(values, 1)
    assert fit.means.tolist() == [[pytest.approx(0.4)]]
    assert fit.concentration.tolist() == [pytest.approx(0.24 / 0.035 - 1)]
    assert fit.weights.tolist() == [1.0]
    assert fit.assign.tolist() == [0, 0, 0, 0]
    assert fit.assign.dtype == torch.int64


def test_a_betas_variance_is_at_most_a_quarter_of_the_largest() -> None:
    fit = fit_beta(torch.tensor([0.01, 0.99]), 1)
    assert fit.concentration.item() == pytest.approx(3)


def test_one_dirichlet_has_the_median_concentration() -> None:
    values = torch.tensor([[0.5, 0.3, 0.2], [0.7, 0.1, 0.2], [0.6, 0.1, 0.3]], dtype=torch.float64)
    fit = fit_dirichlet(values, 1)
    mean, variance = values.mean(0), values.var(0, correction=0)
    by_coordinate = mean * (1 - mean) / variance - 1
    assert len(set(by_coordinate.round(decimals=3).tolist())) == 3
    torch.testing.assert_close(fit.means, mean[None])
    torch.testing.assert_close(fit.concentration, by_coordinate.median()[None])


def test_even_medians_are_the_middle_of_two() -> None:
    values = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.5, 0.1, 0.1, 0.3], [0.2, 0.2, 0.5, 0.1]])
    mean, variance = values.double().mean(0), values.double().var(0, correction=0)
    wanted = np.median((mean * (1 - mean) / variance - 1).numpy())
    assert fit_dirichlet(values, 1).concentration.item() == pytest.approx(wanted, rel=1e-5)


def test_two_coordinates_are_a_beta() -> None:
    pairs = torch.stack([APART, 1 - APART], dim=1)
    limits = {"restarts": 2, "iterations": 200, "tolerance": 1e-6}
    one: Any = fit_beta(APART, 2, **limits)  # type: ignore[arg-type]
    two: Any = fit_dirichlet(pairs, 2, **limits)  # type: ignore[arg-type]
    torch.testing.assert_close(one.means, two.means[:, :1])
    torch.testing.assert_close(one.concentration, two.concentration)
    assert torch.equal(one.assign, two.assign)


def test_known_betas_are_recovered() -> None:
    fit = fit_beta(APART, 2)
    order = fit.means[:, 0].argsort()
    torch.testing.assert_close(
        fit.means[order, 0], torch.tensor([8 / 48, 30 / 36]).double(), atol=5e-3, rtol=0
    )
    torch.testing.assert_close(
        fit.concentration[order], torch.tensor([48.0, 36.0]).double(), rtol=0.1, atol=0
    )
    torch.testing.assert_close(
        fit.weights[order], torch.tensor([0.75, 0.25]).double(), atol=5e-3, rtol=0
    )


def test_known_dirichlets_are_recovered() -> None:
    fit = fit_dirichlet(SIMPLEX, 3)
    order = [int(fit.means[:, j].argmax()) for j in (0, 2, 1)]
    assert sorted(order) == [0, 1, 2]
    wanted = torch.from_numpy(ALPHAS / ALPHAS.sum(1, keepdims=True))
    torch.testing.assert_close(fit.means[order], wanted, atol=0.01, rtol=0)
    torch.testing.assert_close(
        fit.concentration[order], torch.from_numpy(ALPHAS.sum(1)), rtol=0.12, atol=0
    )
    torch.testing.assert_close(
        fit.weights[order], torch.tensor([0.5, 0.3, 0.2]).double(), atol=0.01, rtol=0
    )
    truth = torch.tensor(order).repeat_interleave(torch.tensor([1500, 900, 600]))
    assert (fit.assign == truth).double().mean() > 0.98


@pytest.mark.parametrize(
    ("fit_it", "logpdf", "values"),
    [(fit_beta, beta_logpdf, OVERLAPPING), (fit_dirichlet, dirichlet_logpdf, SIMPLEX)],
    ids=["beta", "dirichlet"],
)
def test_the_fit_is_a_fixed_point_under_scipys_densities(
    fit_it: Callable[..., Mixture],
    logpdf: Callable[[Mixture, Tensor], NDArray[np.float64]],
    values: Tensor,
) -> None:
    fit = fit_it(values, 2, tolerance=1e-9, iterations=5000, restarts=1)
    densities = logpdf(fit, values)
    joint = densities + np.log(fit.weights.numpy())
    assert fit.log_likelihood == pytest.approx(logsumexp(joint, axis=1).mean())
    assert fit.assign.tolist() == joint.argmax(axis=1).tolist()
    shares = posterior(fit, densities)
    np.testing.assert_allclose(shares.mean(axis=0), fit.weights, atol=1e-4)
    rows = values.numpy() if values.ndim == 2 else values.numpy()[:, None]
    for k, share in enumerate(shares.T):
        mean = np.average(rows, axis=0, weights=share)
        variance = np.average((rows - mean) ** 2, axis=0, weights=share)
        kappa = np.median(mean * (1 - mean) / variance - 1)
        np.testing.assert_allclose(mean, fit.means[k], atol=1e-4)
        assert kappa == pytest.approx(fit.concentration[k].item(), rel=1e-3)


def test_a_representative_is_not_the_mean_of_its_assigned_rows() -> None:
    fit = fit_beta(OVERLAPPING, 2)
    for k in (0, 1):
        hard = OVERLAPPING[fit.assign == k].mean().item()
        assert abs(hard - fit.means[k, 0].item()) > 0.02


def test_the_best_restart_is_kept() -> None:
    single = [fit_beta(APART, 4, seed, restarts=1).log_likelihood for seed in range(7, 11)]
    assert max(single) > min(single)
    assert fit_beta(APART, 4, 7, restarts=4).log_likelihood == max(single)


def test_same_seed_same_bits_and_input_untouched() -> None:
    before = SIMPLEX.clone()
    one, two = fit_dirichlet(SIMPLEX, 4, 3), fit_dirichlet(SIMPLEX, 4, 3)
    assert torch.equal(one.means, two.means)
    assert torch.equal(one.assign, two.assign)
    assert one.log_likelihood == two.log_likelihood
    assert torch.equal(SIMPLEX, before)
    other = fit_dirichlet(SIMPLEX, 4, 4, restarts=1)
    assert not torch.equal(one.means, other.means)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_equal_values_are_one_cluster(value: float) -> None:
    fit = fit_beta(torch.full((5,), value, dtype=torch.float64), 3)
    assert fit.means.tolist() == [[pytest.approx(value, abs=1e-12)]]
    assert fit.assign.tolist() == [0] * 5
    assert all(part.isfinite().all() for part in (fit.weights, fit.concentration))
    assert np.isfinite(fit.log_likelihood)


@pytest.mark.parametrize("row", [[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
def test_equal_rows_are_one_cluster(row: list[float]) -> None:
    fit = fit_dirichlet(torch.tensor([row] * 4, dtype=torch.float64), 3)
    torch.testing.assert_close(fit.means, torch.tensor([row], dtype=torch.float64))
    assert fit.concentration.tolist() == [pytest.approx(1e12)]
    assert np.isfinite(fit.log_likelihood)


@pytest.mark.filterwarnings("error")
def test_fewer_values_than_clusters() -> None:
    values = torch.tensor([0.2, 0.9, 0.2], dtype=torch.float64)
    fit = fit_beta(values, 8)
    assert len(fit.means) == 2
    torch.testing.assert_close(fit.means[fit.assign, 0], values)


@pytest.mark.filterwarnings("error")
def test_a_cluster_that_no_row_answers_for_is_gone() -> None:
    rows = SIMPLEX.numpy()
    shares = np.zeros((len(rows), 2))
    shares[:, 1] = 1
    fit = expectation_maximisation(rows, shares, 50, 1e-6, dirichlet_concentration)
    torch.testing.assert_close(fit.means, SIMPLEX.mean(0, keepdim=True))


def test_corners_of_the_simplex_are_clusters_of_their_own() -> None:
    corners = torch.eye(3, dtype=torch.float64).repeat(4, 1)
    fit = fit_dirichlet(corners, 3)
    torch.testing.assert_close(fit.means[fit.assign], corners)
    assert torch.bincount(fit.assign).tolist() == [4, 4, 4]


def test_a_coordinate_that_is_always_zero_says_nothing() -> None:
    pairs = torch.stack([APART, 1 - APART], dim=1)
    padded = torch.cat([pairs, torch.zeros(len(pairs), 2)], dim=1)
    plain, more = fit_dirichlet(pairs, 1), fit_dirichlet(padded, 1)
    torch.testing.assert_close(plain.concentration, more.concentration)


def test_float32_rows_that_sum_to_one_but_for_rounding() -> None:
    fit = fit_dirichlet(SIMPLEX.float(), 3)
    torch.testing.assert_close(fit.means.sum(1), torch.ones(3).double(), atol=1e-14, rtol=0)
    torch.testing.assert_close(fit.weights.sum(), torch.tensor(1.0).double())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_beta(torch.ones(2, 2), 1), "values: shape [2, 2]; [N] needed"),
        (lambda: fit_beta(torch.ones(0), 1), "values: no rows; at least one needed"),
        (lambda: fit_beta(torch.tensor([0.5, 1.25]), 1), "values: 1.25; float in [0, 1] allowed"),
        (lambda: fit_beta(torch.tensor([0.5, torch.nan]), 1), "values: nan; float in [0, 1]"),
        (lambda: fit_beta(torch.ones(2), 0), "clusters: 0; int >= 1 allowed"),
        (lambda: fit_beta(torch.ones(2), 1, restarts=0), "restarts: 0; int >= 1 allowed"),
        (lambda: fit_beta(torch.ones(2), 1, iterations=0), "iterations: 0; int >= 1 allowed"),
        (lambda: fit_dirichlet(torch.ones(2), 1), "values: shape [2]; [N, D] with D >= 2 needed"),
        (lambda: fit_dirichlet(torch.ones(2, 1), 1), "values: shape [2, 1]; [N, D] with D >= 2"),
        (
            lambda: fit_dirichlet(torch.tensor([[0.5, 0.5], [0.5, 0.4]]), 1),
            "values: row 1 sums to 0.9; 1 needed",
        ),
        (lambda: fit_dirichlet(torch.tensor([[-0.5, 1.5]]), 1), "values: -0.5; float in [0, 1]"),
    ],
)
def test_wrong_input_is_one_clear_line(call: Callable[[], Mixture], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        call()
    assert "\n" not in str(error.value)
