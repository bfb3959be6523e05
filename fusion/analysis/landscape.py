"""Loss landscape: the plane through three models, and barriers between pairs of models.

A point of the plane is a coding of the task vectors, so no model is built here. Axes: T tasks
(experts or ingredients), K values of one hyper-parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fusion.errors import InputError
from fusion.task_vectors.coding import Coding
from fusion.task_vectors.gram import Gram

ALPHAS = tuple(step / 10 for step in range(1, 10))
"""Values of α at which a barrier is searched: 0.1, 0.2, …, 0.9."""

COLLINEAR = 1e-6
"""Models count as collinear if the orthogonal part is below this fraction of the length."""


@dataclass(frozen=True, eq=False)
class Plane:
    """Plane P(x, y) = θ_o + x·u₁ + y·u₂ through three models, with orthonormal u₁, u₂.

    u₁ = (θ_i − θ_o)/‖θ_i − θ_o‖; u₂ is the part of θ_j − θ_o orthogonal to u₁, normalised.
    """

    tasks: tuple[str, ...]
    """Names of the T axis of the codings."""
    marks: Mapping[str, tuple[float, float]]
    """Name -> (x, y) of the three models, the origin first; `base` is θ₀."""
    origin: Tensor
    """float64 [T]: coefficients of the origin; zeros for the base."""
    axes: Tensor
    """float64 [2, T]: u₁ and u₂ as combinations of task vectors."""

    def to_coding(self, x: float, y: float) -> Coding:
        """Coding [1, T, 1], float64, of the point (x, y), in units of the L2 norm of weights."""
        point = self.origin + torch.tensor([x, y], dtype=torch.float64) @ self.axes
        return point[None, :, None]


def plane(gram: Gram, first: str, second: str, origin: str | None = None) -> Plane:
    """The plane through `origin` (default: the base θ₀) and two models, from inner products.

    With v₁, v₂ the differences from the origin, u₁ = v₁/‖v₁‖, r = v₂ − ⟨v₂, u₁⟩u₁ and u₂ = r/‖r‖,
    the models are at (0, 0), (‖v₁‖, 0) and (⟨v₂, u₁⟩, ‖r‖).

    Args:
        gram: inner products of the task vectors.
        first: name of a task.
        second: name of another task.
        origin: name of a third task; None: the base.

    Raises:
        InputError: an unknown task, or collinear models, which are named.

    Source: Izmailov et al. 2018, arXiv:1803.05407, §3 (plane of three weight vectors).
    """
    unit = torch.eye(len(gram.tasks), dtype=torch.float64)
    start = torch.zeros_like(unit[0]) if origin is None else unit[gram.of(origin)]
    one, two = unit[gram.of(first)] - start, unit[gram.of(second)] - start
    length = float(one @ gram.total @ one) ** 0.5 if first != origin else 0.0
    name = "base" if origin is None else origin
    if length == 0:
        raise InputError(f"plane of {name!r}, {first!r}, {second!r}: {first!r} equals {name!r}")
    u1 = one / length
    along = float(two @ gram.total @ u1)
    rest = two - along * u1
    square, whole = float(rest @ gram.total @ rest), float(two @ gram.total @ two)
    if not square > COLLINEAR**2 * whole:
        raise InputError(
            f"plane of {name!r}, {first!r}, {second!r}: {second!r} lies on the line through"
            f" {name!r} and {first!r}; three models that are not on one line needed"
        )
    height = square**0.5
    marks = {name: (0.0, 0.0), first: (length, 0.0), second: (along, height)}
    return Plane(gram.tasks, marks, start, torch.stack([u1, rest / height]))


def grid(where: Plane, size: int = 21, margin: float = 0.3) -> tuple[list[float], list[float]]:
    """Grid (xs, ys) over a plane: `size` values each, with `margin` of the models' extent around.

    Raises:
        InputError: a size below 2 or a negative margin.
    """
    if size < 2 or margin < 0:
        raise InputError(f"grid: size {size}, margin {margin}; size >= 2 and margin >= 0 needed")
    axes = []
    for values in zip(*where.marks.values(), strict=True):
        low, high = min(values), max(values)
        spare = margin * (high - low)
        axes.append(np.linspace(low - spare, high + spare, size).tolist())
    return axes[0], axes[1]


@dataclass(frozen=True)
class Advantage:
    """Gain in accuracy of the mean of two models."""

    over_mean: float
    """Acc(½θ_i + ½θ_j) − ½(Acc θ_i + Acc θ_j), the published definition."""
    over_best: float
    """Acc(½θ_i + ½θ_j) − max(Acc θ_i, Acc θ_j), a stricter one."""


def advantage(middle: ArrayLike, first: ArrayLike, second: ArrayLike) -> Advantage:
    """Advantage of averaging two models, from accuracies, or from means over data sets.

    Args:
        middle: accuracy of the mean of the two models, or one for each data set.
        first: the same of the first model.
        second: the same of the second model.

    Raises:
        InputError: other data sets, or none.

    Source: Wortsman et al. 2022, arXiv:2203.05482, Fig. 3 (angle against advantage).

    >>> advantage(0.75, 0.5, 0.625)
    Advantage(over_mean=0.1875, over_best=0.125)
    """
    means = [np.asarray(values, dtype=np.float64) for values in (middle, first, second)]
    if len({values.shape for values in means}) > 1 or means[0].size == 0:
        raise InputError("advantage: accuracies of three models on the same data sets needed")
    mid, one, two = (float(values.mean()) for values in means)
    return Advantage(mid - (one + two) / 2, mid - max(one, two))


def barrier(
    losses: Sequence[float], first: float, second: float, alphas: Sequence[float] = ALPHAS
) -> tuple[float, float]:
    """Loss barrier between two models: (height, α) of the largest excess over linear interpolation.

    The excess is L((1−α)θ_i + αθ_j) − (1−α)L(θ_i) − αL(θ_j). The height is 0 if it is nowhere
    positive.

    Args:
        losses: L at each of `alphas`.
        first: L(θ_i).
        second: L(θ_j).
        alphas: in (0, 1). Default 0.1, 0.2, …, 0.9.

    Raises:
        InputError: another number of losses than of α, or NaN.

    >>> barrier([0.5, 2.0], 0.0, 1.0, alphas=[0.25, 0.5])
    (1.5, 0.5)
    """
    if len(losses) != len(alphas) or not len(alphas):
        raise InputError(f"barrier: {len(losses)} losses at {len(alphas)} values of alpha")
    at = np.asarray(alphas, dtype=np.float64)
    excess = np.asarray(losses, dtype=np.float64) - (1 - at) * first - at * second
    if np.isnan(excess).any():
        raise InputError("barrier: a loss is NaN")
    top = int(excess.argmax())
    return max(0.0, float(excess[top])), float(at[top])


def gain_matrix(
    accuracies: ArrayLike, middles: Mapping[tuple[int, int], float]
) -> NDArray[np.float64]:
    """Gains of averaging pairs of models over one hyper-parameter, [K, K].

    gain_ij = Acc(½θ_i + ½θ_j) − max_{i≤m≤j} Acc(θ_m). The diagonal is zero and the matrix is
    symmetric; NaN for pairs that are not in `middles`.

    Args:
        accuracies: [K], ordered by the hyper-parameter; all other hyper-parameters are equal.
        middles: (i, j) with i < j -> accuracy of the mean of the two models.

    Raises:
        InputError: an invalid pair.

    Source: Wortsman et al. 2022, arXiv:2203.05482, App. (one hyper-parameter varied at a time).
    """
    single = np.asarray(accuracies, dtype=np.float64)
    gains = np.full((len(single), len(single)), np.nan)
    np.fill_diagonal(gains, 0.0)
    for (i, j), accuracy in middles.items():
        if not 0 <= i < j < len(single):
            raise InputError(f"pair ({i}, {j}): 0 <= i < j < {len(single)} needed")
        gains[i, j] = gains[j, i] = accuracy - single[i : j + 1].max()
    return gains
