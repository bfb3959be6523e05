"""WE-MoE: a router in every block merges the experts' MLPs with weights from the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from fusion.merged_layers.modules import Mixer
from fusion.merged_layers.precision import exact
from fusion.methods.learned.in_model import Compat, InModelPlan, RouterOptions
from fusion.methods.learned.steps import Shape, UnlabelledSplit

INIT_STD = 0.01
"""Standard deviation of a router's initial weights, the released code's."""

ROUTING_BATCH = 128
"""Images that share their routing weights in FusionBench's evaluation: its batch size."""


class Router(nn.Module):
    """Router of an MLP: coefficients [B, T] of hidden states [B, S, H], averaged over tokens.

    Depth 2: Linear(H, H), ReLU, Linear(H, T); depth 1: Linear(H, T); depth 0: a constant [T]. There
    is no softmax. Since the last layer is linear, the mean over tokens is taken before it, which
    gives the same result with fewer products.

    >>> router = Router(width=4, tasks=2, depth=2, scale=0.3)
    >>> router(torch.randn(5, 3, 4)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        width: int,
        tasks: int,
        depth: int,
        scale: float,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Weights N(0, 0.01²) by `seed`; the last bias is `scale`, the first 0."""
        super().__init__()
        sizes = {0: [], 1: [tasks], 2: [width, tasks]}[depth]
        draw = torch.Generator().manual_seed(seed)
        self.weights = nn.ParameterList(
            nn.Parameter((INIT_STD * torch.randn(out, width, generator=draw)).to(dtype))
            for out in sizes
        )
        self.biases = nn.ParameterList(
            nn.Parameter(torch.zeros(out, dtype=dtype)) for out in (sizes or [tasks])
        )
        nn.init.constant_(self.biases[-1], scale)

    @exact
    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Coefficients [B, T] of [B, S, H], in the router's dtype.

        `mask` [B, S] excludes padded tokens from the mean.
        """
        last: Tensor = self.biases[-1]
        if not len(self.weights):
            return last.expand(len(hidden), -1)
        found = hidden.to(last.dtype)
        if len(self.weights) == 2:
            found = nn.functional.linear(found, self.weights[0], self.biases[0]).relu()
        out: Tensor = nn.functional.linear(mean_of(found, mask), self.weights[-1], last)
        return out


def mean_of(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Mean [B, H] over the tokens [B, S, H] of each row, or over those in `mask` [B, S]."""
    if mask is None:
        return tokens.mean(1)
    weights = mask.to(tokens.dtype).unsqueeze(2)
    return (tokens * weights).sum(1) / weights.sum(1)


class RoutedMlp(nn.Module):
    """An MLP whose weights are merged with the coefficients that a router computes from its input.

    W = W₀ + Σ_t g_t τ_t for weights and biases: one model for each sample, one for the batch, or
    one for each of several equal parts of it.
    """

    def __init__(
        self, mlp: nn.Module, router: nn.Module, mixer: Mixer, names: Sequence[str], pooled: bool
    ) -> None:
        """Combine an MLP with its router.

        Args:
            mlp: an MLP whose layers read `mixer` (`merge_layers`).
            router: [B, S, H] -> [B, T].
            mixer: base and task vectors.
            names: names of the MLP's tensors in the mixer.
            pooled: one model for the batch, by the mean of its coefficients; or `models` of them.
        """
        super().__init__()
        self.mlp, self.router, self.mixer = mlp, router, mixer
        self.names, self.pooled = tuple(names), pooled
        self.models = 1
        """Models of a pooled pass: each is merged for equally many consecutive rows."""
        self.mask: Tensor | None = None
        """[B, S], True for tokens that are no padding; set before a pass of padded rows."""

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        coefficients = self.router(hidden, self.mask)
        if self.pooled:
            coefficients = coefficients.view(self.models, -1, coefficients.shape[1]).mean(1)
        with self.mixer.with_columns(dict.fromkeys(self.names, coefficients)):
            out: Tensor = self.mlp(hidden)
        return out


