"""Merged layers: forward passes through θ₀ + Σ_t c_t τ_t, differentiable in input and coding.

Axes: B rows, M models, n tokens for each model, T tasks. Each model takes B/M consecutive rows: all
of them if M = 1, one if M = B. The coefficients of a layer are one column of a coding, [M, T]. A
linear layer can be computed in three forms, which agree up to rounding:

* A, merge: W_m = θ₀ + Σ_t c_mt τ_t by one matrix product over all models, then Y_m = X_m W_mᵀ. 2(T
  + n) FLOPs for each weight and model. Backward: ∂L/∂c_mt = ⟨dY_mᵀX_m, τ_t⟩. A small weight of a
  single model is kept for it.
* B, scale: Y = X θ₀ᵀ + Σ_t (c_t X) τ_tᵀ. 2n(T + 1) FLOPs; weights are read once and none is
  written. Backward: with U_t = dY τ_t, ∂L/∂c_mt = Σ_tokens ⟨U_t, X⟩; no gradient of a weight is
  made.
* C, low rank: τ_t = B_t A_t stays two factors, see `fusion/merged_layers/low_rank_linear.py`.

Otherwise only inputs and coefficients are kept for the backward pass, and weights are merged again.
Task vectors and base are never differentiated; `Recomputed` task vectors are computed again. Form B
is faster if there are few tokens for each model: `fusion/merged_layers/forms.py` chooses. Merged
vectors and tables: `fusion/merged_layers/tables.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion.errors import InputError
from fusion.merged_layers.buffers import scratch
from fusion.merged_layers.forms import Form as Form
from fusion.merged_layers.forms import crossover, form_for
from fusion.merged_layers.low_rank_linear import frozen, independent_of_coding, low_rank
from fusion.merged_layers.precision import exact, operand
from fusion.merged_layers.tables import merged_batch_norm as merged_batch_norm
from fusion.merged_layers.tables import merged_embedding as merged_embedding
from fusion.merged_layers.tables import merged_norm as merged_norm
from fusion.merged_layers.tables import merged_rms_norm as merged_rms_norm
from fusion.merged_layers.tables import merged_table as merged_table
from fusion.task_vectors.coding import divides
from fusion.task_vectors.lazy import Recomputed
from fusion.task_vectors.low_rank import LowRank, Zeros
from fusion.task_vectors.task_vectors import accumulator

BUDGET = {"cpu": 64 << 20, "cuda": 256 << 20}
"""Device -> bytes of merged weights that a layer holds at a time. Models are merged in chunks of
this size, since on a CPU new memory costs more than larger products gain."""

KEPT = 1 << 17
"""Bytes up to which a merged weight of a single model is kept for its backward pass on a CPU. Below
that a second merge costs more by its number of operations than by what it reads."""

COLUMNS = 1 << 15
"""Weights merged at a time on a CPU if there are several models, so that operands stay in cache."""


def merged_linear(
    x: Tensor,
    coefficients: Tensor,
    base: Tensor,
    deltas: Tensor | LowRank | Zeros | Recomputed,
    bias: Tensor | None = None,
    form: Form = "auto",
) -> Tensor:
    """Linear layer with merged weights: y_m = x_m (θ₀ + Σ_t c_mt τ_t)ᵀ + b_m.

    Args:
        x: [B, …, in]; B is a multiple of M.
        coefficients: [M, T].
        base: θ₀ [out, in].
        deltas: τ [T, out, in], dense; or low-rank factors (always form C); or `Zeros` (the base's
            layer); or `Recomputed`, dense ones that are computed in the forward pass and again in
            the backward pass.
        bias: merged bias [M, out] or [1, out] (`merged_table`), or None.
        form: `A`, `B`, or `auto` (default) for `form_for`.

    Returns:
        [B, …, out] in the dtype of `x`, or bfloat16 within `products("bf16")`. Weights are mixed in
        float32 (float64) and rounded once.

    Raises:
        InputError: shapes that do not fit.
    """
    models, tasks = coefficients.shape
    again = deltas if isinstance(deltas, Recomputed) else None
    steps = deltas.make() if isinstance(deltas, Recomputed) else deltas
    if steps.shape != (tasks, *base.shape):
        raise InputError(
            f"merged layer: task vectors {list(steps.shape)}; {[tasks, *base.shape]} needed"
        )
    if x.shape[-1] != base.shape[1] or not divides(models, x.shape[0]):
        raise InputError(
            f"merged layer: input {list(x.shape)} for {models} model(s) of weight"
            f" {list(base.shape)}"
        )
    x = operand(x)
    flat = x.reshape(models, -1, x.shape[-1]).contiguous()
    training = torch.is_grad_enabled() and (x.requires_grad or coefficients.requires_grad)
    if isinstance(steps, LowRank):
        out = low_rank(flat, coefficients, base, steps)
    elif isinstance(steps, Zeros):
        out = independent_of_coding(frozen(flat, base), coefficients)
    else:
        if form == "auto":
            tf32 = torch.backends.cuda.matmul.allow_tf32
            costs = crossover(x.device, x.dtype, tf32, (*base.shape,), tasks)
            form = form_for(flat.shape[1], tasks, training, costs)
        kernel = Merge if form == "A" else Scale
        out = kernel.apply(flat, coefficients, base, steps, again)  # type: ignore[no-untyped-call]
    if bias is not None:
        out = out + bias.unsqueeze(1).to(out.dtype)
    return out.view(*x.shape[:-1], base.shape[0])


def chunks(models: int, numel: int, itemsize: int, device: str) -> Iterator[slice]:
    """Evenly sized chunks of models whose merged weights stay within `BUDGET` bytes."""
    budget = BUDGET[device if device in BUDGET else "cuda"]
    most = max(1, budget // max(1, numel * itemsize))
    parts = math.ceil(models / most)
    step = math.ceil(models / parts)
    for start in range(0, models, step):
        yield slice(start, min(start + step, models))


@exact
def merge_weights(coefficients: Tensor, base: Tensor, deltas: Tensor, dtype: torch.dtype) -> Tensor:
    """Merged weights θ₀ + C·τ for coefficients [M, T]: [M, *shape] in `dtype`.

    Mixed in float32 (float64). The result may be scratch memory, valid until the next call in this
    thread.
    """
    wide = accumulator(base.dtype, deltas.dtype, dtype)
    tasks, size = deltas.shape[0], base.numel()
    models = coefficients.shape[0]
    c, rows = coefficients.to(wide), deltas.reshape(tasks, size)
    origin = base.reshape(1, size)
    out = scratch(models, size, wide, base.device)
    # One model: memory-bound, and a product over all of it is at the floor. Several on a CPU:
    # columns in turn, so that what is read once from memory serves all models from cache.
    if models == 1 or base.device.type != "cpu":
        torch.addmm(origin.to(wide), c, rows.to(wide), out=out)
        return out.view(models, *base.shape).to(dtype)
    for start in range(0, size, COLUMNS):
        span = slice(start, start + COLUMNS)
        torch.addmm(origin[:, span].to(wide), c, rows[:, span].to(wide), out=out[:, span])
    return out.view(models, *base.shape).to(dtype)


@exact
def contract(gradient: Tensor, deltas: Tensor) -> Tensor:
    """Inner products ⟨dW_m, τ_t⟩ of [M, *shape] and [T, *shape]: [M, T], in float32 (float64)."""
    wide = accumulator(gradient.dtype, deltas.dtype)
    models, tasks = gradient.shape[0], deltas.shape[0]
    left, right = gradient.reshape(models, -1), deltas.reshape(tasks, -1)
    if models == 1 and wide == left.dtype == right.dtype:
        return torch.mv(right, left[0])[None]
    total = torch.zeros(models, tasks, dtype=wide, device=gradient.device)
    step = COLUMNS if gradient.device.type == "cpu" else max(left.shape[1], 1)
    for start in range(0, left.shape[1], step):
        span = slice(start, start + step)
        total.addmm_(left[:, span].to(wide), right[:, span].to(wide).T)
    return total


def keep(
    ctx: Any, x: Tensor, c: Tensor, base: Tensor, deltas: Tensor, again: Recomputed | None
) -> None:
    """Save tensors for the backward pass; of `Recomputed` task vectors only the function."""
    ctx.again = again
    ctx.save_for_backward(x, c, base, *([deltas] if again is None else []))


def kept(ctx: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The saved x, coefficients, base and task vectors; `Recomputed` ones are computed again."""
    x, c, base, *deltas = ctx.saved_tensors
    return x, c, base, deltas[0] if deltas else ctx.again.make()


