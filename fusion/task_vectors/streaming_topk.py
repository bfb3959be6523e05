"""Exact k-th largest magnitude of streamed tensors (radix select).

The bits of |x|, read as an integer, have the same order as |x|. A histogram of their leading 16-bit
digit gives the bin of the k-th largest. A histogram of the next digit, over the members of that
bin, refines it, until all bits are known. Nothing is sorted or copied: two passes find a float32,
four a float64. Histograms of shards can be added, so a threshold over a whole model costs one
all-reduce a pass. On a GPU the histograms are made there, so the host waits once a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.staging import sent
from fusion.task_vectors.packed import pieces
from fusion.task_vectors.sharded_reduce import Survey, run_surveys
from fusion.task_vectors.threads import SERIAL, in_threads

CHUNK = SERIAL
"""Elements counted at a time on a CPU."""

PENDING = 1 << 17
"""Members of a bin that are collected before they are counted."""

DIGIT = 16
"""Bits of a digit, one digit a pass: 65,536 bins."""

BINS = 1 << DIGIT

FEW = 1 << 24
"""Elements of a row up to which a copy of it is partially sorted on a CPU; longer rows are counted
in passes, without a copy."""


def kth_largest(
    groups: Iterable[Sequence[Tensor]], ranks: Sequence[int], *, wide: bool = False
) -> Survey[list[float]]:
    """For each of T rows, the k-th largest magnitude over all tensors of all shards.

    Args:
        groups: lists of floating-point tensors [T, *shape], iterated once a pass; a list is
            released before the next is requested (`fusion.task_vectors.lazy.TensorStream`).
        ranks: T ranks k over all shards; 1 is the largest, and at most the number of elements is
            allowed.
        wide: read tensors as float64 instead of float32. All shards must pass the same value; it is
            needed as soon as one tensor of one shard is float64.

    Returns:
        T magnitudes, exact.

    >>> from fusion.task_vectors.sharded_reduce import run_surveys
    >>> shards = [torch.tensor([[1.0, -4.0]])], [torch.tensor([[[3.0], [-2.0]]])]
    >>> run_surveys([kth_largest([shard], [2]) for shard in shards])
    [3.0]
    """
    prefixes, ranks = [0] * len(ranks), list(ranks)
    for shift in range((64 if wide else 32) - DIGIT, -1, -DIGIT):
        histograms = yield row_histograms(groups, prefixes, shift, wide=wide)
        for t, counts in enumerate(histograms.numpy()):
            digit, above = descend(counts, ranks[t])
            prefixes[t], ranks[t] = prefixes[t] << DIGIT | digit, ranks[t] - above
    bits = np.array(prefixes, dtype=np.uint64 if wide else np.uint32)
    return [float(value) for value in bits.view(np.float64 if wide else np.float32)]


def row_histograms(
    groups: Iterable[Sequence[Tensor]], prefixes: Sequence[int], shift: int, *, wide: bool
) -> Tensor:
    """Histograms of all rows, stacked: int64 [T, 65,536] on the CPU (see `Histogram`)."""
    found = [Histogram(prefix, shift, wide=wide) for prefix in prefixes]
    there: dict[torch.device, Tensor] = {}

    def count_there(tensor: Tensor) -> None:
        device = tensor.device
        if device not in there:
            there[device] = torch.zeros(len(prefixes), BINS, dtype=torch.int64, device=device)
        count_on_gpu(tensor, prefixes, shift, there[device], wide=wide)

    for group in groups:
        count_group([tensor for tensor in group if tensor.device.type == "cpu"], found)
        list(map(count_there, (tensor for tensor in group if tensor.device.type != "cpu")))
        del group  # before the next is made
    total = torch.stack([each.counted() for each in found])
    for counts in there.values():
        total += counts.cpu()
    return total


def count_on_gpu(
    tensor: Tensor, prefixes: Sequence[int], shift: int, total: Tensor, *, wide: bool
) -> None:
    """Add the digits of task vectors [T, *shape] on a GPU to histograms [T, 65,536] there."""
    dtype, kind = (torch.float64, torch.int64) if wide else (torch.float32, torch.int32)
    leading = shift_is_leading(shift, wide=wide)
    rows = tensor.reshape(len(tensor), -1)
    one = torch.ones((), dtype=torch.int64, device=tensor.device)
    wanted = sent(torch.tensor(prefixes, dtype=kind), tensor.device)[:, None]
    for span in pieces(rows.shape[1], len(rows)):
        bits = rows[:, span].to(dtype).view(kind) & torch.iinfo(kind).max
        if leading:
            digits, counted = (bits >> shift).long(), one.expand(bits.shape)
        else:
            counted = (bits >> shift + DIGIT == wanted).long()
            digits = (bits >> shift & BINS - 1).long()
        total.scatter_add_(1, digits, counted)


def row_magnitudes(rows: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """For each rank, the magnitude of that rank in every row of [T, n]: [T] each.

    Exact, in float32 (float64 rows: float64), on the device of the rows; the host does not wait.

    Args:
        rows: n > 0.
        ranks: 1 is the largest, n the smallest.
    """
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    count, size = rows.shape
    if rows.device.type != "cpu":
        sizes = rows.abs().to(dtype)
        return [kth_of(sizes, rank) for rank in ranks]
    if size > FEW:
        wide = dtype == torch.float64
        found = [run_surveys([kth_largest([[rows]], [rank] * count, wide=wide)]) for rank in ranks]
        return list(torch.tensor(found, dtype=dtype))
    together = max(1, SERIAL // size)
    parts = [rows[at : at + together] for at in range(0, count, together)]
    lines = in_threads(lambda part: partitioned(part.abs().to(dtype).numpy(), ranks), parts)
    return [torch.from_numpy(np.concatenate(line)) for line in zip(*lines, strict=True)]


def partitioned(sizes: NDArray[Any], ranks: Sequence[int]) -> list[NDArray[Any]]:
    """For each rank, the entry of that rank in every row of [K, n]: [K] each; reorders the rows.

    numpy selects one rank at a time with vector instructions, several at once without.
    """
    found = {}
    left = sizes
    for rank in sorted(set(ranks)):
        place = sizes.shape[1] - rank
        left.partition(place, axis=1)
        found[rank] = left[:, place].copy()
        left = left[:, :place]
    return [found[rank] for rank in ranks]


def kth_of(sizes: Tensor, rank: int) -> Tensor:
    """The entry of a rank in every row of [T, n]: [T]; 1 is the largest."""
    size = sizes.shape[1]
    if rank <= size - rank:
        return sizes.topk(rank, dim=1, sorted=False).values.amin(1)
    return sizes.topk(size - rank + 1, dim=1, largest=False, sorted=False).values.amax(1)


def count_group(group: Sequence[Tensor], found: Sequence[Histogram]) -> None:
    """Add each row of each tensor of a list to that row's histogram."""
    in_threads(lambda t: found[t].add([tensor[t] for tensor in group]), range(len(found)))


