"""Exact best interpolation coefficient α of classifiers whose logits are linear in α.

z(α) = A + αB covers WiSE-FT of a linear head, two ensembled models, and Tip-Adapter's α. Each
sample is classified correctly on one interval of α. So the accuracy at α is the number of intervals
that contain it, and sorting the ends of the intervals gives the maximum without a grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.errors import InputError

Linear: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""A [N, C], B [N, C], labels int64 [N]."""

Boundaries: TypeAlias = NDArray[np.float64]
"""Ends of intervals, [M, 2], in an order that distinguishes open from closed ends: (v, 0) lies just
before the number v, and (v, 1) just after it."""

BUDGET = 1 << 19
"""Bytes of one float64 matrix of a chunk, so that a few of them stay in cache."""


@dataclass(frozen=True)
class Plateau:
    """An interval of α with constant accuracy; an infinite end does not belong to it."""

    low: float
    high: float
    low_in: bool
    """Whether `low` belongs to the interval."""
    high_in: bool
    """Whether `high` belongs to the interval."""

    @property
    def width(self) -> float:
        """high − low."""
        return self.high - self.low

    @property
    def middle(self) -> float:
        """Middle of the interval; for an infinite one, twice its low end, but at least 1."""
        if math.isinf(self.high):
            return max(2 * self.low, 1.0)
        return self.low + (self.high - self.low) / 2


@dataclass(frozen=True)
class ExactAlpha:
    """The best accuracy over α, and the intervals where it is reached."""

    accuracy: float
    """The best accuracy; for several tasks, their unweighted mean."""
    low: float
    high: float
    """Ends of the optimal plateau. If there are several, the widest is taken, and the first of
    equally wide ones."""
    middle: float
    """Middle of that plateau, a robust choice of α."""
    count: int
    """Number of correct samples at `middle`, over all tasks."""
    n: int
    """Number of samples of all tasks."""
    counts: Mapping[str, tuple[int, int]]
    """Task -> (correct at `middle`, samples)."""
    plateaus: tuple[Plateau, ...]
    """All plateaus with the best accuracy, in order."""
    curve: tuple[float, ...] = ()
    """Accuracy at each α of the argument `at`."""


def exact_alpha(
    constant: Tensor,
    slope: Tensor,
    labels: Tensor,
    *,
    low: float = 0.0,
    high: float = 1.0,
    at: Sequence[float] = (),
) -> ExactAlpha:
    """The α in [low, high] at which argmax(A + αB) is correct most often.

    Sample n with label y is correct at α if A_y − A_k + α(B_y − B_k) > 0 for all k < y and ≥ 0 for
    all k > y, because the first of equal logits is the prediction, as for `torch.argmax`. This is
    an interval of α. Cost: O(NC + N log N). Differences and their quotients are made in float64. A
    plateau no wider than rounding may be lost if logits are later computed in float32; `middle` of
    a wide plateau is safe.

    Args:
        constant: A [N, C], finite.
        slope: B [N, C], finite.
        labels: int64 [N], 0 to C − 1.
        low: smallest α, finite. Default 0.
        high: largest α; may be infinite. Default 1.
        at: values of α in [low, high] at which the accuracy is returned as well (`curve`).

    Raises:
        InputError: wrong shapes, no samples, a label outside, NaN or Inf, high < low, an α of `at`
            outside.

    Source: ours.

    >>> first, second = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[-4.0, 0.0]] * 2)
    >>> best = exact_alpha(first, second, torch.tensor([0, 1]))  # right for α ≤ 1/2, and always
    >>> best.accuracy, best.low, best.high, best.middle
    (1.0, 0.0, 0.5, 0.25)
    """
    return exact_alpha_tasks({"": (constant, slope, labels)}, low=low, high=high, at=at)


