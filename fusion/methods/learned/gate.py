"""DAWE's gate: a small network from frozen features to codings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.task_vectors.coding import Coding

DEPTHS = (0, 1, 2)
"""Allowed numbers of linear layers."""


class Gate(torch.nn.Sequential):
    """Gate network c(x) = W₂·relu(W₁·f(x) + b₁) + b₂: features [B, d] -> codings [B, T, G].

    The model of an input is θ(x) = θ₀ + Σ_t c_t(x) τ_t. The depth is the number of linear layers.
    There are M = T·G outputs; entry (t, g) is output t·G + g.

    * Depth 2: as above; W₁ [d, d] and b₁ ~ U(−1/√d, 1/√d), W₂ [M, d] = 0, b₂ = λ₀.
    * Depth 1: c = W·f + b; W [M, d] = 0, b = λ₀.
    * Depth 0: c = b [M] = λ₀, one coding for all inputs.

    So step 0 is exactly task arithmetic with scale λ₀. At depth 2 the first step does not change W₁
    and b₁, since their gradient goes through W₂ = 0.

    `softmax` makes the T coefficients of a group positive with sum 1. Then b starts at 0, so each
    starts at 1/T, and λ₀ has no effect. With `base_weight` the softmax runs over T + 1 logits, the
    base's first (M = (T + 1)·G, each starts at 1/(T + 1)). The coding then holds the weights of the
    T experts, and the base has the remaining weight: w₀θ₀ + Σ w_t θ_t = θ₀ + Σ w_t τ_t, since w₀ =
    1 − Σ w_t. In both cases parameters are mixed.

    Three versions of this gate exist:

    * The original code, tanganke/dict_fusion (the default here, and the source of the published
      numbers): depth 2 on a ResNet's pooled features; real-valued codings without softmax, clamp or
      a weight of the base, whose coefficient is always 1.
    * The published description, FusionBench's page on DAWE: a softmax over N + 1 weights, with the
      base's among them, that mixes the experts' outputs; it names CLIP's pooled output beside the
      ResNet's features. `softmax` and `base_weight` give its weights, on parameters. No code mixes
      outputs.
    * FusionBench's port: no softmax either; depth 1 by default with W ~ N(0, 0.001²), at depth 2
      both W ~ N(0, 0.01²) and b₁ = 0, last b = 0.3: close to task arithmetic at step 0, but not
      equal.

    Tensor names are those of the published files: `0.weight, 0.bias, 2.weight, 2.bias` at depth 2,
    `0.weight, 0.bias` at depth 1, `0.bias` at depth 0.

    Source: Tang et al., Data-Adaptive Weight-Ensembling for Multi-Task Model Fusion;
    github.com/tanganke/dict_fusion, scripts/clip_dict.py.

    >>> gate = Gate(width=4, tasks=2, groups=3)
    >>> gate(torch.randn(5, 4)).shape
    torch.Size([5, 2, 3])
    """

    def __init__(
        self,
        width: int,
        tasks: int,
        groups: int,
        *,
        depth: int = 2,
        scale: float = 0.3,
        softmax: bool = False,
        base_weight: bool = False,
        seed: int = 0,
    ) -> None:
        """Build a gate with its initial weights, in float32 on the CPU.

        Args:
            width: d, the width of the features.
            tasks: T.
            groups: G: 1 for a task-wise gate, the number of tensors for a layer-wise one.
            depth: number of linear layers. Default 2, the original's; 0 is a constant.
            scale: λ₀. Default 0.3, the original's.
            softmax: softmax over the experts of a group. Default false.
            base_weight: with softmax only: a logit for θ₀ too. Default false.
            seed: of W₁ and b₁; torch's global generator is not used.

        Raises:
            InputError: an argument out of range.
        """
        for name, value in (("width", width), ("tasks", tasks), ("groups", groups)):
            if value < 1:
                raise InputError(f"gate: {name}: {value}; 1 or more needed")
        if depth not in DEPTHS:
            raise InputError(f"gate: depth: {depth}; 0, 1 or 2 allowed")
        if not math.isfinite(scale):
            raise InputError(f"gate: scale: {scale}; a finite number needed")
        if base_weight and not softmax:
            raise InputError(
                "gate: base_weight: True; only with softmax (else θ₀'s coefficient is fixed at 1)"
            )
        rows = tasks + base_weight
        super().__init__(*layers(width, rows * groups, depth, seed))
        self.width, self.tasks, self.groups = width, tasks, groups
        self.depth, self.scale, self.softmax, self.base_weight = depth, scale, softmax, base_weight
        self.rows = rows
        """Outputs for each group: T, or T + 1 with the base's logit."""
        torch.nn.init.constant_(self.last_bias, 0.0 if softmax else scale)

    def forward(self, features: Tensor) -> Coding:
        """Codings [B, T, G] of features [B, d], differentiable in parameters and features.

        Raises:
            InputError: features of another shape.
        """
        out = self.checked(features)
        for module in self:
            out = module(out)  # in the end [B, rows·G]; at depth 0 [1, rows·G]
        codes = out.view(len(out), self.rows, self.groups)
        if self.softmax:
            codes = codes.softmax(dim=1)[:, self.rows - self.tasks :]
        return codes.expand(len(features), -1, -1)

    def checked(self, features: Tensor) -> Tensor:
        """Features in the gate's dtype (cached features may be float16).

        Raises:
            InputError: features of another shape.
        """
        if features.ndim != 2 or features.shape[1] != self.width:
            raise InputError(f"features: shape {list(features.shape)}; [B, {self.width}] needed")
        return features.to(self.last_bias.dtype)

    @property
    def last_bias(self) -> Tensor:
        """Bias of the last layer, [rows·G]."""
        return self[-1].get_parameter("bias")

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments it was built with, except `seed`."""
        return {
            "depth": self.depth,
            "scale": self.scale,
            "softmax": self.softmax,
            "base_weight": self.base_weight,
        }


class Constant(torch.nn.Module):
    """A learned vector b [M] that does not depend on the input."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.empty(outputs, dtype=torch.float32, device="cpu"))

    def forward(self, features: Tensor) -> Tensor:
        """b [1, M], for features of any shape."""
        return self.bias.unsqueeze(0)


