"""The pool: one base, T experts; all headers compared first, then weights read once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.architecture import PROJECTION
from actors.checkpoints import Checkpoint, TensorInfo, inspect, read
from actors.flat import FlatVectors as FlatVectors
from actors.flat import allocate, delta_dtype, lay_out
from actors.flat import flatten as flatten
from actors.flat import unflatten as unflatten
from fusion.errors import InputError
from fusion.state import TaskVectors, check_finite

CHUNK = 1 << 18
"""Elements subtracted at a time: 1 MiB of float32, so that what the check for NaN has read is
still in cache when it is subtracted."""

HEAD_TENSORS = ("text_projection.weight", "logit_scale")


@dataclass(frozen=True)
class Pool:
    """A base and its experts, known by their headers."""

    base: Checkpoint
    experts: dict[str, Checkpoint]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The experts' names: fixes every T axis."""
        return tuple(self.experts)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that are fused. `visual_projection` is one iff some expert brings its own."""
        projected = any(PROJECTION in expert.tensors for expert in self.experts.values())
        return tuple(name for name in self.base.tensors if projected or name != PROJECTION)

    @property
    def groups(self) -> tuple[str, ...]:
        """The floating-point tensors among them: the G axis of layer-wise codings."""
        return tuple(name for name in self.names if self.delta_dtype(name) is not None)

    @property
    def dtypes(self) -> dict[str, str]:
        """ "base" and each expert -> the dtypes of its fused tensors; "float32", say."""
        members = {"base": self.base, **self.experts}
        return {
            member: ", ".join(
                sorted(
                    {
                        str(checkpoint.tensors[name].dtype).removeprefix("torch.")
                        for name in self.names
                        if name in checkpoint.tensors
                    }
                )
            )
            for member, checkpoint in members.items()
        }

    @property
    def parameters(self) -> int:
        """Elements of one fused model."""
        return sum(self.base.tensors[name].numel for name in self.names)

    @property
    def base_bytes(self) -> int:
        """Bytes of the base's fused tensors."""
        return sum(self.base.tensors[name].nbytes for name in self.names)

    @property
    def delta_bytes(self) -> int:
        """Bytes of the T task vectors."""
        return sum(
            len(self.experts) * self.base.tensors[name].numel * dtype.itemsize
            for name in self.names
            if (dtype := self.delta_dtype(name)) is not None
        )

    @property
    def read_bytes(self) -> int:
        """Bytes that `load_flat` reads of the experts, and reports to `advance`."""
        return sum(
            expert.tensors[name].nbytes
            for expert in self.experts.values()
            for name in self.names
            if name in expert.tensors
        )

    def delta_dtype(self, name: str) -> torch.dtype | None:
        """What one tensor's task vectors are kept in."""
        experts = [e.tensors[name].dtype for e in self.experts.values() if name in e.tensors]
        return delta_dtype(self.base.tensors[name].dtype, experts)


def open_pool(base: str, experts: Mapping[str, str]) -> Pool:
    """Inspect all members and compare their headers; no weight is read.

    Args:
        base: source of a full CLIP model.
        experts: name -> source of a CLIP model or vision tower.

    Raises:
        InputError: no expert, a damaged member, a base without text tower, or an expert of
            another architecture. The line names member, file and tensor or field.
    """
    if not experts:
        raise InputError("pool.experts: none given; at least one is needed")
    origin = inspect(base, "pool.base")
    check_base(origin)
    pool = Pool(
        origin, {name: inspect(source, f"pool.experts.{name}") for name, source in experts.items()}
    )
    for expert in pool.experts.values():
        check_architecture(origin, expert)
    return pool


def check_base(base: Checkpoint) -> None:
    """Raise InputError where the base cannot make zero-shot heads."""
    missing = [n for n in (PROJECTION, *HEAD_TENSORS) if n not in (*base.tensors, *base.rest)]
    if not any(name.startswith("text_model.") for name in base.rest):
        missing.append("text_model")
    if missing:
        raise InputError(
            f"pool.base: {base.folder}: {missing[0]}: missing; the base must be a full CLIPModel"
            " (its text tower, projections and scale make the heads)"
        )


def check_architecture(base: Checkpoint, expert: Checkpoint) -> None:
    """Raise InputError where an expert's fields or tensors are not the base's."""
    theirs = expert.fields
    for field, value in base.fields.items():
        if theirs[field] != value:
            raise InputError(
                f"{expert.name}: {expert.folder / 'config.json'}: {field}: {theirs[field]!r};"
                f" the base has {value!r}"
            )
    for name, info in {**expert.tensors, **expert.rest}.items():
        original = base.tensors.get(name) or base.rest.get(name)
        if original is None:
            raise InputError(f"{expert.name}: {info.file}: tensor {name!r}: not in the base")
        if info.shape != original.shape:
            raise InputError(
                f"{expert.name}: {info.file}: tensor {name!r}: shape {list(info.shape)};"
                f" the base has {list(original.shape)}"
            )


