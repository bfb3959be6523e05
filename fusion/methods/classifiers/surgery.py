"""Representation Surgery: a small module for each task repairs the outputs of a merged model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn.functional import l1_loss, linear

from fusion.errors import InputError
from fusion.logits.head import Head
from fusion.logits.optimize import draw
from fusion.methods.classifiers.interface import MERGED, Embedded, Fit, TaskEmbeddings, scalar


def surgery(
    data: TaskEmbeddings,
    *,
    of: str | Mapping[str, Any] = "task_arithmetic",
    rank: Annotated[int, Interval(ge=1)] = 16,
    learning_rate: Annotated[float, Interval(gt=0)] = 1e-3,
    steps: Annotated[int, Interval(ge=0)] = 1000,
    batch_size: Annotated[int, Interval(ge=1)] = 16,
    seed: Annotated[int, Interval(ge=0)] = 0,
) -> Fit:
    """Representation Surgery: Ẑ = Z − W_up·ReLU(W_down·Z), for each task, after any merge.

    Z [D] is the output of the merged model before the head. W_down [r, D] and W_up [D, r] are
    learned for each task, with Adam on mean |Ẑ − Z_t|, where Z_t is the output of the task's own
    expert on the same row. No labels are read. All tasks share one merged model; of each row it
    must be known which task it is of.

    Args:
        data: outputs of the merged model and of the task's expert.
        of: the method that merges: its name, or a mapping of it to its parameters, which may hold
            search spaces. Any method that merges weights alone into one model. Default: task
            arithmetic.
        rank: r. Default 16, the released code's.
        learning_rate: Adam's, constant. Default 1e-3, the released code's.
        steps: default 1000: 500 iterations of two batches in the released code.
        batch_size: rows in a step. Default 16, the released code's.
        seed: of the drawn rows and of the initial W_down.

    W_up starts at 0, so that 0 steps give the merged model; W_down at uniform numbers in ±1/√D.
    Deviations: rows are of the fit split; the paper adapts to the test split. Outputs are computed
    once, not in each step. Modules of several tasks are learned one after the other, which makes no
    difference, since they share no parameter.

    Raises:
        InputError: no expert has the task's name; a loss that is not finite.

    Source: Yang et al. 2024, arXiv:2402.02705 (ICML 2024), §4.2; code:
    github.com/EnnengYang/RepresentationSurgery.
    """
    if data.task not in data.experts:
        experts = ", ".join(data.experts)
        raise InputError(f"surgery: task {data.task!r}: no expert of its name; experts: {experts}")
    given, wanted = (data.embedded(source, "fit", None) for source in (MERGED, data.task))
    width = given.shape[1]
    generator = torch.Generator().manual_seed(seed)
    down = (torch.rand(rank, width, generator=generator) * 2 - 1) / math.sqrt(width)
    down = down.to(given).requires_grad_()
    up = torch.zeros(width, rank).to(given).requires_grad_()
    adam = torch.optim.Adam([down, up], lr=learning_rate)
    for step in range(steps):
        rows = draw(len(given), batch_size, step, seed).to(given.device)
        adam.zero_grad()
        loss = l1_loss(repaired(given[rows], down, up), wanted[rows])
        if not math.isfinite(loss.item()):
            raise InputError(f"surgery: loss {loss.item()} in step {step} is not finite")
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    down, up = down.detach(), up.detach()
    left, was = (float(l1_loss(z, wanted)) for z in (repaired(given, down, up), given))
    return Fit(
        {"down": down, "up": up, "distance": scalar(left), "before": scalar(was)},
        {"distance": left, "before": was},
    )


def repaired(outputs: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Ẑ = Z − W_up·ReLU(W_down·Z) of outputs Z [N, D].

    >>> repaired(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0], [0]]))
    tensor([[-5.,  2.]])
    """
    return outputs - linear(linear(outputs, down).relu(), up)


def surgery_logits(
    embedded: Embedded,
    head: Head,
    kept: Mapping[str, Tensor],
    experts: Sequence[str],
    **_: object,
) -> Tensor:
    """Logits of the task's head on the repaired outputs of the merged model."""
    outputs = embedded(MERGED)
    down, up = (kept[name].to(outputs) for name in ("down", "up"))
    return head.to(outputs.dtype).logits(repaired(outputs, down, up))
