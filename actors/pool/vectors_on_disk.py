"""Task vectors that stay in files: θ_t − θ₀ of one tensor is computed whenever it is read.

Such a pool takes the memory of its base and of one tensor's T task vectors at a time, for any T; of
adapters, also their factors, which are small. The bits equal those of `pool.load_flat`: the same
subtraction, the same product.

An expert's file must not change after it was checked. Before a tensor is computed, its files are
checked: a file that is gone, was written to or was replaced is refused by name (`Vanished`). A
memory mapping would outlive a removed file, but not a restart of its process, so a removed file is
refused at once. A mix that gives an expert no share does not read it, so a greedy soup continues
without an ingredient that is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from actors.checkpoints.checkpoint import Checkpoint, Factors, owner, read
from actors.checkpoints.lora_adapter import multiply, read_factors
from actors.pool.pool import Found, Pool, check_once, in_step, names_of, one_thread
from actors.pool.vectors_in_memory import FlatVectors, allocate, lay_out, unflatten
from fusion.errors import Vanished
from fusion.task_vectors.lazy import LazyTensors
from fusion.task_vectors.task_vectors import TaskVectors, check_finite
from fusion.task_vectors.threads import SERIAL, in_threads

KEEP = "experts are read from their files all the time (placement.weights: files)"


@dataclass(frozen=True)
class FileStamp:
    """Size, time and inode by which a file is recognised."""

    size: int
    """Bytes."""
    modified: int
    """Nanoseconds, of the file's node."""
    inode: int
    """Another one: replaced by another file, whatever its times say."""


@dataclass(frozen=True, eq=False)
class OnDiskVectors:
    """A block's base in memory and the paths of its experts: sent to shards instead of weights."""

    flat: FlatVectors
    """The base alone."""
    experts: Mapping[str, Checkpoint]
    """Fixes the T axis."""
    kinds: Mapping[str, torch.dtype]
    """Floating-point tensor -> what its task vectors are made in."""
    stamps: Mapping[Path, FileStamp]
    """Of the experts' files, as they were checked."""
    node: str = ""
    """Address of the node that checked them."""


def filed_vectors(pool: Pool) -> TaskVectors:
    """Task vectors of a pool in this process without loading them; numbers as `pool.task_vectors`.

    Raises:
        InputError: see `file_vectors` and `opened_vectors`.
    """
    vectors = opened_vectors(file_vectors(pool))
    return vectors if pool.deltas == "float32" else vectors.altered(lambda _, delta: rounded(delta))


def rounded(delta: Tensor) -> Tensor:
    """Task vectors as they are read if they are kept in bfloat16; float64 ones are not."""
    return delta.bfloat16().float() if delta.dtype == torch.float32 else delta


def file_vectors(
    pool: Pool,
    *,
    only: Collection[str] | None = None,
    advance: Callable[[int], None] | None = None,
    node: str = "",
) -> OnDiskVectors:
    """Read and check base and experts once, tensor by tensor, and keep the base.

    Args:
        pool: an opened pool.
        only: the tensors of one shard; None: all of `pool.names`.
        advance: called with the bytes of experts read since the last call.
        node: address of this node, if there are several.

    Raises:
        InputError: any refusal of `load_flat`; a file that is gone.
    """
    names = names_of(pool, only)
    files = {
        (task, info.file): None
        for task, expert in pool.experts.items()
        for name in names
        for info in expert.parts(name)
    }
    stamps = {file: stamp_of(file, task, pool.experts[task].name, node) for task, file in files}
    check_once(pool, only)
    infos = {name: pool.base.tensors[name] for name in names}
    flat = allocate(
        pool.tasks, lay_out({name: (info.shape, info.dtype, None) for name, info in infos.items()})
    )
    base = unflatten(flat).base
    with one_thread():
        for name, origin, theirs in in_step(pool, names):
            check_finite(origin, name, owner(pool.base, name))
            base[name].copy_(origin)
            for expert, found in zip(pool.experts.values(), theirs, strict=True):
                if isinstance(found, Factors):
                    room = torch.empty(infos[name].shape, dtype=pool.delta_dtype(name))
                    check_finite(multiply(found, room), name, owner(expert, name))
                elif found is not None:
                    check_finite(found, name, owner(expert, name))
                if advance is not None:
                    advance(sum(info.nbytes for info in expert.parts(name)))
    kinds = {name: kind for name in names if (kind := pool.delta_dtype(name)) is not None}
    return OnDiskVectors(flat, pool.experts, kinds, stamps, node)


