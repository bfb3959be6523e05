"""A mix of checkpoints made tensor by tensor from their files, whatever the number of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from actors.checkpoints import read
from actors.pool import Pool, check_unfused, owner
from fusion.state import accumulator, check_finite
from fusion.threads import SERIAL, in_threads, portions

CHUNK = SERIAL
"""Elements mixed at a time: the sum, a difference and the base's part stay in a core's cache."""

Shares = Callable[[str], Sequence[float]]
"""Tensor name -> a coefficient a task vector."""


def streamed(pool: Pool, shares: Shares, *, scale: float = 1.0) -> Iterator[tuple[str, Tensor]]:
    """θ_k = θ₀,k + scale·Σ_t c_tk τ_t,k, one tensor after the other, in the base's dtype.

    The same bits as `mix_tensor` of loaded task vectors. What is held is one tensor of the result
    and a few chunks; files are memory-mapped, and those of ingredients without a share are not
    read. Moved: (m + 1) tensors read and one written, for m ingredients with a share.

    Raises:
        InputError: NaN or Inf, or an expert whose text tower is not the base's, by file and tensor.
    """
    check_unfused(pool)
    groups = set(pool.groups)
    opened: dict[str, Iterator[tuple[str, Tensor]]] = {}
    for name, origin in read(pool.base, pool.names):
        if name not in groups:
            yield name, origin.clone()
            continue
        terms = []
        for (task, expert), share in zip(pool.experts.items(), shares(name), strict=True):
            if not share or not scale or name not in expert.tensors:
                continue
            if task not in opened:
                later = [n for n in pool.names if n in expert.tensors]
                opened[task] = read(expert, later[later.index(name) :])
            found, tensor = next(opened[task])
            while found != name:
                found, tensor = next(opened[task])
            terms.append((tensor.view(-1), share, owner(expert, name)))
        yield name, mixed(name, origin, terms, scale)


def mixed(
    name: str, origin: Tensor, terms: Sequence[tuple[Tensor, float, str]], scale: float
) -> Tensor:
    """θ₀ + scale·Σ c (θ − θ₀) of one tensor, chunk by chunk, on all of torch's threads."""
    out = torch.empty_like(origin, memory_format=torch.contiguous_format)
    if not terms:
        return out.copy_(origin)
    base, target = origin.reshape(-1), out.view(-1)
    dtype = accumulator(origin.dtype, *(tensor.dtype for tensor, _, _ in terms))

    def work(span: slice) -> None:
        total = torch.empty(min(CHUNK, span.stop - span.start), dtype=dtype)
        moved, start_of = torch.empty_like(total), torch.empty_like(total)
        for start in range(span.start, span.stop, CHUNK):
            part = slice(start, min(start + CHUNK, span.stop))
            size = part.stop - part.start
            into, difference, own = total[:size], moved[:size], start_of[:size]
            own.copy_(base[part])
            for at, (tensor, share, _) in enumerate(terms):
                torch.sub(tensor[part].to(dtype), own, out=difference)
                if at:
                    into.add_(difference, alpha=share)
                else:
                    torch.mul(difference, share, out=into)
            torch.add(own, into, alpha=scale, out=target[part])

    in_threads(work, portions(base.numel(), CHUNK))
    if not bool(out.sum(dtype=torch.float32).isfinite()):
        check_finite(origin, name, "base")
        for tensor, _, who in terms:
            check_finite(tensor, name, who)
    return out
