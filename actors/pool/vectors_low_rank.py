"""Task vectors kept as LoRA factors: a base and the factors of each expert's adapter.

With `placement.weights: factored`, a pool takes the memory of its base and Σ_t r_t·(in + out)
elements for each adapted weight; a tensor that no adapter changes takes none. Tensors that adapters
bring whole (biases, norms) are kept dense, T task vectors each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from actors.checkpoints.checkpoint import owner, read
from actors.checkpoints.lora_adapter import multiply, read_factors
from actors.pool.pool import Pool, check_once, names_of, one_thread, subtract
from actors.pool.vectors_in_memory import FlatVectors, allocate, lay_out, unflatten
from fusion.errors import InputError
from fusion.task_vectors.lazy import LowRankTaskVectors
from fusion.task_vectors.low_rank import LowRank, Zeros
from fusion.task_vectors.task_vectors import TaskVectors, check_finite

DOWN, UP, WHOLE = "down ", "up ", "whole "
"""Begin the names of slots: before a tensor's own."""


@dataclass(frozen=True, eq=False)
class FactoredVectors:
    """A block's base and its experts' factors as flat arrays: what is sent to shards."""

    flat: FlatVectors
    """The base alone."""
    factors: FlatVectors
    """As base tensors: `down NAME` [R, in], `up NAME` [out, R], `whole NAME` [T, *shape]."""
    ranks: Mapping[str, tuple[int, ...]]
    """Adapted tensor -> r_t of each expert."""
    kinds: Mapping[str, torch.dtype]
    """Floating-point tensor -> what its task vectors are made in."""

    @property
    def nbytes(self) -> int:
        """Total bytes."""
        return self.flat.nbytes + self.factors.nbytes


def check_adapters(pool: Pool) -> None:
    """Raise InputError where an expert is not an adapter; the message names it."""
    for expert in pool.experts.values():
        if not expert.factors:
            raise InputError(
                f"placement.weights: factored; {expert.name} is a full model: memory or files"
            )


def is_whole(pool: Pool, name: str) -> bool:
    """Whether an adapter brings a tensor whole, so that its task vectors are dense."""
    return any(name in expert.tensors for expert in pool.experts.values())


def ranks_of(pool: Pool, name: str) -> tuple[int, ...]:
    """Rank r_t of each expert, 0 where it leaves the tensor alone; () if no expert adapts it."""
    lows = [expert.factors.get(name) for expert in pool.experts.values()]
    return tuple(low.rank if low else 0 for low in lows) if any(lows) else ()


def widths(shape: tuple[int, ...]) -> tuple[int, int]:
    """(out, in) of a weight seen as a matrix.

    >>> widths((768, 3, 32, 32))
    (768, 3072)
    """
    return shape[0], torch.Size(shape[1:]).numel()


def factor_bytes(pool: Pool, names: Collection[str]) -> int:
    """Bytes of the task vectors of these tensors as kept, from headers alone."""
    total = 0
    for name in names:
        info, kind = pool.base.tensors[name], pool.delta_dtype(name)
        if kind is None:
            continue
        if is_whole(pool, name):
            total += len(pool.experts) * info.numel * kind.itemsize
        else:
            total += sum(ranks_of(pool, name)) * sum(widths(info.shape)) * kind.itemsize
    return total


