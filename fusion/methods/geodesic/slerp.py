"""SLERP: spherical linear interpolation of two models, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.errors import InputError, unknown
from fusion.task_vectors.coding import Shares, linear_by_measure
from fusion.task_vectors.elementwise import flat_rows
from fusion.task_vectors.gram import tensor_gram
from fusion.task_vectors.task_vectors import TaskVectors
from fusion.task_vectors.threads import map_single_threaded, portions

EPSILON = 1e-8
"""FusionBench's epsilon: shorter vectors are not normalised."""

CHUNK = 1 << 16
"""Elements of the two models that are multiplied at a time on a CPU: 1 MiB of float64."""


def slerp(
    vectors: TaskVectors,
    *,
    t: Annotated[float, Interval(ge=0, le=1)] = 0.5,
    experts: Sequence[str] | None = None,
    threshold: Annotated[float, Interval(ge=0, le=1)] = 0.9995,
    compat: Literal["paper", "fusionbench"] = "paper",
) -> dict[str, Tensor]:
    """Spherical interpolation of two models: θ_k = (sin((1−t)Ω)·θ_a,k + sin(tΩ)·θ_b,k) / sinΩ.

    It interpolates weights, not task vectors, for each tensor k. Ω is the angle between θ_a,k and
    θ_b,k as vectors. If |cosΩ| > threshold, which is common for experts near their base,
    interpolation is linear: (1−t)·θ_a + t·θ_b. Products are summed in float64; half-precision
    weights are read as float32 and the result is rounded once.

    Args:
        vectors: base and task vectors.
        t: position on the arc; 0 is the first model, 1 the second. Default 0.5, FusionBench's.
        experts: names of the two models; or one name, for base and expert (θ₀, θ_a). Default: the
            two experts of the pool in their order, or the only one.
        threshold: |cosΩ| above which tensors count as parallel. Default 0.9995, FusionBench's.
        compat: treatment of tensors of (almost) no length, on which Shoemake has no rule, since
            they have no direction. `paper` (default) interpolates linearly if one is zero: a bias
            that is 0 in θ_a is t·θ_b. `fusionbench`, as mergekit, does not normalise vectors
            shorter than 1e-8, which makes Ω ≈ 90°: that bias is sin(t·90°)·θ_b, or 0.71 and not
            0.5 of θ_b at t = 0.5.

    Raises:
        InputError: an unknown expert; another number of experts than one or two.

    Source: Shoemake 1985, Animating rotation with quaternion curves (SIGGRAPH); for weights as in
    FusionBench.

    >>> experts = {"a": {"w": torch.tensor([1.0, 0.0])}, "b": {"w": torch.tensor([0.0, 1.0])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2)}, experts)
    >>> [round(x, 4) for x in slerp(v)["w"].tolist()]
    [0.7071, 0.7071]
    """
    pair = endpoints(vectors.tasks, experts)
    width = len(vectors.tasks)

    def products(name: str, deltas: Tensor) -> Tensor:
        return ends_gram(vectors.base[name], deltas, pair)

    def shares(found: Tensor) -> Shares:
        first, second, total = arc_weights(found, t, threshold, compat)
        coefficients = [0.0] * width
        for at, weight in zip(pair, (first, second), strict=True):
            if at is not None:
                coefficients[at] += weight
        return Shares(coefficients, base_scale=total)

    return linear_by_measure(vectors, products, shares)


def ends_gram(base: Tensor, deltas: Tensor, pair: Sequence[int | None]) -> Tensor:
    """Gram matrix [2, 2] float64 of the two models' weights, on their device.

    On a CPU the models are added up chunk by chunk, and the chunks' products are added exactly, so
    the bits do not depend on threads.
    """
    if base.device.type != "cpu":
        begin = base.to(deltas.dtype)
        return tensor_gram(
            torch.stack([begin if at is None else begin + deltas[at] for at in pair])
        )
    rows, origin = flat_rows(deltas), base.reshape(-1)

    def work(portion: slice) -> list[tuple[float, float, float]]:
        width = min(CHUNK, portion.stop - portion.start)
        wide = torch.empty(2, width, dtype=torch.float64)
        narrow, found = torch.empty(width, dtype=rows.dtype), []
        for at in range(portion.start, portion.stop, CHUNK):
            span = slice(at, min(at + CHUNK, portion.stop))
            a, b = wide[:, : span.stop - at]
            for end, task in zip((a, b), pair, strict=True):
                begin = origin[span]
                if task is not None:
                    begin = torch.add(begin, rows[task, span], out=narrow[: len(a)])
                end.copy_(begin)
            found.append((a.dot(a).item(), a.dot(b).item(), b.dot(b).item()))
        return found

    parts = [
        part for some in map_single_threaded(work, portions(len(origin), CHUNK)) for part in some
    ]
    first, both, second = (math.fsum(column) for column in zip((0.0,) * 3, *parts, strict=True))
    return torch.tensor([[first, both], [both, second]], dtype=torch.float64)


def endpoints(
    tasks: Sequence[str], experts: Sequence[str] | None, owner: str = "slerp"
) -> list[int | None]:
    """Positions of the two models on the T axis; None is the base.

    Args:
        tasks: names of the experts.
        experts: names of the two models, or of one; None: all of `tasks`.
        owner: name of the method, for messages.

    Raises:
        InputError: an unknown name; another number of names than one or two; a name twice.
    """
    names = list(tasks if experts is None else experts)
    for name in names:
        if name not in tasks:
            raise InputError(f"{owner}: experts: {unknown('expert', str(name), tasks)}")
    if len(names) not in (1, 2) or len(set(names)) != len(names):
        given = ", ".join(names) or "none"
        raise InputError(f"{owner}: experts: {given}; two names, or one to join with the base")
    places: list[int | None] = [list(tasks).index(name) for name in names]
    return places if len(places) == 2 else [None, *places]


def arc_weights(
    products: Tensor, t: float, threshold: float, compat: Literal["paper", "fusionbench"]
) -> tuple[float, float, float]:
    """Weights (first model, second model, their sum) from the Gram matrix [2, 2] of the two models.

    >>> arc_weights(torch.eye(2).double(), 1.0, 0.9995, "paper")[:2]
    (0.0, 1.0)
    """
    lengths = [math.sqrt(max(0.0, float(products[i, i]))) for i in (0, 1)]
    dot = float(products[0, 1])
    if compat == "fusionbench":
        cosine = dot
        for length in lengths:
            cosine /= length if length > EPSILON else 1.0
    else:
        cosine = dot / lengths[0] / lengths[1] if all(lengths) else 1.0
    if abs(cosine) > threshold or abs(cosine) >= 1.0:
        return 1 - t, t, 1.0
    angle = math.acos(cosine)
    first, second = (math.sin(part * angle) / math.sin(angle) for part in (1 - t, t))
    return first, second, first + second
