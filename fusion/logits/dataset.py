"""Labelled features of one split, and checks of feature matrices and labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.logits.cosine_head import normalized
from fusion.task_vectors.task_vectors import accumulator


@dataclass(frozen=True, eq=False)
class Labelled:
    """Features and labels of N rows of one split.

    Raises:
        InputError: no rows, wrong shapes or dtypes, NaN or infinity, a negative label.
    """

    features: Tensor
    """[N, D], floating point, not normalised."""
    labels: Tensor
    """int64 [N]."""
    split: str = "rows"
    """Name of the split for messages, such as `fit` or `select`."""

    def __post_init__(self) -> None:
        check_matrix(f"{self.split}: features", self.features)
        check_labels(f"{self.split}: labels", self.labels, len(self.features))

    def __len__(self) -> int:
        return len(self.labels)


def check_different_rows(fit: Labelled, select: Labelled) -> None:
    """Check that a selection split has other rows than the training split.

    They count as the same if they are one object, if features share memory (overlapping slices of
    one tensor), or if features and labels are equal.

    Raises:
        InputError: they are the same rows.
    """
    if fit is select or shared(fit.features, select.features) or equal(fit, select):
        raise InputError(
            f"{select.split}: rows that {fit.split} has too; choosing on what was learned from"
            " is not allowed, other rows needed"
        )


def shared(a: Tensor, b: Tensor) -> bool:
    """Whether a row of one matrix has the same memory address as a row of the other."""
    return a.device == b.device and bool(torch.isin(starts(a), starts(b)).any())


def starts(matrix: Tensor) -> Tensor:
    """Memory address of each row: int64 [N]."""
    return matrix.data_ptr() + torch.arange(len(matrix)) * matrix.stride(0) * matrix.element_size()


def equal(a: Labelled, b: Labelled) -> bool:
    """Whether two splits hold the same features and labels in the same order."""
    same = a.features.shape == b.features.shape and a.features.device == b.features.device
    return same and torch.equal(a.features, b.features) and torch.equal(a.labels, b.labels)


def check_matrix(
    name: str, tensor: Tensor, *, rows: int | None = None, width: int | None = None
) -> None:
    """Check that a tensor is a finite floating-point matrix [rows, width].

    Args:
        name: of the tensor, for messages.
        tensor: the tensor.
        rows: required number of rows; None (default): any but zero.
        width: required number of columns; None (default): any but zero.

    Raises:
        InputError: another shape or dtype, no rows, NaN or infinity (the first such row is named).
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
    """Check that labels are int64 [rows] with class numbers 0 … classes − 1.

    Args:
        name: of the labels, for messages.
        labels: the labels.
        rows: required number of labels.
        classes: number of classes; None (default): no upper limit.

    Raises:
        InputError: another shape or dtype, a label outside (its row is named).
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


def unit_rows(name: str, features: Tensor) -> Tensor:
    """Features [N, D] divided by their L2 norms, in float32 (float64 if they are).

    Raises:
        InputError: a row is all zeros and cannot be normalised.
    """
    unit = normalized(features.to(accumulator(features.dtype)))
    finite = unit.isfinite().all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise InputError(f"{name}: row {row}: of no length; it cannot be normalised")
    return unit
