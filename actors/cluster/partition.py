"""Cut a chain of segments into shards, and compute the memory of each.

A *shard* holds a contiguous block of segments. With W_b the float32 bytes of its block, W those of
the model, T experts, d and c the bytes per element of task vectors and of the resident model:

  weights  = W_b + T·W_b·d/4                     (CPU: once a node, in its object store)
             W_b                                 (if task vectors stay in files)
             W_b + F_b·d/4                       (if they stay factors, of F_b bytes in float32)
             + R·W_b                            (R references: always in main memory)
  copy     = T·W_b·d/4                           (if methods transform the task vectors)
  resident = W_b·c/4
  merging  = 2 · the largest segment of the block; if there is one model per sample, the merged
             weights of a layer (`scratch`) if that is more
  making   = T·(the model's largest tensor)      (if they stay in files, or factors; three times
                                                 that if methods transform them; one tensor's in
                                                 float32 if they are kept in 16 bits)
  work     = forward + training·(W_b/W)·(S − s)  (shard s of S keeps S − s micro-batches: 1F1B; of
                                                 one task, or of several that are stacked;
                                                 if segments state their work, W_b/W is the
                                                 block's share of it)

A GPU holds all of it and a CUDA context. If an earlier run measured the peak of a whole replica,
that plus 10 % is used instead. A CPU shard holds copy or making, resident, merging, work and a
process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate

from fusion.errors import InputError
from fusion.merged_layers.functional import BUDGET
from fusion.methods.learned.steps import STACKED

PROCESS_BYTES = 700 * 2**20
"""Resident memory of a shard's process before any weight: interpreter, torch, transformers."""

GPU_CONTEXT_BYTES = 600 * 2**20
"""A CUDA context and its libraries."""

STORE_MARGIN = 1.15
"""Object store over what is put into it: Ray's own objects and fragmentation."""

MEASURED_MARGIN = 1.1
"""GPU memory over the largest allocation ever measured: the allocator's fragments."""

DATA_STORE_BYTES = 300 * 2**20
"""Object store for images on their way into the pixel cache, and for results."""

FLOAT32 = 4