def task_vectors(pool: Pool, *, advance: Callable[[int], None] | None = None) -> TaskVectors:
    """The pool's task vectors, as views of a few flat arrays. See `load_flat`."""
    return unflatten(load_flat(pool, advance=advance))


def load_flat(
    pool: Pool,
    *,
    only: Collection[str] | None = None,
    advance: Callable[[int], None] | None = None,
) -> FlatVectors:
    """Read base and experts tensor by tensor, and subtract.

    Files are memory-mapped: beside the result, the peak is what the system keeps of them in its
    page cache.

    Args:
        pool: an opened pool.
        only: the tensors of one shard; None: all of `pool.names`.
        advance: called with the bytes of experts read since its last call; `pool.read_bytes` in
            all.

    Raises:
        InputError: NaN or Inf, or an expert whose text tower, scale or position ids are not the
            base's. The line names member, file and tensor.
    """
    check_once(pool, only)
    names = names_of(pool, only)
    slots = lay_out(
        {
            name: (info.shape, info.dtype, pool.delta_dtype(name))
            for name, info in pool.base.tensors.items()
            if name in names
        }
    )
    flat = allocate(pool.tasks, slots)
    views = unflatten(flat)
    with one_thread():
        for name, origin, theirs in in_step(pool, names):
            check_finite(origin, name, owner(pool.base, name))
            views.base[name].copy_(origin)
            deltas = views.deltas[name]
            for row, expert, tensor in zip(deltas, pool.experts.values(), theirs, strict=True):
                if tensor is None:
                    row.zero_()
                    continue
                subtract(tensor, origin, row, name, owner(expert, name))
                if advance is not None:
                    advance(tensor.nbytes)
    return flat


def names_of(pool: Pool, only: Collection[str] | None) -> tuple[str, ...]:
    """The fused tensors of one shard, in the pool's order; None: all of them."""
    return tuple(name for name in pool.names if only is None or name in only)


def check_once(pool: Pool, only: Collection[str] | None) -> None:
    """`check_unfused` once a pool, whatever the number of shards.

    Raises:
        InputError: see there.
    """
    if only is None or pool.names[0] in only:
        check_unfused(pool)


def in_step(
    pool: Pool, names: Collection[str]
) -> Iterator[tuple[str, Tensor, list[Tensor | None]]]:
    """(name, the base's tensor, each expert's or None where it has none), memory-mapped.

    Raises:
        InputError: see `read`.
    """
    streams = {task: read(expert, names) for task, expert in pool.experts.items()}
    for name, origin in read(pool.base, names):
        yield (
            name,
            origin,
            [
                next(streams[task])[1] if name in expert.tensors else None
                for task, expert in pool.experts.items()
            ],
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: many short operations bound by memory gain nothing from more, and
    where cores are busy they wait for each other's threads at every one of them."""
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
            check_finite(whole, name, who)  # says how many; a finite sum may also overflow
        torch.sub(chunk.to(out.dtype), origin[part].to(out.dtype), out=target[part])


def check_unfused(pool: Pool) -> None:
    """What is not fused must be the base's: text tower, scale; and position ids must count up.

    Raises:
        InputError: an expert that was fine-tuned in its text tower, say.
    """
    for member in (pool.base, *pool.experts.values()):
        for name, ids in read(member, member.buffers):
            if not torch.equal(ids.reshape(-1), torch.arange(ids.numel(), dtype=ids.dtype)):
                raise InputError(
                    f"{owner(member, name)}: tensor {name!r}: a buffer that differs from"
                    " 0, 1, 2, …; only floating-point tensors can be fused"
                )
    for expert in pool.experts.values():
        for (name, ours), (_, theirs) in pairs(pool.base, expert):
            check_finite(theirs, name, owner(expert, name))
            # An expert saved in half precision holds the base's values rounded.
            if not torch.equal(ours.to(theirs.dtype), theirs):
                raise InputError(
                    f"{owner(expert, name)}: tensor {name!r}: differs from the base's; only the"
                    " vision tower is fused, so text tower and scale must be the base's"
                )


def pairs(
    base: Checkpoint, expert: Checkpoint
) -> Iterator[tuple[tuple[str, Tensor], tuple[str, Tensor]]]:
    """The base's and the expert's tensors of `expert.rest`, in step."""
    names = [name for name in base.rest if name in expert.rest]
    in_step = Checkpoint(**{**vars(expert), "rest": {name: expert.rest[name] for name in names}})
    return zip(read(base, names), read(in_step, names), strict=True)


def owner(checkpoint: Checkpoint, name: str) -> str:
    """Member and file, as messages begin."""
    infos: dict[str, TensorInfo] = {
        **checkpoint.tensors,
        **checkpoint.rest,
        **checkpoint.buffers,
    }
    return f"{checkpoint.name}: {infos[name].file}"