def opened_vectors(
    filed: OnDiskVectors, device: str | torch.device = "cpu", node: str = ""
) -> TaskVectors:
    """Task vectors that are computed from their files at every access; the base on `device`.

    Args:
        filed: the result of `file_vectors`, from this node or another.
        device: where computed task vectors are put.
        node: address of this node.

    Raises:
        InputError: this node sees none of the experts' files. If it lacks some, or has others than
            were checked, reading one of their tensors raises `Vanished`. On another node than the
            one that checked the files, only sizes are compared, and that files stay the same.
    """
    sources = [ExpertFiles(task, expert, filed, node) for task, expert in filed.experts.items()]
    if not any(source.there() for source in sources):
        sources[0].check()
    origins = unflatten(filed.flat).base
    shapes = {name: (len(sources), *origins[name].shape) for name in filed.kinds}

    def part(name: str, used: Sequence[bool]) -> Tensor:
        found = [
            source.read(name) if use else None for source, use in zip(sources, used, strict=True)
        ]
        with torch.inference_mode(False):  # inference mode is set for each thread separately
            made = torch.empty(shapes[name], dtype=filed.kinds[name])
            in_threads(lambda t: difference(found[t], origins[name], made[t]), range(len(found)))
        return made.to(device)

    def make(name: str) -> Tensor:
        return part(name, [True] * len(sources))

    def outline(name: str) -> Tensor:
        return torch.empty(shapes[name], dtype=filed.kinds[name], device="meta")

    base = origins if str(device) == "cpu" else unflatten(filed.flat, device).base
    return TaskVectors(filed.flat.tasks, base, LazyTensors(filed.kinds, make, outline, part))


class ExpertFiles:
    """One expert's files, mapped at the first read, and checked at every read."""

    def __init__(self, task: str, expert: Checkpoint, filed: OnDiskVectors, node: str) -> None:
        self.task, self.expert, self.node = task, expert, node
        self.names = [name for name in filed.kinds if expert.parts(name)]
        files = dict.fromkeys(info.file for name in self.names for info in expert.parts(name))
        self.stamps = {file: filed.stamps[file] for file in files}
        self.trusted = node == filed.node
        """Whether times and inodes are those of this node's files."""
        self.mapped: dict[str, Tensor | Factors] = {}

    def there(self) -> bool:
        """Whether this node has all the files, checked or not."""
        return all(file.exists() for file in self.stamps)

    def check(self) -> None:
        """Raise Vanished where a file is gone or has changed."""
        for file, was in self.stamps.items():
            stamp = stamp_of(file, self.task, self.expert.name, self.node)
            if (stamp != was) if self.trusted else (stamp.size != was.size):
                raise Vanished(
                    self.task,
                    f"{self.expert.name}: {file}: not the file that was checked at the start"
                    f"{on(self.node)}: it was written to or replaced; {KEEP}: start anew",
                )
            self.stamps[file] = stamp
        self.trusted = True

    def read(self, name: str) -> Found:
        """A tensor, memory-mapped, or factors; None where the expert has no tensor of that name.

        Raises:
            Vanished: see `check`.
        """
        if not self.expert.parts(name):
            return None
        self.check()
        if not self.mapped:
            self.mapped = {
                **dict(read(self.expert, self.names, strict=False)),  # checked by `check`
                **dict(read_factors(self.expert, self.names, strict=False)),
            }
        return self.mapped[name]


def difference(tensor: Found, base: Tensor, out: Tensor) -> None:
    """out = tensor − base in the dtype of `out`, on the calling thread.

    Factors are multiplied first; None gives 0.
    """
    if tensor is None:
        out.zero_()
        return
    if isinstance(tensor, Factors):
        multiply(tensor, out)
        return
    flat, origin, target = tensor.view(-1), base.view(-1), out.view(-1)
    for start in range(0, flat.numel(), SERIAL):
        part = slice(start, start + SERIAL)
        torch.sub(flat[part].to(out.dtype), origin[part].to(out.dtype), out=target[part])


def stamp_of(file: Path, task: str, member: str, node: str) -> FileStamp:
    """Size, time and inode of a file now.

    Raises:
        Vanished: the file is gone.
    """
    try:
        about = file.stat()
    except OSError as error:
        raise Vanished(
            task,
            f"{member}: {file}: {error.strerror}{on(node)}; {KEEP}: they must stay where they are,"
            " on every node that computes",
        ) from None
    return FileStamp(about.st_size, about.st_mtime_ns, about.st_ino)


def on(node: str) -> str:
    """Suffix of messages, ` (node 10.0.0.2)`; empty where there is only one node."""
    return f" (node {node})" if node else ""
