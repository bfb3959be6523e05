"""Task vectors in a few large NumPy arrays, which Ray's object store keeps once on each node.

Ray hands arrays to all processes of a node without copying, but pickles a dict of tensors. So base
and task vectors lie flat in one array for each dtype, and tensors are views into it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.task_vectors.lazy import as_stored, widened
from fusion.task_vectors.packed import Packed, Place
from fusion.task_vectors.task_vectors import TaskVectors, accumulator


@dataclass(frozen=True)
class Slot:
    """Position of one tensor in the flat arrays."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    """Of the base, and of every merged model."""
    start: int
    """First element within the base array of its dtype."""
    delta_dtype: torch.dtype | None = None
    """None: a buffer, equal in all models, without task vectors."""
    delta_start: int = 0
    """First element within each row of the delta array of its dtype."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class FlatVectors:
    """Base and task vectors of T experts, flat."""

    tasks: tuple[str, ...]
    slots: tuple[Slot, ...]
    base: Mapping[torch.dtype, NDArray[np.uint8]]
    """dtype -> the bytes of all base tensors of that dtype, one after the other: [bytes].
    NumPy has no bfloat16, so bytes it is, for every dtype alike."""
    deltas: Mapping[torch.dtype, NDArray[np.generic]]
    """dtype (float32, float64, or bfloat16, of which uint16 are the bits) -> [T, d]."""

    @property
    def nbytes(self) -> int:
        """Total bytes."""
        arrays = (*self.base.values(), *self.deltas.values())
        return sum(array.nbytes for array in arrays)


def lay_out(
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype, torch.dtype | None]],
) -> tuple[Slot, ...]:
    """Consecutive slots in the given order: name -> (shape, dtype, dtype of task vectors)."""
    ends: dict[tuple[str, torch.dtype], int] = {}
    slots = []
    for name, (shape, dtype, delta_dtype) in tensors.items():
        start = ends.get(("base", dtype), 0)
        ends["base", dtype] = start + math.prod(shape)
        delta_start = 0
        if delta_dtype is not None:
            delta_start = ends.get(("delta", delta_dtype), 0)
            ends["delta", delta_dtype] = delta_start + math.prod(shape)
        slots.append(Slot(name, shape, dtype, start, delta_dtype, delta_start))
    return tuple(slots)


KEPT_AS: Mapping[torch.dtype, type[np.generic]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.bfloat16: np.uint16,
}
"""dtype of task vectors -> that of their array."""


def allocate(tasks: tuple[str, ...], slots: tuple[Slot, ...]) -> FlatVectors:
    """Uninitialised flat arrays for these slots."""
    sizes: dict[torch.dtype, int] = {}
    delta_sizes: dict[torch.dtype, int] = {}
    for slot in slots:
        sizes[slot.dtype] = sizes.get(slot.dtype, 0) + slot.numel
        if slot.delta_dtype is not None:
            delta_sizes[slot.delta_dtype] = delta_sizes.get(slot.delta_dtype, 0) + slot.numel
    return FlatVectors(
        tasks,
        slots,
        {dtype: np.empty(size * dtype.itemsize, dtype=np.uint8) for dtype, size in sizes.items()},
        {
            dtype: np.empty((len(tasks), size), dtype=KEPT_AS[dtype])
            for dtype, size in delta_sizes.items()
        },
    )


def flatten(vectors: TaskVectors) -> FlatVectors:
    """A flat copy of dense task vectors."""
    stored = as_stored(vectors.deltas)
    slots = lay_out(
        {
            name: (
                tuple(tensor.shape),
                tensor.dtype,
                stored[name].dtype if name in stored else None,
            )
            for name, tensor in vectors.base.items()
        }
    )
    flat = allocate(vectors.tasks, slots)
    views = unflatten(flat)
    rows = as_stored(views.deltas)
    for name, tensor in vectors.base.items():
        views.base[name].copy_(tensor)
        if name in stored:
            rows[name].copy_(stored[name])
    return flat


def unflatten(flat: FlatVectors, device: str | torch.device = "cpu") -> TaskVectors:
    """Task vectors as views of the arrays (on a GPU: of one copy of each array).

    The memory may be read-only (the object store's); task vectors are never written to.
    """
    base = {dtype: as_tensor(array, device).view(dtype) for dtype, array in flat.base.items()}
    deltas = {dtype: as_tensor(array, device).view(dtype) for dtype, array in flat.deltas.items()}
    return TaskVectors(
        flat.tasks,
        Packed(base, {slot.name: Place(slot.dtype, slot.start, slot.shape) for slot in flat.slots}),
        widened(
            Packed(
                deltas,
                {
                    slot.name: Place(slot.delta_dtype, slot.delta_start, slot.shape)
                    for slot in flat.slots
                    if slot.delta_dtype is not None
                },
            )
        ),
    )


def as_tensor(array: NDArray[np.generic], device: str | torch.device) -> Tensor:
    """The same memory as a tensor."""
    with warnings.catch_warnings():
        # Torch has no read-only tensors and warns about each; see `unflatten`.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array).to(device)


def delta_dtype(base: torch.dtype, experts: list[torch.dtype]) -> torch.dtype | None:
    """Dtype in which a tensor's task vectors are kept; None for non-floating-point tensors."""
    return accumulator(base, *experts) if base.is_floating_point else None
