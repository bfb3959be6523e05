"""Merged linear layer with low-rank task vectors: factors are applied to the activations.

Y = X θ₀ᵀ + Σ_t c_t (X A_tᵀ) B_tᵀ: with the factors of all tasks side by side, R of them, two thin
products beside the base's: 2n(in·out + R(in + out)) FLOPs for n tokens of a model, whatever the
number of models; ∂L/∂c_mt = Σ_tokens ⟨X A_tᵀ, dY B_t⟩. No weight is merged, none is written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusion.task_vectors.low_rank import LowRank


def low_rank(x: Tensor, c: Tensor, base: Tensor, deltas: LowRank) -> Tensor:
    """Form C on x [M, n, in] and c [M, T]: [M, n, out] in the dtype of `x`.

    Autograd keeps c and the [M, n, R] products; nothing dense.
    """
    # [M, R], as a product: gradients of coefficients are then summed in one order.
    spread = c.to(x.dtype) @ deltas.owners.to(x.dtype)
    scaled = frozen(x, deltas.down) * spread.unsqueeze(1)
    return frozen(x, base) + frozen(scaled, deltas.up)


def frozen(x: Tensor, weight: Tensor) -> Tensor:
    """x [M, n, in] through a weight [out, in] that is not learned, cast to the dtype of `x`.

    For the backward pass the weight is kept as it came, not its cast copy: a model in another
    precision than the base's keeps none of its layers twice.
    """
    return Frozen.apply(x, weight)  # type: ignore[no-any-return, no-untyped-call]


class Frozen(torch.autograd.Function):
    """X Wᵀ, differentiable in X."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """One product over all models."""
        ctx.save_for_backward(weight)
        return torch.nn.functional.linear(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """dX = dY W."""
        (weight,) = ctx.saved_tensors
        return gradients[0] @ weight.to(gradients[0].dtype), None


def untouched(out: Tensor, c: Tensor) -> Tensor:
    """`out`, which does not depend on coefficients: to autograd it does, with gradient zero.

    A layer that no expert changes is then one like all others: what comes of it can be
    differentiated, and its coefficients have a gradient.
    """
    if not (torch.is_grad_enabled() and c.requires_grad):
        return out
    return Untouched.apply(out, c)  # type: ignore[no-any-return, no-untyped-call]


class Untouched(torch.autograd.Function):
    """The first argument; the second has gradient zero."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, c: Tensor) -> Tensor:
        """As it came."""
        ctx.like = c.shape, c.dtype, c.device
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradient as it came, and zero."""
        shape, dtype, device = ctx.like
        return gradients[0], torch.zeros(shape, dtype=dtype, device=device)