def factor_vectors(
    pool: Pool,
    *,
    only: Collection[str] | None = None,
    advance: Callable[[int], None] | None = None,
) -> FactoredVectors:
    """Read base and adapters, tensor by tensor, into a few flat arrays.

    Args:
        pool: an opened pool.
        only: the tensors of one shard; None: all of `pool.names`.
        advance: called with the bytes of experts read since the last call.

    Raises:
        InputError: an expert that is not an adapter, or any refusal of `load_flat`.
    """
    check_adapters(pool)
    check_once(pool, only)
    names = names_of(pool, only)
    infos = {name: pool.base.tensors[name] for name in names}
    flat = allocate(
        pool.tasks, lay_out({name: (info.shape, info.dtype, None) for name, info in infos.items()})
    )
    kinds = {name: kind for name in names if (kind := pool.delta_dtype(name)) is not None}
    ranks: dict[str, tuple[int, ...]] = {}
    slots: dict[str, tuple[tuple[int, ...], torch.dtype, None]] = {}
    for name, kind in kinds.items():
        shape = infos[name].shape
        if is_whole(pool, name):
            slots[WHOLE + name] = ((len(pool.tasks), *shape), kind, None)
        elif found := ranks_of(pool, name):
            out, width = widths(shape)
            ranks[name] = found
            slots[DOWN + name] = ((sum(found), width), kind, None)
            slots[UP + name] = ((out, sum(found)), kind, None)
    factors = allocate((), lay_out(slots))
    base, parts = unflatten(flat).base, unflatten(factors).base
    with one_thread():
        for name, origin in read(pool.base, names):
            check_finite(origin, name, owner(pool.base, name))
            base[name].copy_(origin)
        for key in parts:
            if key.startswith(WHOLE):
                parts[key].zero_()
        for at in range(len(pool.tasks)):
            fill(pool, at, kinds, ranks, base, parts)
            if advance is not None:
                advance(sum(read_bytes(pool, at, kinds)))
    return FactoredVectors(flat, factors, ranks, kinds)


def fill(
    pool: Pool,
    at: int,
    names: Mapping[str, torch.dtype],
    ranks: Mapping[str, tuple[int, ...]],
    base: Mapping[str, Tensor],
    parts: Mapping[str, Tensor],
) -> None:
    """Write the factors and whole tensors of one expert into the arrays of all experts.

    `names` gives the dtype of each tensor's task vectors. A product that overflows is refused, as
    it is where task vectors are loaded.
    """
    expert = pool.experts[pool.tasks[at]]
    for name, tensor in read(expert, [name for name in names if name in expert.tensors]):
        subtract(tensor, base[name], parts[WHOLE + name][at], name, owner(expert, name))
    for name, factors in read_factors(expert, names):
        made = torch.empty(base[name].shape, dtype=names[name])
        check_finite(multiply(factors, made), name, owner(expert, name))
        if name not in ranks:  # a whole tensor of another expert
            parts[WHOLE + name][at].copy_(made)
            continue
        stop = [*accumulate(ranks[name])][at]
        part = slice(stop - ranks[name][at], stop)
        parts[DOWN + name][part].copy_(factors.down)
        parts[UP + name][:, part].copy_(factors.up)


def read_bytes(pool: Pool, at: int, names: Collection[str]) -> list[int]:
    """Bytes of one expert's file for each of these tensors."""
    expert = pool.experts[pool.tasks[at]]
    return [
        each[name].nbytes for each in (expert.tensors, expert.factors) for name in names
        if name in each
    ]  # fmt: skip


def opened_factors(factored: FactoredVectors, device: str | torch.device = "cpu") -> TaskVectors:
    """Base and factors as views of the arrays (on a GPU: of one copy of each)."""
    base = unflatten(factored.flat, device).base
    parts = unflatten(factored.factors, device).base
    holdings: dict[str, LowRank | Zeros | Tensor] = {}
    for name, kind in factored.kinds.items():
        shape = tuple(base[name].shape)
        if name in factored.ranks:
            down, up = parts[DOWN + name], parts[UP + name]
            dims = () if len(shape) == 2 else shape
            holdings[name] = LowRank(down, up, factored.ranks[name], dims)
        elif WHOLE + name in parts:
            holdings[name] = parts[WHOLE + name]
        else:
            whole = torch.Size((len(factored.flat.tasks), *shape))
            holdings[name] = Zeros(whole, kind, torch.device(device))
    return TaskVectors(factored.flat.tasks, base, LowRankTaskVectors(holdings))
