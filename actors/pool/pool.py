"""The pool: one base and T experts. All headers are compared first, then weights are read once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from actors.artifacts.recipe import BASE
from actors.checkpoints.checkpoint import Checkpoint, Factors, content_hash, owner, read
from actors.checkpoints.lora_adapter import inspect_adapter, is_adapter, multiply, read_factors
from actors.checkpoints.sources import resolve
from actors.families.protocol import ModelFamily
from actors.families.registry import family_in, inspect
from actors.pool.vectors_in_memory import FlatVectors as FlatVectors
from actors.pool.vectors_in_memory import allocate, delta_dtype, lay_out
from actors.pool.vectors_in_memory import flatten as flatten
from actors.pool.vectors_in_memory import unflatten as unflatten
from fusion.errors import InputError
from fusion.methods.learned.steps import stacked_rows
from fusion.task_vectors.lazy import as_stored
from fusion.task_vectors.task_vectors import TaskVectors, check_finite

CHUNK = 1 << 18
"""Elements subtracted at a time: 1 MiB of float32, so that what the check for NaN has read is
still in cache when it is subtracted."""


DeltaDtype: TypeAlias = Literal["float32", "bfloat16"]

Found: TypeAlias = Tensor | Factors | None
"""An expert's part in one tensor: its own, or factors of the difference; None: the base's."""


@dataclass(frozen=True)
class Pool:
    """A base and its experts, known by their file headers."""

    base: Checkpoint
    experts: dict[str, Checkpoint]
    family: ModelFamily
    references: dict[str, Checkpoint] = field(default_factory=dict)
    """Finished models that are evaluated beside the merged ones; methods do not read them."""
    deltas: DeltaDtype = "float32"
    """Dtype that task vectors are rounded to after the subtraction; those in float64 stay."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the experts, in the order of every T axis."""
        return tuple(self.experts)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the fused tensors, in the base's order."""
        return self.family.fused(self.base, self.experts.values())

    @property
    def groups(self) -> tuple[str, ...]:
        """The floating-point tensors among them: the G axis of layer-wise codings."""
        return tuple(name for name in self.names if self.delta_dtype(name) is not None)

    @property
    def dtypes(self) -> dict[str, str]:
        """The dtypes ("float32", say) of the fused tensors of "base" and of each expert."""
        members = {"base": self.base, **self.experts}
        return {
            member: ", ".join(
                sorted(
                    {
                        str(info.dtype).removeprefix("torch.")
                        for name in self.names
                        for info in checkpoint.parts(name)
                    }
                )
            )
            for member, checkpoint in members.items()
        }

    @property
    def parameters(self) -> int:
        """Number of elements of one fused model."""
        return sum(self.base.tensors[name].numel for name in self.names)

    @property
    def base_bytes(self) -> int:
        """Bytes of the base's fused tensors."""
        return sum(self.base.tensors[name].nbytes for name in self.names)

    @property
    def read_bytes(self) -> int:
        """Bytes that `load_flat` reads of the experts and reports to `advance`."""
        return sum(
            info.nbytes
            for expert in self.experts.values()
            for name in self.names
            for info in expert.parts(name)
        )

    @property
    def members_of(self) -> dict[str, str | None]:
        """Reference -> `pretrained`, or the expert, whose files it has; None: of none."""
        if not self.references:
            return {}
        members = {BASE: self.base, **self.experts}
        names = {content_hash(member): name for name, member in reversed(members.items())}
        return {name: names.get(content_hash(each)) for name, each in self.references.items()}

    def stacked_rows(self, device: str, dtype: str) -> int:
        """See `steps.stacked_rows`, for models computed in `dtype`."""
        layout = self.family.layout(self.base)
        return stacked_rows(getattr(torch, dtype).itemsize * layout.sampled_elements, device)

    def delta_dtype(self, name: str) -> torch.dtype | None:
        """Dtype in which the task vectors of one tensor are computed."""
        found = [info.dtype for e in self.experts.values() for info in e.parts(name)]
        return delta_dtype(self.base.tensors[name].dtype, found)

    def stored_dtype(self, name: str) -> torch.dtype | None:
        """Dtype in which the task vectors of one tensor are stored."""
        computed = self.delta_dtype(name)
        narrow = self.deltas == "bfloat16" and computed == torch.float32
        return torch.bfloat16 if narrow else computed


def open_pool(
    base: str, experts: Mapping[str, str], references: Mapping[str, str] | None = None
) -> Pool:
    """Open a base, its experts and references and compare their headers; reads no weight.

    Args:
        base: source of a whole model.
        experts: name -> source of a model of the same family, or of a LoRA adapter of the base.
        references: name -> source of such a model or adapter.

    Raises:
        InputError: no expert, a damaged file, an incomplete base, an expert or reference of another
            architecture, or a reference with a classifier that is not fused. The message names
            member, file and tensor or field.
    """
    if not experts:
        raise InputError("pool.experts: none given; at least one is needed")
    origin = inspect(base, "pool.base")
    family = family_in(origin)
    family.check_base(origin)
    members = {
        name: open_expert(source, f"pool.experts.{name}", origin, family)
        for name, source in experts.items()
    }
    others = {
        name: open_expert(source, f"references.{name}", origin, family)
        for name, source in (references or {}).items()
    }
    if others:
        check_heads(family, origin, members, others)
    return Pool(origin, members, family, others)


def check_heads(
    family: ModelFamily,
    base: Checkpoint,
    experts: Mapping[str, Checkpoint],
    references: Mapping[str, Checkpoint],
) -> None:
    """Raise InputError if a reference has a classifier that is not part of the fused model.

    Outputs of a reference are read by the tasks' heads, as those of merged models are.
    """
    both = {**experts, **{f"references.{name}": each for name, each in references.items()}}
    own = family.own_heads(base, both)
    for name, reference in references.items():
        if f"references.{name}" in own:
            raise InputError(
                f"{reference.name}: {reference.folder}: has a classifier of its own; a reference is"
                " read by the heads of the tasks, as merged models are: save it without (AutoModel)"
            )