class Merge(torch.autograd.Function):
    """Form A of a merged linear layer, on x [M, n, in]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, c: Tensor, base: Tensor, deltas: Tensor, again: Recomputed | None
    ) -> Tensor:
        """For each chunk of models: merge the weights, multiply, release the weights."""
        keep(ctx, x, c, base, deltas, again)
        ctx.weight = None
        if len(x) == 1 and base.numel() * x.element_size() <= KEPT and x.device.type == "cpu":
            weight = merge_weights(c, base, deltas, x.dtype)  # too small to be scratch memory
            ctx.weight = weight if ctx.needs_input_grad[0] else None
            return torch.mm(x[0], weight[0].T)[None]
        out = x.new_empty(*x.shape[:2], base.shape[0])
        for part in chunks(len(x), base.numel(), x.element_size(), x.device.type):
            weight = merge_weights(c[part], base, deltas, x.dtype)
            multiply(x[part], weight.transpose(1, 2), out[part])
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Merge the weights again for dX, unless kept; dW exists for one chunk at a time."""
        x, c, base, deltas = kept(ctx)
        dy = gradients[0].contiguous()
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dc = torch.empty_like(c) if ctx.needs_input_grad[1] else None
        for part in chunks(len(x), base.numel(), x.element_size(), x.device.type):
            if dx is not None:
                weight = ctx.weight
                if weight is None:
                    weight = merge_weights(c[part], base, deltas, x.dtype)
                multiply(dy[part], weight, dx[part])
                del weight
            if dc is not None:
                dw = torch.bmm(dy[part].transpose(1, 2), x[part])
                dc[part] = contract(dw, deltas).to(c.dtype)
        return dx, dc, None, None, None


