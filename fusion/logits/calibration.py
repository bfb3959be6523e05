"""Temperature scaling: cross-entropy of βz, and the β that minimises it on held-out labels.

Axes: N samples, C classes. Logits are float32 or float64; sums are made in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import scipy
import torch
from torch import Tensor

from fusion.errors import InputError

CHUNK = 4096
"""Samples converted to float64 at a time: 32 MiB for 1000 classes."""


def calibrated_beta(
    logits: Tensor, labels: Tensor, *, low: float = 1e-2, high: float = 1e2
) -> float:
    """Inverse temperature β in [low, high] that minimises the mean cross-entropy of βz.

    The loss is convex in β. It is minimised by bounded Brent search on log β, in float64. If no
    sample is misclassified, there is no minimum and the result is a bound.

    Args:
        logits: z [N, C], of a split that is used for nothing else.
        labels: int64 [N].
        low: smallest β. Default 1e-2.
        high: largest β. Default 1e2.

    Raises:
        InputError: wrong shapes or dtypes, NaN or Inf, a label out of range; bounds that are not 0
            < low < high.

    Source: Guo et al. 2017, arXiv:1706.04599 (temperature scaling; β = 1/T).
    """
    check(labels, logits=logits)
    if not 0 < low < high:
        raise InputError(f"beta: from {low!r} to {high!r}; 0 < low < high needed")

    def loss(log_beta: float) -> float:
        return float(losses(logits, labels, math.exp(log_beta)).mean())

    bounds = (math.log(low), math.log(high))
    found = float(
        scipy.optimize.minimize_scalar(
            loss, bounds=bounds, method="bounded", options={"xatol": 1e-8}
        ).x
    )
    return math.exp(min((*bounds, found), key=loss))  # the search itself never tries a bound


def losses(logits: Tensor, labels: Tensor, beta: float = 1.0) -> Tensor:
    """Cross-entropy of βz for each sample: float64 [N] on the CPU."""
    parts = [
        torch.nn.functional.cross_entropy(beta * z.double(), y, reduction="none")
        for z, y in chunks(logits, labels)
    ]
    return torch.cat(parts).detach().cpu()


def check(labels: Tensor, **logits: Tensor) -> None:
    """Check logits and labels.

    Raises:
        InputError: wrong shapes, half precision, NaN or Inf, a label out of range.
    """
    shape = next(iter(logits.values())).shape
    for name, z in logits.items():
        if z.ndim != 2 or z.shape != shape or len(z) == 0 or labels.shape != z.shape[:1]:
            raise InputError(
                f"{name}: shape {list(z.shape)} with {list(labels.shape)} labels;"
                " [N, C], the same in all, and [N] needed"
            )
        if z.dtype not in (torch.float32, torch.float64):
            raise InputError(f"{name}: dtype {z.dtype}; float32 or float64 needed")
        if not bool(z.isfinite().all()):
            raise InputError(f"{name}: NaN or Inf among the logits")
    if bool(((labels < 0) | (labels >= shape[1])).any()):
        raise InputError(f"labels: {int(labels.min())} to {int(labels.max())}; 0 to {shape[1] - 1}")


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors along their first axis into chunks of the same rows."""
    for start in range(0, len(tensors[0]), CHUNK):
        yield tuple(tensor[start : start + CHUNK] for tensor in tensors)