def descend(counts: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """The bin that contains the element of this rank, and the number of elements in the bins above.

    >>> descend(np.array([5, 2, 1]), 2)
    (1, 1)
    """
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, rank))
    return len(counts) - 1 - place, int(from_top[place - 1]) if place else 0


class Histogram:
    """Histogram of one 16-bit digit of |x|, over the entries whose higher bits equal `prefix`.

    The digit is the 16 bits from bit `shift` upwards; `prefix` holds all bits above them.
    """

    def __init__(self, prefix: int, shift: int, *, wide: bool) -> None:
        self.prefix, self.shift, self.wide = prefix, shift, wide
        self.total = torch.zeros(BINS, dtype=torch.int64)
        self.pending: list[Tensor] = []
        self.waiting = 0

    def add(self, row: Sequence[Tensor]) -> None:
        """Count one row's part of some tensors."""
        leading = shift_is_leading(self.shift, wide=self.wide)
        for digits in digit_chunks(row, self.prefix, self.shift, wide=self.wide):
            # A bin's members are few, and counting costs all 65,536 bins each time: hence seldom.
            self.pending.append(digits)
            self.waiting += len(digits)
            if leading or self.waiting >= PENDING:
                count(self.pending, self.total)
                self.waiting = 0

    def counted(self) -> Tensor:
        """The counts, int64 [65,536], on the CPU."""
        count(self.pending, self.total)
        return self.total


def count(pending: list[Tensor], total: Tensor) -> None:
    """Add the digits in `pending` to the histogram `total`, and empty `pending`."""
    if pending:
        counts = torch.bincount(pending[0] if len(pending) == 1 else torch.cat(pending))
        total[: len(counts)] += counts
        pending.clear()


def digit_chunks(row: Sequence[Tensor], prefix: int, shift: int, *, wide: bool) -> Iterator[Tensor]:
    """Digits that `Histogram` counts, chunk by chunk.

    For the leading digit, each chunk is scratch memory that is valid until the next one.
    """
    dtype, kind = (torch.float64, torch.int64) if wide else (torch.float32, torch.int32)
    leading = shift_is_leading(shift, wide=wide)
    magnitude = torch.iinfo(kind).max  # all bits but the sign's
    longest = max((tensor.numel() for tensor in row), default=0)
    scratch = torch.empty(2, min(CHUNK, longest), dtype=kind)
    for tensor in row:
        flat = tensor.reshape(-1)
        for start in range(0, len(flat), CHUNK):
            chunk = flat[start : start + CHUNK].to(dtype)
            bits, high = scratch[:, : len(chunk)]
            torch.bitwise_and(chunk.view(kind), magnitude, out=bits)
            torch.bitwise_right_shift(bits, shift + (0 if leading else DIGIT), out=high)
            yield high if leading else members(bits, high, prefix) >> shift & BINS - 1


def members(values: Tensor, high: Tensor, prefix: int) -> Tensor:
    """The `values` whose `high` bits equal `prefix`; on the CPU, by numpy.

    numpy's boolean indexing skips eight entries at a time. It is four times as fast as torch's if
    one entry in a hundred is a member.
    """
    return torch.from_numpy(values.numpy()[high.numpy() == prefix])


def shift_is_leading(shift: int, *, wide: bool) -> bool:
    """Whether the digit at `shift` is the leading one."""
    return shift + DIGIT == (64 if wide else 32)