def open_expert(source: str, name: str, base: Checkpoint, family: ModelFamily) -> Checkpoint:
    """Open a full model or an adapter of the base, and compare its headers with the base's.

    Raises:
        InputError: see `open_pool`.
    """
    if is_adapter(resolve(source, what=name)):
        return inspect_adapter(source, name, base, family.canonical)
    expert = inspect(source, name)
    if (theirs := family_in(expert)).name != family.name:
        raise InputError(
            f"{name}: {expert.folder}: a {theirs.name} model; the base is {family.name}"
        )
    family.check_expert(base, expert)
    return expert


def gram_sizes(pool: Pool) -> dict[str, int]:
    """Bytes of an expert's Gram matrix [in, in] for each input of linear layers, by its name.

    Layers that read the same input (q, k and v of an attention) share one matrix.
    """
    kept = set(pool.family.layout(pool.base).shared_inputs.values())
    return {name: 4 * pool.base.tensors[name].shape[1] ** 2 for name in pool.groups if name in kept}


def task_vectors(pool: Pool, *, advance: Callable[[int], None] | None = None) -> TaskVectors:
    """Load the pool's task vectors as views of a few flat arrays. See `load_flat`."""
    return unflatten(load_flat(pool, advance=advance))


def load_flat(
    pool: Pool,
    *,
    only: Collection[str] | None = None,
    advance: Callable[[int], None] | None = None,
) -> FlatVectors:
    """Read base and experts tensor by tensor and subtract; LoRA factors are multiplied first.

    Files are memory-mapped: peak memory is the result plus the system's page cache.

    Args:
        pool: an opened pool.
        only: the tensors of one shard; None: all of `pool.names`.
        advance: called with the bytes of experts read since the last call; `pool.read_bytes` in
            total.

    Raises:
        InputError: NaN or Inf, or a tensor that is not fused and differs from the base's. The
            message names member, file and tensor.
    """
    check_once(pool, only)
    names = names_of(pool, only)
    slots = lay_out(
        {
            name: (info.shape, info.dtype, pool.stored_dtype(name))
            for name, info in pool.base.tensors.items()
            if name in names
        }
    )
    flat = allocate(pool.tasks, slots)
    views = unflatten(flat)
    stored = as_stored(views.deltas)
    with one_thread():
        for name, origin, theirs in in_step(pool, names):
            check_finite(origin, name, owner(pool.base, name))
            views.base[name].copy_(origin)
            deltas = stored[name]
            dtype = pool.delta_dtype(name)
            for row, expert, found in zip(deltas, pool.experts.values(), theirs, strict=True):
                made = row if row.dtype == dtype else torch.empty_like(row, dtype=dtype)
                write_step(found, origin, made, name, expert)
                if made is not row:
                    row.copy_(made)
                if advance is not None:
                    advance(sum(info.nbytes for info in expert.parts(name)))
    return flat


def write_step(found: Found, origin: Tensor, out: Tensor, name: str, expert: Checkpoint) -> None:
    """Write one expert's task vector of one tensor, in the dtype of `out`.

    Raises:
        InputError: NaN or Inf.
    """
    if found is None:
        out.zero_()
    elif isinstance(found, Factors):
        check_finite(multiply(found, out), name, owner(expert, name))
    else:
        subtract(found, origin, out, name, owner(expert, name))


def names_of(pool: Pool, only: Collection[str] | None) -> tuple[str, ...]:
    """The fused tensors of one shard, in the pool's order; None: all of them."""
    return tuple(name for name in pool.names if only is None or name in only)


def check_once(pool: Pool, only: Collection[str] | None) -> None:
    """Run `check_unfused` once for a pool, whatever the number of shards.

    Raises:
        InputError: see `check_unfused`.
    """
    if only is None or pool.names[0] in only:
        pool.family.check_unfused(pool.base, pool.experts.values())


def in_step(pool: Pool, names: Collection[str]) -> Iterator[tuple[str, Tensor, list[Found]]]:
    """(name, the base's tensor, the tensor or factors of each expert), memory-mapped.

    Raises:
        InputError: see `read` and `read_factors`.
    """
    whole = {task: read(expert, names) for task, expert in pool.experts.items()}
    factors = {task: read_factors(expert, names) for task, expert in pool.experts.items()}
    for name, origin in read(pool.base, names):
        found: list[Found] = []
        for task, expert in pool.experts.items():
            if name in expert.factors:
                found.append(next(factors[task])[1])
            else:
                found.append(next(whole[task])[1] if name in expert.tensors else None)
        yield name, origin, found


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread.

    Many short memory-bound operations gain nothing from more threads; on busy cores the threads
    wait for each other at every operation.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def subtract(tensor: Tensor, base: Tensor, out: Tensor, name: str, who: str) -> None:
    """out = tensor − base in the dtype of `out`, in chunks that stay in cache.

    Raises:
        InputError: NaN or Inf in `tensor`.
    """
    whole, flat, origin, target = tensor, tensor.view(-1), base.view(-1), out.view(-1)
    for start in range(0, flat.numel(), CHUNK):
        part = slice(start, start + CHUNK)
        chunk = flat[part]
        if not bool(chunk.sum(dtype=torch.float32).isfinite()):
            check_finite(whole, name, who)  # counts them; a finite sum may also overflow
        torch.sub(chunk.to(out.dtype), origin[part].to(out.dtype), out=target[part])
