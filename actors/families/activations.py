"""Activation functions by the names that `transformers` gives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusion.errors import unknown

ROOT = math.sqrt(2.0 / math.pi)


SLOPE = 1.702


def quick_gelu(x: Tensor) -> Tensor:
    """x·σ(1.702 x): GELU, approximated. Autograd keeps x alone."""
    found: Tensor = QuickGelu.apply(x)  # type: ignore[no-untyped-call]
    return found


class QuickGelu(torch.autograd.Function):
    """See `quick_gelu`.

    One new tensor is made, which is changed in place. As an expression it would be three, of which
    autograd keeps two beside x. The bits of the forward pass are the same.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Keep the input."""
        ctx.save_for_backward(x)
        return torch.mul(x, SLOPE).sigmoid_().mul_(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        """dy·silu'(1.702 x), since x·σ(1.702 x) = silu(1.702 x)/1.702."""
        (x,) = ctx.saved_tensors
        found: Tensor = torch.ops.aten.silu_backward(gradients[0], torch.mul(x, SLOPE))
        return found


def gelu_new(x: Tensor) -> Tensor:
    """GELU by a tanh, as T5 and GPT-2 have it."""
    # One expression: autograd adds up the parts of a gradient in the order of the operations.
    return 0.5 * x * (1.0 + torch.tanh(ROOT * (x + 0.044715 * torch.pow(x, 3.0))))


COMMON: Mapping[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": nn.functional.gelu,
    "gelu_new": gelu_new,
    "relu": nn.functional.relu,
}
"""Those of published models. The module of `transformers` with all of them imports its models' base
class, which takes two seconds."""


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of this name, with the bits of `transformers`.

    Raises:
        ValueError: `transformers` has no such activation.
    """
    if name in COMMON:
        return COMMON[name]
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        raise ValueError(f"hidden_act: {unknown('activation', name, ACT2FN)}")
    found: Callable[[Tensor], Tensor] = ACT2FN[name]
    return found
