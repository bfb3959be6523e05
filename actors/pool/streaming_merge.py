"""Merge checkpoints tensor by tensor from their files, in memory independent of their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier

import torch
from torch import Tensor

from actors.checkpoints.checkpoint import Checkpoint, TensorInfo, owner, read
from actors.checkpoints.lora_adapter import multiply, read_factors
from actors.files.file_ranges import fill, opened
from actors.pool.pool import Pool, one_thread
from fusion.errors import InputError, one_line
from fusion.task_vectors.task_vectors import accumulator, check_finite
from fusion.task_vectors.threads import SERIAL

CHUNK = 1 << 17
"""Elements mixed at a time: the sum, the base's part and an ingredient's (of float32, 512 KiB
each) stay in cache. Of fewer, threads wait for Python's lock more often than they read."""

Shares = Callable[[str], Sequence[float]]
"""Tensor name -> a coefficient a task vector."""


@dataclass(frozen=True)
class TensorSource:
    """One tensor of one member, in an open file."""

    member: Checkpoint
    name: str
    info: TensorInfo
    descriptor: int

    def load(self, into: memoryview, start: int = 0) -> None:
        """Read elements from `start` on into a buffer, as bytes.

        Raises:
            InputError: they cannot be read.
        """
        try:
            fill(into, self.descriptor, self.info.offset + start * self.info.dtype.itemsize)
        except (OSError, EOFError) as error:
            raise InputError(f"{owner(self.member, self.name)}: {one_line(error)}") from None


@dataclass(frozen=True)
class Product:
    """One tensor's task vector of an adapter, multiplied out in full: the bits of a part of the
    product could differ from those of the whole."""

    member: Checkpoint
    name: str
    product: Tensor


Term = tuple[TensorSource | Product, float]
"""An ingredient's tensor and its coefficient."""

Buffers = dict[tuple[str, torch.dtype], Tensor]
"""What one thread works in, by use and dtype: made once, since fresh memory costs page faults."""


@dataclass(frozen=True)
class Workers:
    """Threads in each of which torch uses one, and what each works in."""

    threads: ThreadPoolExecutor
    buffers: list[Buffers]