def wemoe(
    shape: Shape,
    *,
    scale: float = 0.3,
    depth: Annotated[int, Interval(ge=0, le=2)] = 2,
    batch_mean: bool = True,
    routing: Literal["sample", "batch"] = "sample",
    learning_rate: Annotated[float, Interval(gt=0)] = 1e-4,
    steps: Annotated[int, Interval(ge=0)] = 1000,
    batch_size: Annotated[int, Interval(ge=1)] = 16,
    adapt_on: UnlabelledSplit = "fit",
    router_seed: Annotated[int, Interval(ge=0)] = 0,
    save_every: Annotated[int, Interval(ge=1)] = 100,
    compat: Compat = "paper",
) -> InModelPlan:
    """WE-MoE: MLPs W₀ + Σ_t g_t(h) τ_t with routers g; all other tensors by task arithmetic.

    g(h) is the mean over tokens of a router's output. Only the routers are trained, without labels:
    Adam on Σ_tasks mean_batch H(softmax(logits)). They are stored as one small file. An evaluation
    merges one MLP for each sample, in batched products.

    Args:
        shape: tasks; tensors are not used.
        scale: λ of task arithmetic, and initial last bias of each router. Default 0.3,
            FusionBench's.
        depth: number of linear layers of a router: 2 (default, the paper's), 1, or 0, a constant.
        batch_mean: train with the mean coefficients of each batch. Default true, as in the code.
        routing: in evaluations. `sample` (default): each image has its own MLPs, as in the paper;
            `batch`: 128 consecutive images share their mean coefficients.
        learning_rate: Adam's. Default 1e-4, FusionBench's; published generalisation runs use 2e-3,
            those on corrupted images 5e-5.
        steps: default 1000, FusionBench's.
        batch_size: images of each task in a step. Default 16, FusionBench's.
        adapt_on: split of the unlabelled images. Default `fit`; the paper uses the test split
            (`report`).
        router_seed: seed of the routers' weights N(0, 0.01²).
        save_every: steps between checkpoints.
        compat: `fusionbench`: evaluate by `batch`. Its option for samples never reaches the blocks,
            so in its published numbers 128 images share a model. Default `paper`.

    Source: Tang et al. 2024, arXiv:2402.00433, §3; FusionBench's CLIP implementation. Deviations:
    entropy without epsilon; draws are seeded.
    """
    together = ROUTING_BATCH if routing == "batch" or compat == "fusionbench" else 0
    return InModelPlan(
        RouterOptions(depth, False, batch_mean, together, None, router_seed),
        scale,
        learning_rate,
        steps,
        batch_size,
        adapt_on,
        save_every,
    )


def ewemoe(
    shape: Shape,
    *,
    scale: float = 0.3,
    depth: Annotated[int, Interval(ge=0, le=2)] = 2,
    prune: Annotated[float, Interval(ge=0, le=1)] = 0.9,
    shared: bool = True,
    batch_mean: bool = True,
    routing: Literal["sample", "batch"] = "sample",
    learning_rate: Annotated[float, Interval(gt=0)] = 1e-4,
    steps: Annotated[int, Interval(ge=0)] = 1000,
    batch_size: Annotated[int, Interval(ge=1)] = 16,
    adapt_on: UnlabelledSplit = "fit",
    router_seed: Annotated[int, Interval(ge=0)] = 0,
    save_every: Annotated[int, Interval(ge=1)] = 100,
    compat: Compat = "paper",
) -> InModelPlan:
    """E-WEMoE: WE-MoE with one router shared by all blocks, and pruned task vectors of the MLPs.

    For each tensor of an MLP (weights and biases) and each task, entries are kept if |τ| is
    strictly above the quantile `prune` of |τ|; they are stored sparse. Other tensors are merged by
    task arithmetic with whole task vectors.

    Args:
        shape: see `wemoe`.
        scale: see `wemoe`.
        depth: see `wemoe`.
        prune: the quantile (linearly interpolated). Default 0.9, "E-WEMoE 90 %"; 1 removes the
            MLPs' task vectors, 0 only the smallest entry of each.
        shared: one router for all blocks, applied to each block's own hidden states (default);
            false: one for each block.
        batch_mean: see `wemoe`.
        routing: see `wemoe`.
        learning_rate: see `wemoe`.
        steps: see `wemoe`.
        batch_size: see `wemoe`.
        adapt_on: see `wemoe`.
        router_seed: see `wemoe`.
        save_every: see `wemoe`.
        compat: see `wemoe`.

    Source: Shen et al. 2024, arXiv:2410.21804, §3; FusionBench's sparse CLIP implementation.
    Deviations: as `wemoe`; no layer encoding and no pruning of the router (both are off in
    FusionBench).
    """
    together = ROUTING_BATCH if routing == "batch" or compat == "fusionbench" else 0
    return InModelPlan(
        RouterOptions(depth, shared, batch_mean, together, prune, router_seed),
        scale,
        learning_rate,
        steps,
        batch_size,
        adapt_on,
        save_every,
    )