@dataclass(frozen=True)
class Load:
    """The model and experts to be placed, and their sizes."""

    segments: tuple[int, ...]
    """Bytes of the base, a segment, in float32."""
    experts: int
    """T."""
    delta_itemsize: int = FLOAT32
    """Bytes an element of the task vectors as kept."""
    compute_itemsize: int = FLOAT32
    """Bytes an element of the resident model."""
    forward_bytes: int = 0
    """Peak activations of one evaluation batch, one block at a time."""
    training_bytes: int = 0
    """Activations of one micro-batch of one task, or of tasks that share a model, that are kept for
    backward, and `learned_bytes`; whole model; 0: nothing is trained."""
    stacked_bytes: int = 0
    """Activations of all tasks whose models may run in one pass (`steps.STACKED`); 0: none."""
    learned_bytes: int = 0
    """Parameters that are trained in shards, with moments and gradients."""
    transformed: bool = False
    """Whether a pruned or cast copy of the task vectors is needed too."""
    filed: bool = False
    """Whether task vectors stay in files: one tensor's are in memory at a time."""
    factors: tuple[int, ...] = ()
    """Bytes of all experts' task vectors as factors, a segment, in float32; empty: some expert is
    no adapter."""
    factored: bool = False
    """Whether those are what is kept: one tensor's task vectors are made of them at a time."""
    largest: int = 0
    """Bytes of the base's largest tensor, in float32; 0: not known."""
    sampled: int = 0
    """Models in one pass, where some method makes a model a sample; 0: none does."""
    measured: int = 0
    """Peak bytes that a whole replica was seen to allocate on a GPU; 0: not known yet."""
    work: tuple[float, ...] = ()
    """Multiplications a row, a segment, which activations are kept in proportion to; empty: to
    bytes."""
    costs: tuple[float, ...] = ()
    """Cost of a segment in a micro-batch (`segment_costs.py`), by which the model is cut; empty: by
    work."""
    largest_block: int = 0
    """Most bytes of the base in one shard, in float32; 0: no limit."""
    references: int = 0
    """Finished models that are held in main memory beside the pool, to be evaluated too."""
    half: str = "float16"
    """The 16-bit dtype that refusals suggest."""

    @property
    def made(self) -> bool:
        """Whether task vectors are computed when they are read."""
        return self.filed or self.factored

    @property
    def narrow(self) -> bool:
        """Whether task vectors are kept in 16 bits. Some methods convert one tensor's to float32
        as they read them."""
        return self.delta_itemsize < FLOAT32

    def of(self, experts: int) -> Load:
        """The same load with fewer experts; adapters are assumed to have about one size."""
        factors = tuple(size * experts // self.experts for size in self.factors)
        return replace(self, experts=experts, factors=factors)

    def halved(self) -> Load:
        """The same load computed in 16 bits, if it uses more."""
        was = max(self.compute_itemsize, 2)
        return replace(
            self,
            compute_itemsize=2,
            forward_bytes=self.forward_bytes * 2 // was,
            training_bytes=self.training_bytes * 2 // was,
            stacked_bytes=self.stacked_bytes * 2 // was,
        )


@dataclass(frozen=True)
class Need:
    """Bytes of one shard: shared on its node, in its own process, and on its GPU."""

    weights: int
    host: int
    device: int = 0


def cut(
    costs: Sequence[float], blocks: int, sizes: Sequence[float] = (), limit: float = 0
) -> tuple[tuple[int, int], ...]:
    """The contiguous partition whose largest sum of costs is smallest; exact and deterministic.

    With `best(b, i)` the smallest possible largest sum of the first i costs in b blocks:
    `best(b, i) = min over m < i of max(best(b − 1, m), costs[m] + … + costs[i − 1])`. Ties are
    broken by the smaller sum of squares, so that the light blocks are even too.

    Args:
        costs: of each segment, in order; at least 0.
        blocks: how many; none is left empty.
        sizes: of each segment, in order; where there is a limit.
        limit: a block's sizes sum to no more where that can be; 0: no limit.

    Returns:
        `[start, stop)` of each block.

    Raises:
        InputError: fewer than 1 block, or more blocks than segments.

    >>> cut([1, 1, 1, 3], 2)
    ((0, 3), (3, 4))
    >>> cut([1, 1, 1, 3], 2, sizes=[3, 1, 1, 1], limit=4)
    ((0, 2), (2, 4))
    """
    if not 1 <= blocks <= len(costs):
        raise InputError(
            f"cut: {blocks} blocks of {len(costs)} segments; 1 to {len(costs)} allowed"
        )
    sums = [0, *accumulate(costs)]
    held = [0, *accumulate(sizes)] if limit else [0] * len(sums)

    def cost(start: int, stop: int) -> float:
        within = held[stop] - held[start] <= limit
        return sums[stop] - sums[start] if within else math.inf

    best: dict[int, tuple[float, float, tuple[int, ...]]]
    # best[i]: (largest sum, sum of squares, stops) of the first i costs in b blocks.
    best = {i: (cost(0, i), cost(0, i) ** 2, (i,)) for i in range(1, len(sums))}
    for count in range(2, blocks + 1):
        best = {
            i: min(extended(best[m], cost(m, i), i) for m in range(count - 1, i))
            for i in range(count, len(sums))
        }
    stops = best[len(costs)][2]
    return tuple(zip((0, *stops[:-1]), stops, strict=True))


def extended(
    split: tuple[float, float, tuple[int, ...]], cost: float, stop: int
) -> tuple[float, float, tuple[int, ...]]:
    """A partition with one more block of that cost."""
    largest, squares, stops = split
    return max(largest, cost), squares + cost**2, (*stops, stop)


@cache
def cut_by(
    segments: tuple[int, ...], costs: tuple[float, ...], limit: int, shards: int
) -> tuple[tuple[int, int], ...]:
    """See `blocks_of`."""
    return cut(costs or segments, shards, segments, limit)


def blocks_of(load: Load, shards: int) -> tuple[tuple[int, int], ...]:
    """Segments of each shard, cut by cost; by bytes if segments do not state their work."""
    return cut_by(load.segments, load.costs or load.work, load.largest_block, shards)


STEPS = 8
"""Limits that are tried between a cut by cost and one by bytes."""


def balanced(load: Load, shards: int) -> Iterator[Load]:
    """The load with ever lower limits of a shard's bytes: cut by cost first, by bytes last."""
    yield load
    if not (load.costs or load.work) or shards == 1:
        return
    largest = max(sum(load.segments[slice(*block)]) for block in blocks_of(load, shards))
    even = cut(load.segments, shards)
    least = max(sum(load.segments[slice(*block)]) for block in even)
    for step in range(1, STEPS):
        yield replace(load, largest_block=round(largest * (least / largest) ** (step / STEPS)))
    yield replace(load, work=(), costs=())


def needs(load: Load, shards: int, device: str) -> list[Need]:
    """Memory of each shard of one replica; formulas at the top of this file."""
    found, shares = [], load.work or load.segments
    for index, (start, stop) in enumerate(blocks_of(load, shards)):
        block = sum(load.segments[start:stop])
        deltas = load.experts * block * load.delta_itemsize // FLOAT32
        factors = sum(load.factors[start:stop]) * load.delta_itemsize // FLOAT32
        weights = block + (0 if load.filed else factors if load.factored else deltas)
        shared = weights + load.references * block
        part, whole = sum(shares[start:stop]), max(sum(shares), 1)
        kept = int(training(load, device) * part * (shards - index) // whole)
        work = (
            making(load, deltas)
            + block * load.compute_itemsize // FLOAT32
            + max(2 * max(load.segments[start:stop]), scratch(load, device))
            + load.forward_bytes
            + kept
        )
        if device == "cuda":
            device_bytes = weights + work
            if load.measured and shards == 1:
                device_bytes = int(load.measured * MEASURED_MARGIN)
            found.append(Need(shared, PROCESS_BYTES, device_bytes + GPU_CONTEXT_BYTES))
        else:
            found.append(Need(shared, PROCESS_BYTES + work))
    return found


def training(load: Load, device: str) -> int:
    """Bytes that autograd keeps of one micro-batch of the whole model, with what is learned."""
    stacked = min(load.stacked_bytes, STACKED["cuda" if device == "cuda" else "cpu"])
    return max(load.training_bytes, stacked + load.learned_bytes if stacked else 0)


def scratch(load: Load, device: str) -> int:
    """Bytes of merged weights that a layer holds where there is one model per sample; else 0.

    `fusion.merged_layers.functional` merges several models at a time. In the forward pass each
    takes the sum and its rounded copy; in the backward pass dW in its place, and on a GPU its
    float32 copy (a CPU converts in small pieces). float32 weights need no copy.
    """
    size, largest = load.compute_itemsize, load.largest // FLOAT32
    budget = BUDGET["cuda" if device == "cuda" else "cpu"] // size
    elements = min(max(budget, largest), load.sampled * largest)
    wide = max(size, FLOAT32)
    forward = wide + (size if size < wide else 0)
    backward = size + (wide if size < wide and device == "cuda" else 0)
    return elements * (forward + (backward if load.training_bytes else 0))


def making(load: Load, deltas: int) -> int:
    """Bytes of task vectors that a process computes, for a block whose task vectors take `deltas`.

    If they stay in files or factors, this is one tensor's: as computed, and while methods transform
    it, the transformed copies too. If they are kept in 16 bits, one tensor's in float32.
    """
    tensor = load.experts * load.largest
    if load.made:
        return tensor * (3 if load.transformed else 1)
    return (deltas if load.transformed else 0) + (tensor if load.narrow else 0)


def store(shards: Sequence[Need], placed: Sequence[int]) -> int:
    """Object store bytes of a node with these shards: each block once."""
    return int(sum(shards[s].weights for s in set(placed)) * STORE_MARGIN) + DATA_STORE_BYTES


def memory(shards: Sequence[Need], placed: Sequence[int]) -> int:
    """Main memory of a node with these shards."""
    return store(shards, placed) + sum(shards[s].host for s in placed)


def gigabytes(size: float) -> str:
    """`1.25 GB` (10⁹ bytes).

    >>> gigabytes(1_250_000_000)
    '1.25 GB'
    """
    return f"{size / 1e9:.2f} GB"


def round_up(size: int) -> int:
    """The next 0.1 GB.

    >>> round_up(1_210_000_000)
    1300000000
    """
    return -(-size // 10**8) * 10**8
