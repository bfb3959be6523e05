"""NuSLERP: spherical interpolation of two models or task vectors, by tensor, row or column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.errors import InputError
from fusion.methods.geodesic.directions import PARALLEL, Of
from fusion.methods.geodesic.slerp import endpoints
from fusion.task_vectors.coding import Shares, linear_by_measure
from fusion.task_vectors.elementwise import rows_or_columns
from fusion.task_vectors.gram import tensor_gram
from fusion.task_vectors.task_vectors import TaskVectors, accumulator
from fusion.task_vectors.threads import in_threads

Granularity: TypeAlias = Literal["tensor", "row", "column"]

SHORTEST = 1e-7
"""mergekit's: shorter vectors are not brought to length 1."""


def nuslerp(
    vectors: TaskVectors,
    *,
    t: Annotated[float, Interval(ge=0, le=1)] = 0.5,
    experts: Sequence[str] | None = None,
    granularity: Granularity = "tensor",
    of: Of = "weights",
) -> dict[str, Tensor]:
    """NuSLERP: θ_v = (sin((1−t)Ω_v)·a_v + sin(tΩ_v)·b_v) / sinΩ_v, for each vector v of a tensor.

    a and b are two models, or two task vectors; Ω_v is the angle between a_v and b_v. If it is 0 or
    180 degrees up to rounding, interpolation is linear: (1−t)·a_v + t·b_v.

    Args:
        vectors: base and task vectors.
        t: position on the arc; 0 is the first model, 1 the second: mergekit's w_b/(w_a + w_b).
            Default 0.5, equal weights.
        experts: names of the two models; or one name, for base and expert (a = θ₀), if `of` is
            `weights`. Default: the two experts of the pool in their order, or the only one.
        granularity: `tensor` (default, mergekit's `nuslerp_flatten`): one vector a tensor. `row`:
            the vectors along the last axis, the weights of one output of a linear layer. `column`:
            along the first axis, the weights of one input (mergekit's `nuslerp_row_wise: true`).
        of: `weights` (default) interpolates the models' weights; `task_vectors` (mergekit with a
            base model) interpolates their task vectors and adds the base.

    Raises:
        InputError: an unknown expert; another number of experts than two (one or two of weights).

    A vector of length zero counts as orthogonal to every other, as in mergekit; `slerp` instead
    interpolates such tensors linearly, and is linear above |cosΩ| = 0.9995 too. Products are summed
    in float64, where mergekit sums in the models' dtype.

    Source: mergekit 0.1.4 (`nuslerp`); the arc is Shoemake's, 1985, Animating rotation with
    quaternion curves (SIGGRAPH).

    >>> experts = {"a": {"w": torch.eye(2)}, "b": {"w": torch.ones(2, 2)}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2, 2)}, experts)
    >>> [[round(x, 3) for x in row] for row in nuslerp(v, granularity="row")["w"].tolist()]
    [[1.082, 0.541], [0.541, 1.082]]
    """
    pair = endpoints(vectors.tasks, experts, "nuslerp")
    if of == "task_vectors" and None in pair:
        raise InputError("nuslerp: experts: one; two needed to interpolate task vectors")
    if granularity == "tensor":
        return by_tensor(vectors, pair, t, of)
    dim = 1 if granularity == "row" else 0

    def fill(name: str, out: Tensor) -> None:
        base, deltas = vectors.base[name], vectors.deltas[name]
        if not base.numel():
            return
        target = out.detach() if out.is_contiguous() else torch.empty_like(base)
        interpolate(target, base, [None if at is None else deltas[at] for at in pair], t, of, dim)
        if target.data_ptr() != out.data_ptr():
            out.copy_(target)

    return vectors.build(fill)


def by_tensor(
    vectors: TaskVectors, pair: Sequence[int | None], t: float, of: Of
) -> dict[str, Tensor]:
    """NuSLERP with one vector a tensor, from the Gram matrix of base and task vectors."""
    kept = [at for at in pair if at is not None]

    def products(name: str, deltas: Tensor) -> Tensor:
        return tensor_gram(deltas[kept], vectors.base[name])

    def shares(found: Tensor) -> Shares:
        ends = torch.zeros(2, len(found), dtype=torch.float64)  # coefficients of a and b
        ends[:, 0] = of == "weights"
        for row, at in zip(ends, pair, strict=True):
            if at is not None:
                row[1 + kept.index(at)] = 1.0
        squares = ends @ found @ ends.T
        weights = arc_weights(squares[0, 0], squares[1, 1], squares[0, 1], t)
        first, second, whole = (float(weight) for weight in weights)
        coefficients = [0.0] * len(vectors.tasks)
        for at, weight in zip(pair, (first, second), strict=True):
            if at is not None:
                coefficients[at] = weight
        return Shares(coefficients, base_scale=whole if of == "weights" else 1.0)

    return linear_by_measure(vectors, products, shares)


def arc_weights(
    first: Tensor, second: Tensor, dot: Tensor, t: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of a and b, and their sum, for some pairs of vectors: float64, of one shape.

    Args:
        first, second: squared lengths ‖a‖² and ‖b‖².
        dot: ⟨a, b⟩.
        t: position on the arc.
    """
    lengths = [square.clamp_min(0).sqrt().clamp_min(SHORTEST) for square in (first, second)]
    cosine = (dot / lengths[0] / lengths[1]).clamp(-1, 1)
    flat = 1 - cosine.abs() <= PARALLEL
    angle = cosine.arccos()
    sine = torch.where(flat, 1.0, angle.sin())
    one = torch.where(flat, 1 - t, ((1 - t) * angle).sin() / sine)
    other = torch.where(flat, t, (t * angle).sin() / sine)
    return one, other, torch.where(flat, 1.0, one + other)


def interpolate(
    out: Tensor,
    base: Tensor,
    deltas: Sequence[Tensor | None],
    t: float,
    of: Of,
    dim: int,
) -> None:
    """NuSLERP of one tensor by rows or columns, in chunks of whole vectors.

    Args:
        out: [*shape], contiguous, written to.
        base: θ₀ [*shape].
        deltas: τ [*shape] of a and b; None is the base itself.
        t: position on the arc.
        of: what is interpolated.
        dim: the axis of the vectors, once all other axes are one: 1 for rows, 0 for columns.
    """
    width = base.shape[-1] if base.ndim else 1
    shape = (-1, width) if dim == 1 or base.ndim < 2 else (base.shape[0], -1)
    axis = dim if base.ndim > 1 else 1  # a tensor of one axis is one vector
    target, origin = out.view(shape), base.reshape(shape)
    moves = [None if delta is None else delta.reshape(shape) for delta in deltas]
    dtype = accumulator(out.dtype, base.dtype, *(d.dtype for d in deltas if d is not None))

    def work(span: tuple[slice, slice]) -> None:
        start = origin[span].to(dtype)
        steps = [start * 0 if move is None else move[span].to(dtype) for move in moves]
        a, b = ((start + step if of == "weights" else step).double() for step in steps)
        first, second, dot = ((x * y).sum(axis, keepdim=True) for x, y in ((a, a), (b, b), (a, b)))
        weights = arc_weights(first, second, dot, t)
        one, other, whole = (weight.to(dtype) for weight in weights)
        merged = (one * steps[0]).addcmul_(other, steps[1])
        target[span] = merged.addcmul_(whole, start) if of == "weights" else merged.add_(start)

    in_threads(work, rows_or_columns(target, axis))
