"""Codings (coefficients of task vectors) and the kernel that merges weights with them.

Axes: B samples, M models (1: one static model), T tasks, G groups of tensors that share a
coefficient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.staging import sent
from fusion.task_vectors.lazy import as_stored, for_mixing
from fusion.task_vectors.low_rank import LowRank, Zeros
from fusion.task_vectors.packed import ENTRIES, joined, on_gpu, pieces, spanned
from fusion.task_vectors.task_vectors import StateDict, TaskVectors, accumulator, block_of

Coding: TypeAlias = Tensor
"""Coefficients [M, T, G] of the task vectors for B samples. M = 1: one static model; M = B: one
model a sample; else each model takes B/M consecutive samples. G = 1: task-wise; G = number of
floating-point tensors: layer-wise."""

CONTIGUOUS = torch.contiguous_format

CHUNK = 1 << 20
"""Elements merged at a time on a CPU: 4 MiB of float32, so that the running sum stays in cache.
Smaller chunks are no faster on an idle machine, and slower on a busy one, because torch's threads
wait for each other at each operation."""


def one_hot(tasks: Sequence[str], task: str) -> Coding:
    """One-hot coding [1, T, 1], whose merged model is the expert `task`; float32.

    Raises:
        ValueError: `task` is not one of `tasks`.

    >>> one_hot(("a", "b"), "b").flatten().tolist()
    [0.0, 1.0]
    """
    coding = torch.zeros(1, len(tasks), 1)
    coding[0, tasks.index(task), 0] = 1.0
    return coding


def selected_expert(coding: Coding) -> int | None:
    """Index of the expert that a one-hot coding selects; None for any other coding.

    >>> selected_expert(one_hot(("a", "b"), "b")), selected_expert(torch.full((1, 2, 1), 0.5))
    (1, None)
    """
    if coding.shape[0] != 1:
        return None
    at = int(coding[0, :, 0].argmax())
    hot = torch.zeros_like(coding)
    hot[:, at] = 1.0
    return at if torch.equal(coding, hot) else None


def is_largest(coding: Coding, task: int) -> Tensor:
    """Whether the mean over groups of a task's coefficients is above that of every other task.

    Args:
        coding: [B, T, G].
        task: index on the axis T.

    Returns:
        bool [B]; False where another task's mean is equal, or a mean is NaN.

    >>> is_largest(torch.tensor([[[0.1], [0.3]], [[0.3], [0.3]]]), 1).tolist()
    [True, False]
    """
    means = coding.mean(dim=2)
    others = means.clone()
    others[:, task] = -torch.inf
    return means[:, task] > others.amax(dim=1)


def mix(vectors: TaskVectors, coding: Coding) -> dict[str, Tensor]:
    """Merge with a static coding [1, T, G]: θ_k = θ₀,k + Σ_t c_{t,g(k)} τ_{t,k}.

    Args:
        vectors: base and task vectors.
        coding: G = 1 is one coefficient for each task. G = number of floating-point tensors of the
            whole model is one for each task and tensor, in the order of `vectors.groups`.

    Returns:
        The merged state dict.

    Raises:
        InputError: a coding of another shape.
    """
    tasks, groups = len(vectors.tasks), len(vectors.groups)
    if coding.ndim != 3 or coding.shape[:2] != (1, tasks):
        raise InputError(f"coding: shape {list(coding.shape)}; [1, {tasks}, G] needed")
    if coding.shape[2] not in (1, groups):
        raise InputError(f"coding: {coding.shape[2]} groups; 1 or {groups} (tensors) allowed")
    columns = coding[0].T.tolist()  # [G][T], as Python floats: exact, and no host sync in the loop
    if len(columns) == 1:
        columns *= groups
    column = dict(zip(vectors.groups, columns, strict=True))
    return linear(vectors, lambda name: Shares(column[name]), factors=True)


@dataclass(frozen=True)
class Shares:
    """Weights of one tensor's merge: θ = s₀·θ₀ + scale·Σ_t c_t τ_t."""

    coefficients: Sequence[float]
    """c_t, T numbers."""
    scale: float = 1.0
    base_scale: float = 1.0
    """s₀."""

    @property
    def key(self) -> tuple[object, ...]:
        """The same numbers, hashable."""
        return tuple(self.coefficients), self.scale, self.base_scale


