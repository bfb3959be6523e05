"""A mix of checkpoints made tensor by tensor from their files, whatever the number of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier

import torch
from torch import Tensor

from actors.checkpoints import Checkpoint, TensorInfo, one_line, read
from actors.pool import Pool, check_unfused, owner
from actors.spans import fill, opened
from fusion.errors import InputError
from fusion.state import accumulator, check_finite
from fusion.threads import SERIAL, portions

CHUNK = 1 << 16
"""Elements mixed at a time: the sum, the base's part and an ingredient's (of float32, 256 KiB
each) stay in a core's cache. Fewer, and threads wait for Python's lock; more, and for memory."""

Shares = Callable[[str], Sequence[float]]
"""Tensor name -> a coefficient a task vector."""


@dataclass(frozen=True)
class Source:
    """One tensor of one member, in an open file."""

    member: Checkpoint
    name: str
    info: TensorInfo
    descriptor: int

    def load(self, into: memoryview, start: int = 0) -> None:
        """Elements from `start` on, as bytes.

        Raises:
            InputError: they cannot be read.
        """
        try:
            fill(into, self.descriptor, self.info.offset + start * self.info.dtype.itemsize)
        except (OSError, EOFError) as error:
            raise InputError(f"{owner(self.member, self.name)}: {one_line(error)}") from None


Term = tuple[Source, float]
"""An ingredient's tensor and its coefficient."""


def streamed(pool: Pool, shares: Shares, *, scale: float = 1.0) -> Iterator[tuple[str, Tensor]]:
    """θ_k = θ₀,k + scale·Σ_t c_tk τ_t,k, one tensor after the other, in the base's dtype.

    The same bits as `mix_tensor` of loaded task vectors. What is held is one tensor of the result
    and a few chunks a thread; files of ingredients without a share are not read. Moved: (m + 1)
    tensors read and one written, for m ingredients with a share.

    Raises:
        InputError: NaN or Inf, or an expert whose text tower is not the base's, by file and tensor;
            a file that changed since it was inspected.
    """
    check_unfused(pool)
    groups = set(pool.groups)
    files: dict[Path, int] = {}
    with ExitStack() as stack:
        threads = stack.enter_context(crew())

        def source(member: Checkpoint, name: str) -> Source:
            info = member.tensors[name]
            if info.file not in files:
                files[info.file] = stack.enter_context(opened(info.file, info.stamp, member.name))
            return Source(member, name, info, files[info.file])

        for name in pool.names:
            pairs = zip(pool.experts.values(), shares(name), strict=True) if name in groups else ()
            terms = [
                (source(expert, name), share)
                for expert, share in pairs
                if share and scale and name in expert.tensors
            ]
            yield name, mixed(source(pool.base, name), terms, scale, threads)


@contextmanager
def crew() -> Iterator[ThreadPoolExecutor]:
    """As many Python threads as torch may use, in each of which torch uses one."""
    count = torch.get_num_threads()
    together = Barrier(count)

    def alone(_: int) -> None:
        together.wait()  # so that each of the threads is started and comes here
        torch.get_num_threads()  # makes torch's own threads of this one, which would else reset it
        torch.set_num_threads(1)

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(alone, range(count)))
        torch.set_num_threads(count)  # what was set is also what new threads begin with
        yield threads


def mixed(
    origin: Source, terms: Sequence[Term], scale: float, threads: ThreadPoolExecutor
) -> Tensor:
    """θ₀ + scale·Σ c (θ − θ₀) of one tensor, chunk by chunk; in the base's dtype.

    Raises:
        InputError: NaN or Inf, by file and tensor.
    """
    out = torch.empty(origin.info.shape, dtype=origin.info.dtype)
    flat = out.view(-1)
    if not terms:
        origin.load(bytes_of(flat))
        return out

    def work(span: slice) -> bool:
        with torch.no_grad():  # the mode is each thread's own
            return mix_span(flat, span, origin, terms, scale)

    if flat.numel() <= SERIAL:
        sound = work(slice(0, flat.numel()))
    else:
        sound = all(list(threads.map(work, portions(flat.numel(), SERIAL >> 3))))
    if not sound:
        for source, who in ((origin, "base"), *((s, owner(s.member, s.name)) for s, _ in terms)):
            check_finite(dict(read(source.member, [source.name]))[source.name], source.name, who)
    return out


def mix_span(out: Tensor, span: slice, origin: Source, terms: Sequence[Term], scale: float) -> bool:
    """The elements of one span of a flattened tensor; whether their sum is a number."""
    dtypes = {source.info.dtype for source in (origin, *(source for source, _ in terms))}
    dtype = accumulator(*dtypes)
    most = min(CHUNK, span.stop - span.start)
    started, total = torch.empty(most, dtype=origin.info.dtype), torch.empty(most, dtype=dtype)
    room = {kind: torch.empty(most, dtype=kind) for kind in dtypes}
    sound = True
    for start in range(span.start, span.stop, CHUNK):
        size = min(CHUNK, span.stop - start)
        if start == span.start or size < most:
            started, total = started[:size], total[:size]
            room = {kind: tensor[:size] for kind, tensor in room.items()}
            window = {kind: bytes_of(tensor) for kind, tensor in room.items()}
            begin = bytes_of(started)
        origin.load(begin, start)
        own = started.to(dtype)
        for at, (source, share) in enumerate(terms):
            kind = source.info.dtype
            source.load(window[kind], start)
            moved = room[kind].to(dtype).sub_(own)  # in place where dtypes agree: one buffer less
            if at:
                total.add_(moved, alpha=share)
            else:
                torch.mul(moved, share, out=total)
        part = out[start : start + size]
        torch.add(own, total, alpha=scale, out=part)
        sound = sound and bool(part.sum(dtype=torch.float32).isfinite())
    return sound


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a flat tensor, to be written to."""
    return tensor.view(torch.uint8).numpy().data
