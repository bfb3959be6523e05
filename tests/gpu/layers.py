"""Layers that read merged weights, forward and backward, against float64 on the CPU.

First each kind of layer and form of a product by itself; then whole models of each family, a loss
behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from fusion.merged_layers.functional import (
    merged_conv2d,
    merged_embedding,
    merged_linear,
    merged_norm,
    merged_table,
)
from fusion.task_vectors.lazy import Recomputed
from fusion.task_vectors.low_rank import LowRank, Zeros
from fusion.task_vectors.sparsify import Trim
from tests.gpu.families import ROLE, World
from tests.gpu.places import Place, distance
from tests.gpu.report import CHECKED, Found, Part, Row, within

TASKS, IN, OUT, TOKENS = 3, 24, 20, 7
MODELS = (1, 16, 64)
ROUGH = 1e-4
"""Relative L2 difference of outputs and gradients in float32."""

Move: TypeAlias = Callable[[Tensor], Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    """The same numbers for every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def forms() -> dict[str, tuple[Callable[[Move], object], str]]:
    """Name -> how task vectors [T, out, in] are given on a device, and the form of the product."""
    dense, down, up = normal(TASKS, OUT, IN, seed=1), normal(6, IN, seed=2), normal(OUT, 6)
    return {
        "A": (lambda move: move(dense), "A"),
        "B": (lambda move: move(dense), "B"),
        "auto": (lambda move: move(dense), "auto"),
        "remade": (lambda move: Recomputed(lambda: move(dense)), "A"),
        "factors": (lambda move: LowRank(move(down), move(up), (1, 2, 3)), "auto"),
        "none": (lambda move: Zeros(dense.shape, move(up).dtype, move(up).device), "auto"),
    }


def linear(move: Move, form: str, models: int) -> tuple[Tensor, ...]:
    """Output of a linear layer, and the gradients of its input and coding."""
    deltas, kind = forms()[form]
    x = move(normal(max(models, 4), TOKENS, IN, seed=3)).requires_grad_()
    c = move(normal(models, TASKS, seed=4)).requires_grad_()
    bias = merged_table(c, move(normal(OUT, seed=5)), move(normal(TASKS, OUT, seed=6)))
    y = merged_linear(x, c, move(normal(OUT, IN, seed=7)), deltas(move), bias, kind)
    y.square().sum().backward()
    assert x.grad is not None
    assert c.grad is not None
    return y, x.grad, c.grad


def others(move: Move) -> tuple[Tensor, ...]:
    """A convolution, an embedding and a norm of two models, and the gradient of their coding."""
    c = move(normal(2, TASKS, seed=4)).requires_grad_()
    images = move(normal(2, 3, 8, 8, seed=8))
    conv = merged_conv2d(
        images, c, move(normal(4, 3, 2, 2)), move(normal(TASKS, 4, 3, 2, 2, seed=1)), stride=(2, 2)
    )
    ids = move(torch.arange(5)[None])
    rows = merged_embedding(ids, c, move(normal(5, 4)), move(normal(TASKS, 5, 4, seed=2)))
    scale = merged_table(c, move(normal(4)), move(normal(TASKS, 4, seed=3)))
    normed = merged_norm(rows, scale, scale, 1e-5)
    (conv.square().sum() + normed.square().sum()).backward()
    assert c.grad is not None
    return conv, normed, c.grad


def wide(tensor: Tensor) -> Tensor:
    """In float64, on the CPU."""
    return tensor.double() if tensor.is_floating_point() else tensor.clone()


def alone(place: Place, layer: Callable[[Move], tuple[Tensor, ...]]) -> Found:
    """A layer there against float64."""
    found = layer(lambda tensor: tensor.clone().to(place.device))
    wanted = layer(wide)
    assert all(each.device.type == place.device for each in found)
    return within(max(map(distance, found, wanted)), ROUGH)


def of_layers(place: Place) -> Iterator[Row]:
    """Every form and number of models."""
    for form in forms():
        for models in MODELS:
            yield Row(
                f"linear, {form}, models: {models}",
                lambda form=form, models=models: alone(
                    place, lambda move: linear(move, form, models)
                ),
            )
    yield Row("convolution, embedding, norm", lambda: alone(place, others))


def whole(place: Place, world: World, models: int) -> Found:
    """Losses of a family's model, and the gradients of its codings, against float64."""
    given = world.micro_batch(models)
    exact = replace(given, coding=given.coding.double())
    [wanted] = world.exact.gradients([exact], ROLE, Trim())
    [found] = world.experts(place).gradients([given], ROLE, Trim())
    off = distance(found.coding, wanted.coding)
    loss = max(abs(found.losses[task] - each) for task, each in wanted.losses.items())
    return within(off, ROUGH, f"losses: {loss:.1e}") if loss <= ROUGH else within(loss, ROUGH)


def part(place: Place, worlds: dict[str, Callable[[], World]]) -> Part:
    """`worlds`: family -> makes its pool."""

    def rows() -> Iterator[Row]:
        yield from of_layers(place)
        for family, make in worlds.items():
            for models, said in ((1, "one model"), (2, "a model a row")):
                yield Row(
                    f"{family}, {said}",
                    lambda make=make, models=models: whole(place, make(), models),
                )

    note = "Largest relative L2 difference of outputs and gradients from float64 on the CPU."
    return Part("layers", CHECKED, 60, rows, note)