def exact_alpha_tasks(
    tasks: Mapping[str, Linear], *, low: float = 0.0, high: float = 1.0, at: Sequence[float] = ()
) -> ExactAlpha:
    """The α in [low, high] with the largest mean accuracy over tasks (unweighted).

    Args:
        tasks: task -> (A, B, labels), as for `exact_alpha`; C may differ between tasks.
        low: smallest α, finite. Default 0.
        high: largest α; may be infinite. Default 1.
        at: as for `exact_alpha`.

    Raises:
        InputError: as `exact_alpha`, with the task's name; no tasks.
    """
    if not tasks:
        raise InputError("no tasks: no accuracy to maximise")
    if not (math.isfinite(low) and low <= high):
        raise InputError(f"low, high: {low}, {high}; a finite low, not above high, needed")
    for alpha in at:
        if not low <= alpha <= high or math.isinf(alpha):
            raise InputError(f"at: {alpha}; a finite number from {low} to {high} needed")
    last = (high, 0.0 if math.isinf(high) else 1.0)  # infinity itself is no α
    ends = [np.array([(low, 0.0), last])]
    changes = [np.zeros((2, len(tasks)), dtype=np.int64)]
    for t, (name, linear) in enumerate(tasks.items()):
        starts, stops = clipped(*winning(name, *linear), (low, 0.0), last)
        ends += [starts, stops]
        for cuts, change in ((starts, 1), (stops, -1)):
            column = np.zeros((len(cuts), len(tasks)), dtype=np.int64)
            column[:, t] = change
            changes.append(column)
    sizes = np.array([len(linear[2]) for linear in tasks.values()])
    return optimum(np.concatenate(ends), np.concatenate(changes), sizes, list(tasks), at)