def linear(
    vectors: TaskVectors, shares: Callable[[str], Shares], *, factors: bool = False
) -> dict[str, Tensor]:
    """Merge every tensor by weights of its own; `shares` maps its name to them.

    Task vectors that are kept as low-rank factors are summed as factors if `factors` is true, and
    multiplied out one by one otherwise (default). The two differ by rounding.

    On a CPU tensor by tensor (`mix_tensor`). On a GPU, packed tensors with equal weights are one
    matrix-vector product; if each tensor has its own weights, the equal tensors of all blocks (the
    query matrices of all layers, say) are one batched product. The sum over tasks may then be made
    in another order than on a CPU.
    """
    stored = as_stored(vectors.deltas)
    if on_gpu(stored):
        return linear_on_gpu(vectors, shares)

    def fill(name: str, out: Tensor) -> None:
        mine = shares(name)
        deltas = for_mixing(stored, name, mine.coefficients, factors)
        mix_tensor(
            out, vectors.base[name], deltas, mine.coefficients,
            scale=mine.scale, base_scale=mine.base_scale,
        )  # fmt: skip

    return vectors.build(fill)


def linear_by_measure(
    vectors: TaskVectors,
    measure: Callable[[str, Tensor], Tensor],
    shares: Callable[[Tensor], Shares],
) -> dict[str, Tensor]:
    """Merge every tensor by weights that depend on a measurement of its task vectors.

    On a GPU all tensors are measured first, so that the host waits once.

    Args:
        vectors: base and task vectors.
        measure: (name, τ [T, *shape]) -> a tensor of one shape for all names, on their device.
        shares: the measurement, on the CPU -> the weights.
    """
    if on_gpu(as_stored(vectors.deltas)):
        found = [measure(name, delta) for name, delta in vectors.deltas.items()]
        rows = torch.stack(found).cpu()
        made = {name: shares(row) for name, row in zip(vectors.deltas, rows, strict=True)}
        return linear_on_gpu(vectors, made.__getitem__)

    def fill(name: str, out: Tensor) -> None:
        deltas = vectors.deltas[name]
        mine = shares(measure(name, deltas))
        mix_tensor(
            out, vectors.base[name], deltas, mine.coefficients,
            scale=mine.scale, base_scale=mine.base_scale,
        )  # fmt: skip

    return vectors.build(fill)


def linear_on_gpu(vectors: TaskVectors, shares: Callable[[str], Shares]) -> dict[str, Tensor]:
    """See `linear`."""
    deltas = as_stored(vectors.deltas)
    names = [name for name in vectors.base if name in vectors.deltas]
    mine = {name: shares(name) for name in names}
    table = [[mine[name].scale * c for c in mine[name].coefficients] for name in names]
    bases = [mine[name].base_scale for name in names]
    same = {name: (tuple(row), s0) for name, row, s0 in zip(names, table, bases, strict=True)}
    place = {name: index for index, name in enumerate(names)}

    def fill(outs: StateDict) -> None:
        sources: list[Mapping[str, Tensor]] = [vectors.base, deltas, outs]
        for run in joined(names, sources, dict.fromkeys(names)):
            span = slice(place[run[0]], place[run[-1]] + 1)
            out, base = spanned(outs, run), spanned(vectors.base, run)
            rows = spanned(deltas, run, 1)
            if len({same[name] for name in run}) == 1:
                product(out, base, rows, table[span.start], bases[span.start])
                continue
            dtype = accumulator(out.dtype, base.dtype, rows.dtype)
            weights = sent(torch.tensor(table[span], dtype=dtype), out.device)
            scales = sent(torch.tensor(bases[span], dtype=dtype), out.device)
            ones = all(scale == 1 for scale in bases[span])
            for at, part in progressions(run, [vectors.base[name].numel() for name in run]):
                batched_product(
                    part(out), part(base), part(rows), weights[at], None if ones else scales[at]
                )

    return vectors.build_whole(fill)