def multiply(x: Tensor, weights: Tensor, out: Tensor) -> None:
    """Batched product out_m = x_m·W_m; a single model as a plain matrix product."""
    if len(x) == 1:
        torch.mm(x[0], weights[0], out=out[0])
    else:
        torch.bmm(x, weights, out=out)


class Scale(torch.autograd.Function):
    """Form B of a merged linear layer, on x [M, n, in]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, c: Tensor, base: Tensor, deltas: Tensor, again: Recomputed | None
    ) -> Tensor:
        """Sum of one product for each task, in the input's dtype."""
        keep(ctx, x, c, base, deltas, again)
        rows = x.reshape(-1, x.shape[-1])
        out = rows @ base.T.to(x.dtype)
        for t, delta in enumerate(deltas):
            scaled = x * c[:, t, None, None].to(x.dtype)
            out.addmm_(scaled.view_as(rows), delta.T.to(x.dtype))
        return out.view(*x.shape[:2], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Gradients of x and coefficients, both from U_t = dY·τ_t."""
        x, c, base, deltas = kept(ctx)
        dy = gradients[0].reshape(-1, gradients[0].shape[-1])
        wide = accumulator(x.dtype)
        dx = (dy @ base.to(x.dtype)).view_as(x) if ctx.needs_input_grad[0] else None
        dc = torch.empty_like(c)
        for t, delta in enumerate(deltas):
            u = (dy @ delta.to(x.dtype)).view_as(x)
            dc[:, t] = (u.to(wide) * x.to(wide)).sum((1, 2)).to(c.dtype)
            if dx is not None:
                dx.addcmul_(u, c[:, t, None, None].to(x.dtype).expand_as(u))
        return dx, dc if ctx.needs_input_grad[1] else None, None, None, None


def merged_conv2d(
    x: Tensor,
    coefficients: Tensor,
    base: Tensor,
    deltas: Tensor | LowRank | Zeros | Recomputed,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    form: Form = "auto",
) -> Tensor:
    """Convolution with merged weights of x [B, C, H, W]: [B, out, H', W'].

    Computed as patches (`unfold`) times a merged linear layer. Arguments as for `merged_linear`,
    with `base` [out, C, kh, kw], and as for `torch.nn.functional.conv2d`.
    """
    kernel = base.shape[2:]
    patches = F.unfold(x, kernel, dilation=dilation, padding=padding, stride=stride)
    size = [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    out = merged_linear(
        patches.transpose(1, 2), coefficients, base.flatten(1), deltas.flatten(2), bias, form
    )
    return out.transpose(1, 2).reshape(len(x), base.shape[0], *size)