def segment(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of the interpolated logits (1 − α)·first + α·second, in float64.

    For linear classifiers these are the logits of interpolated weights, biases included (WiSE-FT).
    """
    first, second = first.double(), second.double()
    return first, second - first


def winning(
    name: str, constant: Tensor, slope: Tensor, labels: Tensor
) -> tuple[Boundaries, Boundaries]:
    """Ends [N, 2] of the interval where each sample is correct; start ≥ stop if it never is."""
    check(name, constant, slope, labels)
    n, classes = constant.shape
    rows = max(1, BUDGET // (8 * classes))
    parts = [
        bounds(constant[at : at + rows], slope[at : at + rows], labels[at : at + rows])
        for at in range(0, n, rows)
    ]
    starts, stops = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    return starts, stops


def bounds(constant: Tensor, slope: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`winning` for a chunk: d + αe > 0, or ≥ 0, with d = A_y − A_k and e = B_y − B_k."""
    a, b, y = constant.double(), slope.double(), labels.long().unsqueeze(1)
    d, e = a.gather(1, y) - a, b.gather(1, y) - b
    strict = torch.arange(a.shape[1], device=a.device) < y
    at = -d / e  # the α of equal logits; where e = 0 it is not read
    lows, highs = at.where(e > 0, -math.inf), at.where(e < 0, math.inf)
    low, high = lows.amax(1), highs.amin(1)
    open_low = ((lows == low.unsqueeze(1)) & strict).any(1) & low.isfinite()
    open_high = ((highs == high.unsqueeze(1)) & strict).any(1) & high.isfinite()
    beaten = torch.zeros_like(open_low)
    flat = e == 0
    if int(flat.sum()) > len(y):  # more than the label against itself
        beaten = (flat & ((d < 0) | ((d == 0) & strict))).any(1)
    low = low.masked_fill(beaten, math.inf)  # empty: begins where nothing can end
    return torch.stack([low, open_low.double()], 1), torch.stack([high, (~open_high).double()], 1)


def check(name: str, constant: Tensor, slope: Tensor, labels: Tensor) -> None:
    """Check A, B and labels of one task.

    Raises:
        InputError: wrong shapes, no samples, NaN or Inf, a label outside.
    """
    owner = f"task {name!r}: " if name else ""
    if constant.ndim != 2 or constant.shape != slope.shape or labels.shape != constant.shape[:1]:
        shapes = f"{list(constant.shape)}, {list(slope.shape)} and {list(labels.shape)}"
        raise InputError(f"{owner}A, B and labels: shapes {shapes}; [N, C], [N, C] and [N] needed")
    if not constant.numel():
        raise InputError(f"{owner}A: shape {list(constant.shape)}; a sample and a class needed")
    for field, tensor in (("A", constant), ("B", slope)):
        if not bool(tensor.isfinite().all()):
            row = int((~tensor.isfinite()).any(1).nonzero()[0])
            raise InputError(f"{owner}{field}: row {row} is not finite")
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= constant.shape[1]:
        outside = least if least < 0 else most
        raise InputError(f"{owner}labels: {outside}; 0 to {constant.shape[1] - 1} allowed")


def clipped(
    starts: Boundaries, stops: Boundaries, first: tuple[float, float], last: tuple[float, float]
) -> tuple[Boundaries, Boundaries]:
    """Clip intervals to the range from `first` to `last`, and drop empty ones."""
    starts = np.where(before(starts, np.array(first))[:, None], first, starts)
    stops = np.where(before(np.array(last), stops)[:, None], last, stops)
    kept = before(starts, stops)
    return starts[kept], stops[kept]


def before(a: Boundaries, b: Boundaries) -> NDArray[np.bool_]:
    """Whether boundary a lies before boundary b, element by element."""
    earlier: NDArray[np.bool_] = (a[..., 0] < b[..., 0]) | (
        (a[..., 0] == b[..., 0]) & (a[..., 1] < b[..., 1])
    )
    return earlier


def optimum(
    ends: Boundaries,
    changes: NDArray[np.int64],
    sizes: NDArray[np.int64],
    names: list[str],
    at: Sequence[float] = (),
) -> ExactAlpha:
    """Find the maximum by a sweep over the sorted ends of all intervals.

    Args:
        ends: boundaries [M, 2] at which counts change.
        changes: int64 [M, T], the change of each task's number of correct samples.
        sizes: int64 [T], samples of each task.
        names: of the tasks.
        at: values of α for `curve`.
    """
    order = np.lexsort((ends[:, 1], ends[:, 0]))
    ends = ends[order] + 0.0  # no −0
    counts = np.cumsum(changes[order], axis=0)
    last = np.append(np.any(ends[1:] != ends[:-1], axis=1), True)  # of the cuts at one place
    ends, counts = ends[last], counts[last][:-1]  # counts[i] holds between ends[i] and ends[i + 1]
    means = (counts / sizes).mean(1)
    top = means >= means.max() * (1 - 1e-12)  # equal means of several tasks may round differently
    spans = list(runs(top))
    plateaus = tuple(plateau(ends[i], ends[j]) for i, j in spans)
    widest, (i, j) = max(zip(plateaus, spans, strict=True), key=lambda found: found[0].width)
    # Of several tasks one may gain what another loses: the counts are those around the middle.
    cell = i + int(before(ends[i + 1 : j], np.array((widest.middle, 0.5))).sum())
    right = counts[cell].tolist()
    return ExactAlpha(
        accuracy=float(means[cell]),
        low=widest.low,
        high=widest.high,
        middle=widest.middle,
        count=sum(right),
        n=int(sizes.sum()),
        counts={name: (right[t], int(sizes[t])) for t, name in enumerate(names)},
        plateaus=plateaus,
        curve=tuple(means[cells(ends, at)].tolist()),
    )


def cells(ends: Boundaries, at: Sequence[float]) -> NDArray[np.intp]:
    """For each α, the index i of the cell between `ends[i]` and `ends[i + 1]` that contains it.

    >>> cells(np.array([[0.0, 0], [0.5, 1], [0.7, 0], [1, 1]]), [0.0, 0.5, 0.6, 0.7]).tolist()
    [0, 0, 1, 2]
    """
    values, wanted = ends[:, 0], np.asarray(at, dtype=np.float64)
    first = np.searchsorted(values, wanted)
    # A cut just before α itself is behind it too.
    here = np.minimum(first, len(ends) - 1)
    found: NDArray[np.intp] = first - 1 + ((values[here] == wanted) & (ends[here, 1] == 0))
    return found


def plateau(start: Boundaries, stop: Boundaries) -> Plateau:
    """The interval between two boundaries."""
    (low, after), (high, to) = start.tolist(), stop.tolist()
    return Plateau(low, high, low_in=after == 0, high_in=to == 1)


def runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """(i, j) for each run of true flags i … j − 1."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