def product(
    out: Tensor, base: Tensor, rows: Tensor, coefficients: Sequence[float], base_scale: float
) -> None:
    """out [n] = s₀·θ₀ [n] + Σ_t c_t τ_t [T, n], on a GPU; tasks without a share are not read."""
    used = [t for t, c in enumerate(coefficients) if c]
    if not used:
        out.copy_(base if base_scale == 1 else base * base_scale)
        return
    if len(used) == 1 and base_scale == 1:
        torch.add(base, rows[used[0]], alpha=coefficients[used[0]], out=out)
        return
    dtype = accumulator(out.dtype, base.dtype, rows.dtype)
    part = slice(used[0], used[-1] + 1)
    rows, weights = rows[part], sent(torch.tensor(coefficients[part], dtype=dtype), out.device)
    if out.dtype == base.dtype == rows.dtype == dtype:
        torch.addmv(base, rows.T, weights, beta=base_scale, out=out)
        return
    for span in pieces(len(base), len(rows)):
        total = torch.mv(rows[:, span].to(dtype).T, weights)
        torch.add(total, base[span].to(dtype), alpha=base_scale, out=out[span])


def batched_product(
    out: Tensor, base: Tensor, rows: Tensor, weights: Tensor, scales: Tensor | None
) -> None:
    """out [L, n] = s₀ [L]·θ₀ [L, n] + Σ_t c [L, T]·τ [T, L, n] for L tensors, on a GPU."""
    dtype, batch = weights.dtype, weights[:, None]
    if scales is None and out.dtype == base.dtype == rows.dtype == dtype:
        torch.baddbmm(base[:, None], batch, rows.transpose(0, 1), out=out[:, None])
        return
    step = max(1, ENTRIES // max(1, rows.shape[0] * rows.shape[1]))
    for start in range(0, out.shape[1], step):
        span = slice(start, start + step)
        total = torch.bmm(batch, rows[..., span].to(dtype).transpose(0, 1))[:, 0]
        origin = base[:, span].to(dtype)
        if scales is not None:
            origin = origin * scales[:, None]
        torch.add(total, origin, out=out[:, span])


Cut: TypeAlias = Callable[[Tensor], Tensor]
"""[…, n] -> […, L, m]: L tensors of m elements of a run, at equal distances."""


def progressions(names: Sequence[str], sizes: Sequence[int]) -> Iterator[tuple[slice, Cut]]:
    """Split a run into its tensors, the same tensor of equal blocks at a time.

    Yields positions in `names`, and the function that cuts these tensors out of the run.
    """
    starts = [0, *accumulate(sizes)]
    kinds: dict[tuple[str, int], list[int]] = {}
    for at, (name, size) in enumerate(zip(names, sizes, strict=True)):
        kinds.setdefault((name.removeprefix(block_of(name)), size), []).append(at)
    for found in kinds.values():
        even = (
            len({b - a for a, b in pairwise(found)}) == 1
            and len({starts[b] - starts[a] for a, b in pairwise(found)}) == 1
        )
        for group in [found] if even else [[at] for at in found]:
            hop = group[1] - group[0] if len(group) > 1 else 1
            first, size = starts[group[0]], sizes[group[0]]
            jump = starts[group[1]] - first if len(group) > 1 else max(1, size)
            if size:
                stop = starts[group[-1]] + size
                yield slice(group[0], group[-1] + 1, hop), partial(cut, first, stop, size, jump)


def cut(first: int, stop: int, size: int, jump: int, run: Tensor) -> Tensor:
    """Elements [first, stop) of a run [..., n] as windows [..., L, size], `jump` apart."""
    return run[..., first:stop].unfold(-1, size, jump)


def leaves(names: tuple[str, ...], groups: tuple[str, ...], coding: Tensor) -> dict[str, Tensor]:
    """Split a coding into one autograd leaf for each tensor: name -> its column [M, T].

    Gradients are then summed column by column in a fixed order, so their bits do not depend on how
    a model is split into shards.

    Args:
        names: the tensors, for instance of one shard.
        groups: all floating-point tensors of the model, in order.
        coding: [M, T, G], with G = 1 or the number of `groups`.
    """
    shared = coding.shape[2] == 1
    at = {name: index for index, name in enumerate(groups)}
    columns = coding.detach().movedim(2, 0).contiguous()  # copied once; leaves are views of it
    return {name: columns[0 if shared else at[name]].detach().requires_grad_() for name in names}


def check_coding(coding: Tensor, tasks: int, groups: int, batch: int) -> None:
    """Raise InputError if a coding does not fit T task vectors, G groups and a batch of B rows.

    Each of its M models takes B/M consecutive rows.
    """
    fits = coding.ndim == 3 and coding.shape[1] == tasks and coding.shape[2] in (1, groups)
    if not fits or not divides(coding.shape[0], batch):
        raise InputError(
            f"coding: shape {list(coding.shape)}; [a divisor of {batch}, {tasks}, 1 or {groups}]"
            " needed"
        )


def divides(models: int, rows: int) -> bool:
    """Whether rows can be dealt to models evenly; one model takes any number."""
    return models == 1 or (models > 0 and rows > 0 and rows % models == 0)


def mix_tensor(
    out: Tensor,
    base: Tensor,
    deltas: Tensor | LowRank | Zeros,
    coefficients: Sequence[float],
    *,
    scale: float = 1.0,
    base_scale: float = 1.0,
) -> None:
    """Merge one tensor: out = s₀·θ₀ + scale·Σ_t c_t τ_t. The kernel of all static merges.

    The sum is made in the accumulation dtype (`accumulator`). The base is added last, and the
    result is rounded once to the dtype of `out`. The tensor is processed in chunks, so each operand
    is read once and the result is written once: (T + 2)·numel elements, the minimum for a merge.
    Task vectors with coefficient zero are not read.

    Args:
        out: [*shape], written to.
        base: θ₀ [*shape].
        deltas: τ [T, *shape]. For low-rank factors the sum is one matrix product (`LowRank.mixed`),
            which is added to the base like one task vector.
        coefficients: T numbers.
        scale: multiplies the sum. Default 1.
        base_scale: s₀. Default 1.
    """
    if isinstance(deltas, LowRank) and any(coefficients):
        wide = accumulator(out.dtype, base.dtype, deltas.dtype)
        deltas, coefficients = deltas.mixed(coefficients, wide)[None], [1.0]
    elif not isinstance(deltas, Tensor):
        deltas, coefficients = torch.empty(0, *base.shape, dtype=deltas.dtype), []
    terms = [
        (row.reshape(-1), c)  # a view where the row is contiguous, as the rows of an arena are
        for row, c in zip(deltas, coefficients, strict=True)
        if c and scale
    ]
    if not terms and base_scale == 1.0:
        out.copy_(base)
        return
    dtype = accumulator(out.dtype, base.dtype, deltas.dtype)
    target = (
        out.detach() if out.is_contiguous() else torch.empty_like(out, memory_format=CONTIGUOUS)
    )
    flat, origin = target.view(-1), base.reshape(-1)
    size = flat.numel()
    step = CHUNK if out.device.type == "cpu" else max(size, 1)
    scratch = torch.empty(min(step, size), dtype=dtype, device=out.device)
    for start in range(0, size, step):
        span = slice(start, min(start + step, size))
        total = scratch[: span.stop - start]
        add_up(total, [(row[span], c) for row, c in terms])
        chunk = origin[span].to(dtype)
        if base_scale != 1.0:
            chunk = chunk * base_scale
        torch.add(chunk, total, alpha=scale, out=flat[span])
    if not out.is_contiguous():
        out.copy_(target)


def add_up(total: Tensor, terms: Sequence[tuple[Tensor, float]]) -> None:
    """total = Σ c·row for one chunk, in the dtype of `total`; zero if there are no terms."""
    if not terms:
        total.zero_()
        return
    (first, c), *rest = terms
    torch.mul(first.to(total.dtype), c, out=total)
    for row, c in rest:
        total.add_(row, alpha=c)