def streamed(
    pool: Pool, shares: Shares, *, scale: float = 1.0, results: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield θ_k = θ₀,k + scale·Σ_t c_tk τ_t,k for one tensor after the other.

    Each is rounded once, to `results` or, by default, to the dtype of the base's tensor. The bits
    equal those of `mix_tensor` on loaded task vectors.

    Memory: one tensor of the result, a few chunks for each thread and, for adapters, one tensor's
    task vectors. I/O: with m ingredients of non-zero share, (m + 1) tensors read and one written;
    files of ingredients with share 0 are not read.

    Raises:
        InputError: NaN or Inf, or an expert whose text tower differs from the base's, by file and
            tensor; a file that changed since it was inspected.
    """
    pool.family.check_unfused(pool.base, pool.experts.values())
    groups = set(pool.groups)
    files: dict[Path, int] = {}
    with ExitStack() as stack:
        workers = stack.enter_context(worker_threads())

        def source(member: Checkpoint, name: str) -> TensorSource:
            info = member.tensors[name]
            if info.file not in files:
                files[info.file] = stack.enter_context(opened(info.file, info.stamp, member.name))
            return TensorSource(member, name, info, files[info.file])

        def part(member: Checkpoint, name: str) -> TensorSource | Product:
            if name not in member.factors:
                return source(member, name)
            for info in member.parts(name):
                if info.file not in files:
                    files[info.file] = stack.enter_context(
                        opened(info.file, info.stamp, member.name)
                    )
            factors = dict(read_factors(member, [name]))[name]
            dtype = pool.delta_dtype(name)
            with one_thread():
                product = multiply(factors, torch.empty(pool.base.tensors[name].shape, dtype=dtype))
            return Product(member, name, product.view(-1))

        for name in pool.names:
            pairs = zip(pool.experts.values(), shares(name), strict=True) if name in groups else ()
            terms = [
                (part(expert, name), share)
                for expert, share in pairs
                if share and scale and expert.parts(name)
            ]
            kind = results if name in groups else None
            yield name, mixed(source(pool.base, name), terms, scale, workers, kind)


@contextmanager
def worker_threads() -> Iterator[Workers]:
    """A pool of as many Python threads as torch may use; torch uses one thread in each."""
    count = torch.get_num_threads()
    together = Barrier(count)

    def alone(_: int) -> None:
        together.wait()  # so that every thread is started and runs this
        torch.get_num_threads()  # initialises torch here, which would later reset the number
        torch.set_num_threads(1)

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(alone, range(count)))
        torch.set_num_threads(count)  # new threads inherit the number that was set last
        yield Workers(threads, [{} for _ in range(count)])


def mixed(
    origin: TensorSource,
    terms: Sequence[Term],
    scale: float,
    workers: Workers,
    results: torch.dtype | None = None,
) -> Tensor:
    """θ₀ + scale·Σ c (θ − θ₀) of one tensor, chunk by chunk; see `streamed`.

    Raises:
        InputError: NaN or Inf, by file and tensor.
    """
    if not terms:
        own = torch.empty(origin.info.shape, dtype=origin.info.dtype)
        origin.load(bytes_of(own.view(-1)))
        return own.to(results or own.dtype)
    out = torch.empty(origin.info.shape, dtype=results or origin.info.dtype)
    flat = out.view(-1)

    def work(span: slice, buffers: Buffers) -> bool:
        with torch.no_grad():  # gradient mode is set for each thread separately
            return mix_span(flat, span, origin, terms, scale, buffers)

    if flat.numel() <= SERIAL:
        sound = work(slice(0, flat.numel()), workers.buffers[0])
    else:
        step = -(-flat.numel() // len(workers.buffers))
        spans = [slice(at, min(at + step, flat.numel())) for at in range(0, flat.numel(), step)]
        sound = all(list(workers.threads.map(work, spans, workers.buffers)))
    if not sound:
        for source, who in ((origin, "base"), *((s, owner(s.member, s.name)) for s, _ in terms)):
            if isinstance(source, Product):
                found = source.product
            else:
                found = dict(read(source.member, [source.name]))[source.name]
            check_finite(found, source.name, who)
    return out


def mix_span(
    out: Tensor,
    span: slice,
    origin: TensorSource,
    terms: Sequence[Term],
    scale: float,
    buffers: Buffers,
) -> bool:
    """Compute the elements of one span of a flat tensor; returns whether their sum is finite."""
    kinds = {source.info.dtype for source, _ in terms if isinstance(source, TensorSource)}
    made = {source.product.dtype for source, _ in terms if isinstance(source, Product)}
    dtype = accumulator(origin.info.dtype, *kinds, *made)
    sound, size = True, 0
    for start in range(span.start, span.stop, CHUNK):
        if size != (left := min(CHUNK, span.stop - start)):  # the first and the last chunk
            size = left
            total = part_of(buffers, "sum", dtype, size)
            begin = part_of(buffers, "base", origin.info.dtype, size)
            rooms = {kind: part_of(buffers, "ingredient", kind, size) for kind in kinds}
            windows = {kind: bytes_of(room) for kind, room in rooms.items()}
        origin.load(bytes_of(begin), start)
        own = begin.to(dtype)
        for at, (source, share) in enumerate(terms):
            if isinstance(source, Product):
                moved = source.product[start : start + size]
            else:
                kind = source.info.dtype
                source.load(windows[kind], start)
                moved = rooms[kind].to(dtype).sub_(own)  # in place where dtypes agree
            if at:
                total.add_(moved, alpha=share)
            else:
                torch.mul(moved, share, out=total)
        part = out[start : start + size]
        torch.add(own, total, alpha=scale, out=part)
        sound = sound and bool(part.sum(dtype=torch.float32).isfinite())
    return sound


def part_of(buffers: Buffers, use: str, dtype: torch.dtype, size: int) -> Tensor:
    """The first `size` elements, at most CHUNK, of a thread's buffer for this use."""
    if (use, dtype) not in buffers:
        buffers[use, dtype] = torch.empty(CHUNK, dtype=dtype)
    return buffers[use, dtype][:size]


def bytes_of(tensor: Tensor) -> memoryview:
    """Writable memory of a flat tensor."""
    return tensor.view(torch.uint8).numpy().data