def layers(width: int, outputs: int, depth: int, seed: int) -> list[torch.nn.Module]:
    """The layers of a gate; the last one's bias is not initialised yet."""
    if depth == 0:
        return [Constant(outputs)]
    last = unfilled(width, outputs)
    torch.nn.init.zeros_(last.weight)
    if depth == 1:
        return [last]
    draw = torch.Generator().manual_seed(seed)
    bound = width**-0.5
    first = unfilled(width, width)
    for tensor in (first.weight, first.bias):
        torch.nn.init.uniform_(tensor, -bound, bound, generator=draw)
    return [first, torch.nn.ReLU(), last]


def unfilled(width: int, outputs: int) -> torch.nn.Linear:
    """A linear layer with uninitialised memory, so that no random numbers are drawn."""
    linear = torch.nn.Linear(width, outputs, device="meta", dtype=torch.float32)
    return linear.to_empty(device="cpu")


def shapes(width: int, outputs: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a gate's tensors, with `outputs` = M, without building it.

    >>> shapes(512, 8, 1)
    {'0.weight': (8, 512), '0.bias': (8,)}
    """
    last = str(2 * max(depth - 1, 0))
    found: dict[str, tuple[int, ...]] = {}
    if depth == 2:
        found |= {"0.weight": (width, width), "0.bias": (width,)}
    if depth:
        found[f"{last}.weight"] = (outputs, width)
    return {**found, f"{last}.bias": (outputs,)}


def regroup(gate: Gate, columns: Sequence[int]) -> Gate:
    """Copy of a gate with other groups: c'(x)[:, :, g] = c(x)[:, :, columns[g]].

    Groups may be dropped, moved or repeated. This also holds for softmax gates, because the softmax
    runs over the experts within a group.
    """
    new = Gate(gate.width, gate.tasks, len(columns), **gate.options)
    state = gate.state_dict()
    last = f"{len(gate) - 1}."
    for name in [name for name in state if name.startswith(last)]:
        grouped = state[name].view(gate.rows, gate.groups, *state[name].shape[1:])
        state[name] = grouped[:, list(columns)].flatten(0, 1)
    bias = gate.last_bias
    new.to(bias.device, bias.dtype).load_state_dict(state)
    return new


def hidden_norm(gate: Gate, features: Tensor) -> float:
    """Mean L1 norm E‖h‖₁ of the input h of a gate's last layer, over features [B, d].

    h = relu(W₁f + b₁) at depth 2, f at depth 1, and the constant 1 at depth 0. An Adam step changes
    each weight by about the learning rate, whatever the size of the gradient. So it changes an
    output Σ_j W_j h_j + b by about lr·‖h‖₁ (and by lr more through b): the same learning rate is
    fast for wide features of large magnitude and slow for unit-norm ones. Divide the learning rate
    by this norm to compare extractors or to reuse a rate.

    Raises:
        InputError: features of another shape, or none.
    """
    with torch.no_grad():
        hidden = gate.checked(features)
        if not len(hidden):
            raise InputError("features: no rows; 1 or more needed")
        if gate.depth == 0:
            return 1.0
        for module in list(gate)[:-1]:
            hidden = module(hidden)
        return float(hidden.abs().sum(dim=1).mean())
