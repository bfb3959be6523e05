"""Multi-SLERP by hand, against its source's steps in float64, and where there is no direction."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.methods.geodesic.karcher import karcher
from fusion.methods.geodesic.multislerp import multislerp
from tests.fusion.draws import vectors_of
from tests.fusion.methods.geodesic.arcs import models, vectors_of_models


def test_by_hand() -> None:
    found = multislerp(vectors_of([2.0, 0.0], [0.0, 4.0]), weights=[3, 1])["w"].tolist()
    length = 0.75 * 2 + 0.25 * 4
    assert found == pytest.approx([length * 3 / math.sqrt(10), length / math.sqrt(10)])
    equal = multislerp(vectors_of([2.0, 0.0], [0.0, 4.0]))["w"].tolist()
    assert equal == pytest.approx([3 / math.sqrt(2)] * 2)


def textbook(points: Tensor, weights: Tensor) -> Tensor:
    """Points [T, n]: to the tangent space at their mean direction, averaged there, and back."""
    lengths = points.norm(dim=1)
    units = points / (lengths[:, None] + 1e-8)
    mean = weights @ units
    mean = mean / mean.norm()
    tangents = units - (units @ mean)[:, None] * mean
    step = weights @ tangents
    size = step.norm() + 1e-8
    return (weights @ lengths) * (size.cos() * mean + size.sin() / size * step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("of", ["weights", "task_vectors"])
@pytest.mark.parametrize("spread", [1.0, 0.05])
def test_against_its_steps(of: Any, dtype: torch.dtype, spread: float) -> None:
    base, deltas = (each.to(dtype).double() for each in models(4, 8, 3, spread=spread))
    share = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    points = deltas + base if of == "weights" else deltas
    wanted = textbook(points.flatten(1), share).view_as(base)
    wanted = wanted if of == "weights" else wanted + base
    vectors = vectors_of_models(base, deltas, dtype)
    found = multislerp(
        vectors, weights=dict(zip(vectors.tasks, share.tolist(), strict=True)), of=of
    )
    error = (found["w"].double() - wanted).norm() / (wanted - base).norm()
    assert float(error) < (2e-5 if dtype == torch.float32 else 1e-9)


def test_it_is_where_the_karcher_mean_starts() -> None:
    base, deltas = models(3, 7, 5)
    vectors = vectors_of_models(base, deltas, torch.float64)
    started = karcher(vectors, iterations=0)["w"]
    torch.testing.assert_close(multislerp(vectors)["w"], started, rtol=1e-7, atol=1e-7)


def test_no_direction() -> None:
    opposite = vectors_of([1.0, 0.0], [-3.0, 0.0])
    assert multislerp(opposite)["w"].tolist() == pytest.approx([-1, 0])
    three = vectors_of([1.0, 0.0], [-1.0, 0.0], [0.0, 0.0])
    assert multislerp(three)["w"].tolist() == pytest.approx([0, 0])
    assert multislerp(vectors_of([0.0, 0.0], [0.0, 4.0]))["w"].tolist() == pytest.approx([0, 2])
    parallel = vectors_of([1.0, 2.0], [3.0, 6.0])
    assert multislerp(parallel)["w"].tolist() == pytest.approx([2, 4])


def test_weights_that_are_refused() -> None:
    with pytest.raises(InputError, match="multislerp: weights: task 't0': -1; >= 0 needed"):
        multislerp(vectors_of([1.0], [2.0]), weights=[-1, 2])
