"""Merged linear layer with low-rank task vectors: factors are applied to the activations.

Y = X θ₀ᵀ + Σ_t c_t (X A_tᵀ) B_tᵀ. The factors of all tasks lie side by side, R in total, so this is
two thin products beside the base's: 2n(in·out + R(in + out)) FLOPs for n tokens of a model,
whatever the number of models. ∂L/∂c_mt = Σ_tokens ⟨X A_tᵀ, dY B_t⟩. No weight is merged or written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusion.task_vectors.low_rank import LowRank


def low_rank(x: Tensor, c: Tensor, base: Tensor, deltas: LowRank) -> Tensor:
    """Form C of a merged linear layer: x [M, n, in] and c [M, T] -> [M, n, out], dtype of `x`.

    Autograd keeps c and the products [M, n, R], nothing dense.
    """
    # [M, R], as a product: gradients of coefficients are then summed in one order.
    spread = c.to(x.dtype) @ deltas.owners.to(x.dtype)
    scaled = frozen(x, deltas.down) * spread.unsqueeze(1)
    return frozen(x, base) + frozen(scaled, deltas.up)


def frozen(x: Tensor, weight: Tensor) -> Tensor:
    """x [M, n, in] times a frozen weight [out, in], which is cast to the dtype of `x`.

    The backward pass keeps the weight itself, not its cast copy. So a model in another precision
    than the base's keeps no layer twice.
    """
    return Frozen.apply(x, weight)  # type: ignore[no-any-return, no-untyped-call]


class Frozen(torch.autograd.Function):
    """X Wᵀ, differentiable in X only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """One matrix product over all models."""
        ctx.save_for_backward(weight)
        return torch.nn.functional.linear(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """dX = dY W."""
        (weight,) = ctx.saved_tensors
        return gradients[0] @ weight.to(gradients[0].dtype), None


def independent_of_coding(out: Tensor, c: Tensor) -> Tensor:
    """Connect `out`, which does not depend on the coefficients `c`, to them with gradient zero.

    A layer that no expert changes then behaves like all others: its output can be differentiated,
    and its coefficients get a gradient.
    """
    if not (torch.is_grad_enabled() and c.requires_grad):
        return out
    return IndependentOfCoding.apply(out, c)  # type: ignore[no-any-return, no-untyped-call]


class IndependentOfCoding(torch.autograd.Function):
    """Identity in the first argument; the second gets gradient zero."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, c: Tensor) -> Tensor:
        """Return the first argument."""
        ctx.like = c.shape, c.dtype, c.device
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The incoming gradient, and zeros."""
        shape, dtype, device = ctx.like
        return gradients[0], torch.zeros(shape, dtype=dtype, device=device)
