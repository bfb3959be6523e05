"""Searches of the logit plane against one configuration at a time."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from fusion.errors import InputError
from fusion.methods.classifiers.cafo import cafo
from fusion.methods.classifiers.grid_search import (
    DRAWN,
    Surface,
    cafo_surface,
    plateau,
    tip_surface,
)
from fusion.methods.classifiers.tip_adapter import affinities, cache_keys, cache_values, tip_logits

N, NK, C, D = 60, 20, 5, 8
DRAW = torch.Generator().manual_seed(0)
Y = torch.randint(C, (N,), generator=DRAW)
SHOTS = torch.arange(C).repeat_interleave(NK // C)
CENTRES = torch.randn(C, D, generator=DRAW).double()
Z = CENTRES[Y] + 1.5 * torch.randn(N, D, generator=DRAW).double()
KEYS = cache_keys((CENTRES[SHOTS] + torch.randn(NK, D, generator=DRAW).double())[None])
NEAR = affinities(Z, KEYS)
VALUES = cache_values(SHOTS, C).double()
ZERO_SHOT = 2 * torch.randn(N, C, generator=DRAW).double() + 2 * VALUES[Y * (NK // C)]
HEADS = torch.stack([ZERO_SHOT + 3 * torch.randn(N, C, generator=DRAW).double() for _ in "abc"])
BETAS, ALPHAS = [0.5, 2.0, 8.0, 30.0], [0.0, 0.3, 1.0, 4.0, 20.0]


def right(logits: torch.Tensor) -> float:
    return int((logits.argmax(1) == Y).sum()) / N


def test_grid_is_each_point_alone() -> None:
    found = tip_surface(ZERO_SHOT, NEAR, VALUES, Y, BETAS, alphas=ALPHAS)
    for i, beta in enumerate(BETAS):
        for j, alpha in enumerate(ALPHAS):
            wanted = right(tip_logits(ZERO_SHOT, NEAR, VALUES, alpha=alpha, beta=beta))
            assert found.grid[i, j].item() == wanted
    assert found.grid[:, 0].tolist() == [right(ZERO_SHOT)] * len(BETAS)
    best = found.best
    assert best.accuracy == found.grid.max()
    assert best.accuracy > right(ZERO_SHOT)
    assert right(tip_logits(ZERO_SHOT, NEAR, VALUES, alpha=best.alpha, beta=best.value)) == (
        best.accuracy
    )


def test_exact_alpha_is_at_least_any_grid_and_is_reached() -> None:
    fine = [0.01 * j for j in range(3000)]
    grid = tip_surface(ZERO_SHOT, NEAR, VALUES, Y, BETAS, alphas=fine)
    exact = tip_surface(ZERO_SHOT, NEAR, VALUES, Y, BETAS)
    assert bool((exact.accuracy >= grid.accuracy).all())
    for row, beta in enumerate(BETAS):
        low, high, alpha = (float(c[row]) for c in (exact.low, exact.high, exact.alpha))
        assert low <= alpha <= high
        logits = tip_logits(ZERO_SHOT, NEAR, VALUES, alpha=alpha, beta=beta)
        assert right(logits) == float(exact.accuracy[row])


def test_an_exact_search_looks_accuracies_up_for_its_picture() -> None:
    found = tip_surface(ZERO_SHOT, NEAR, VALUES, Y, BETAS)
    assert found.alphas.tolist() == list(DRAWN)
    grid = tip_surface(ZERO_SHOT, NEAR, VALUES, Y, BETAS, alphas=DRAWN)
    assert torch.equal(found.grid, grid.grid)
    assert len(found.grid.unique()) > 5


def test_exact_alpha_keeps_its_bounds() -> None:
    found = tip_surface(ZERO_SHOT, NEAR, VALUES, Y, BETAS, low=0.2, high=0.4)
    assert found.alphas[[0, -1]].tolist() == [0.2, 0.4]
    assert len(found.alphas) == 5  # three of DRAWN's between
    assert bool((found.low >= 0.2).all())
    assert bool((found.high <= 0.4).all())


def test_one_shot_a_class_that_is_always_nearest_leaves_alpha_without_end() -> None:
    labels = torch.arange(C)
    near = torch.eye(C).double()
    zero_shot = torch.roll(near, 1, 1)  # always wrong alone
    best = tip_surface(zero_shot, near, near, labels, [5.0]).best
    assert best.accuracy == 1.0
    assert best.high == math.inf
    assert best.low == pytest.approx(1 / (1 - math.exp(-5)))
    assert math.isfinite(best.alpha)
    assert best.alpha > best.low


@pytest.mark.parametrize("budget", [1, 1000, 10**9])
def test_chunks_change_nothing(budget: int) -> None:
    whole = tip_surface(ZERO_SHOT, NEAR, VALUES, Y, BETAS, alphas=ALPHAS)
    parts = tip_surface(ZERO_SHOT, NEAR, VALUES, Y, BETAS, alphas=ALPHAS, budget_bytes=budget)
    assert whole.grid is not None
    assert parts.grid is not None
    assert torch.equal(whole.grid, parts.grid)


@pytest.mark.parametrize("options", [{}, {"compat": "cafo"}, {"normalisation": "l2"}])
def test_cafo_grid_is_each_point_alone(options: dict[str, Any]) -> None:
    temperatures = [0.0, 0.1, 1.0, math.inf]
    found = cafo_surface(ZERO_SHOT, HEADS, Y, temperatures, alphas=ALPHAS, **options)
    assert found.grid is not None
    for i, temperature in enumerate(temperatures):
        for j, alpha in enumerate(ALPHAS):
            fused = cafo(ZERO_SHOT, HEADS, alpha=alpha, temperature=temperature, **options)
            assert found.grid[i, j].item() == right(fused)
    exact = cafo_surface(ZERO_SHOT, HEADS, Y, temperatures, **options)
    assert bool((exact.accuracy >= found.accuracy).all())


def surface(name: Any, values: list[float], accuracy: list[float]) -> Surface:
    columns = [torch.tensor(c, dtype=torch.float64) for c in (values, accuracy)]
    ends = torch.arange(len(values), dtype=torch.float64)
    return Surface(name, *columns, ends, ends + 2, ends + 1, ends[:1] + 1, columns[1][:, None])


def test_of_equal_values_the_smoothest_is_taken() -> None:
    accuracy = [0.5, 0.9, 0.9, 0.8]
    assert surface("beta", [1, 4, 2, 8], accuracy).best.value == 2
    assert surface("temperature", [1, 4, 2, 8], accuracy).best.value == 4
    best = surface("beta", [1, 4, 2, 8], accuracy).best
    assert (best.low, best.alpha, best.high, best.accuracy) == (2, 3, 4, 0.9)


@pytest.mark.parametrize(
    ("accuracy", "alphas", "wanted"),
    [
        ([0.9], [3.0], (0.9, 3.0, 3.0, 3.0)),
        ([0.9, 0.1, 0.9, 0.9], [0, 1, 2, 3], (0.9, 2, 3, 2)),
        ([0.9, 0.9, 0.1, 0.9, 0.9], [0, 5, 6, 7, 8], (0.9, 0, 5, 0)),
        ([0.9, 0.1, 0.9], [0, 1, 2], (0.9, 0, 0, 0)),
    ],
)
def test_plateaus_of_a_grid(accuracy: list[float], alphas: list[float], wanted: Any) -> None:
    assert plateau(accuracy, alphas) == wanted


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"betas": []}, "betas: none given; 1 or more needed"),
        ({"betas": [1.0, -2.0]}, "betas: -2.0; a finite number, 0 or more, allowed"),
        ({"betas": [math.inf]}, "betas: inf; a finite number, 0 or more, allowed"),
        ({"betas": [math.nan]}, "betas: nan; a finite number, 0 or more, allowed"),
        ({"alphas": [0.0, 2.0, 1.0]}, "alphas: 1 after 2; ascending values needed"),
        ({"alphas": [-1.0]}, "alphas: -1.0; a finite number, 0 or more, allowed"),
        ({"labels": Y + 1}, None),
        ({"labels": Y[1:]}, "labels: 59 for 60 rows; one a row needed"),
        ({"affinity": NEAR[1:]}, "affinity: 59 rows; 60 needed"),
        ({"values": VALUES[:, 1:]}, "values: 4 columns; 5 needed"),
        ({"affinity": NEAR / 0}, "affinity: row 0: NaN or infinity; finite numbers needed"),
    ],
)
def test_wrong_input_is_refused(changed: dict[str, Any], message: str | None) -> None:
    if message is None:
        row = int((Y == C - 1).nonzero()[0])
        message = f"labels: row {row}: class {C}; 0 to {C - 1} allowed"
    given: dict[str, Any] = {
        "zero_shot_logits": ZERO_SHOT,
        "affinity": NEAR,
        "values": VALUES,
        "labels": Y,
        "betas": BETAS,
        **changed,
    }
    with pytest.raises(InputError, match="^" + re.escape(message) + "$"):
        tip_surface(**given)
