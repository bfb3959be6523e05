"""Labelled features of one split, computed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.logits.cosine_head import normalized
from fusion.task_vectors.task_vectors import accumulator


@dataclass(frozen=True, eq=False)
class Labelled:
    """N rows of one split.

    Raises:
        InputError: no rows, other shapes or dtypes, NaN or infinity, a negative label.
    """

    features: Tensor
    """[N, D], floating point, not normalised."""
    labels: Tensor
    """int64 [N]."""
    split: str = "rows"
    """What they are for, in errors: `fit`, `select`."""

    def __post_init__(self) -> None:
        check_matrix(f"{self.split}: features", self.features)
        check_labels(f"{self.split}: labels", self.labels, len(self.features))

    def __len__(self) -> int:
        return len(self.labels)


def apart(fit: Labelled, select: Labelled) -> None:
    """Refuse to choose on the very rows that were learned from.

    They are the same where the objects are, where features share memory (overlapping slices of
    one tensor), or where features and labels are equal.

    Raises:
        InputError: they are the same rows.
    """
    if fit is select or shared(fit.features, select.features) or equal(fit, select):
        raise InputError(
            f"{select.split}: rows that {fit.split} has too; choosing on what was learned from"
            " is not allowed, other rows needed"
        )


def shared(a: Tensor, b: Tensor) -> bool:
    """Whether a row of one matrix starts where a row of the other does, in memory."""
    return a.device == b.device and bool(torch.isin(starts(a), starts(b)).any())


def starts(matrix: Tensor) -> Tensor:
    """Address of each row: int64 [N]."""
    return matrix.data_ptr() + torch.arange(len(matrix)) * matrix.stride(0) * matrix.element_size()


def equal(a: Labelled, b: Labelled) -> bool:
    """Whether two splits hold the same features and labels in the same order."""
    same = a.features.shape == b.features.shape and a.features.device == b.features.device
    return same and torch.equal(a.features, b.features) and torch.equal(a.labels, b.labels)


def check_matrix(
    name: str, tensor: Tensor, *, rows: int | None = None, width: int | None = None
) -> None:
    """Refuse what is no finite floating-point matrix [rows, width].

    Raises:
        InputError: another shape or dtype, no rows, NaN or infinity (its first row is named).
    """
    if tensor.ndim != 2 or not tensor.is_floating_point():
        form = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        raise InputError(f"{name}: {form}; a floating-point matrix needed")
    for kind, found, wanted in (
        ("rows", tensor.shape[0], rows),
        ("columns", tensor.shape[1], width),
    ):
        if wanted is not None and found != wanted:
            raise InputError(f"{name}: {found} {kind}; {wanted} needed")
        if found == 0:
            raise InputError(f"{name}: no {kind}; 1 or more needed")
    finite = tensor.isfinite()
    if not bool(finite.all()):
        row = int((~finite).any(1).nonzero()[0, 0])
        raise InputError(f"{name}: row {row}: NaN or infinity; finite numbers needed")


def check_labels(name: str, labels: Tensor, rows: int, classes: int | None = None) -> None:
    """Refuse what are no class numbers of so many rows.

    Raises:
        InputError: another shape or dtype, a label outside 0 … classes − 1 (its row is named).
    """
    if labels.ndim != 1 or labels.dtype != torch.int64:
        form = f"{str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
        raise InputError(f"{name}: {form}; int64 [N] needed")
    if len(labels) != rows:
        raise InputError(f"{name}: {len(labels)} for {rows} rows; one a row needed")
    outside = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
    if bool(outside.any()):
        row = int(outside.nonzero()[0, 0])
        allowed = "0 or more" if classes is None else f"0 to {classes - 1}"
        raise InputError(f"{name}: row {row}: class {int(labels[row])}; {allowed} allowed")


def directions(name: str, features: Tensor) -> Tensor:
    """n(features) [N, D] in float32 (float64 where they are).

    Raises:
        InputError: a row is all zeros: it has no direction.
    """
    unit = normalized(features.to(accumulator(features.dtype)))
    finite = unit.isfinite().all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise InputError(f"{name}: row {row}: of no length; it cannot be normalised")
    return unit
