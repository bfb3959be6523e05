"""WE-MoE: a router in every block merges the experts' MLPs, with weights from the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from fusion.merged_layers.modules import Mixer
from fusion.methods.learned.in_model import Compat, ResidentCourse, RouterOptions
from fusion.methods.learned.steps import Shape, Unlabelled

SPREAD = 0.01
"""Standard deviation of a router's weights at the start: the released code's."""

TOGETHER = 128
"""Images that FusionBench routes as one when it evaluates: its batch."""


class Router(nn.Module):
    """Coefficients [B, T] of hidden states [B, S, H]: the mean over tokens of an MLP of them.

    Depth 2: Linear(H, H), ReLU, Linear(H, T); depth 1: Linear(H, T); depth 0: [T] for all inputs.
    There is no softmax. The last layer is linear, so the tokens' mean is taken before it: the
    same number, of fewer products.

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
        """Weights N(0, 0.01²) by `seed`; the last bias `scale`, the first 0."""
        super().__init__()
        sizes = {0: [], 1: [tasks], 2: [width, tasks]}[depth]
        draw = torch.Generator().manual_seed(seed)
        self.weights = nn.ParameterList(
            nn.Parameter((SPREAD * torch.randn(out, width, generator=draw)).to(dtype))
            for out in sizes
        )
        self.biases = nn.ParameterList(
            nn.Parameter(torch.zeros(out, dtype=dtype)) for out in (sizes or [tasks])
        )
        nn.init.constant_(self.biases[-1], scale)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, S, H] -> [B, T], in the router's dtype: the mean over tokens, of `mask` [B, S] alone
        where rows are padded."""
        last: Tensor = self.biases[-1]
        if not len(self.weights):
            return last.expand(len(hidden), -1)
        found = hidden.to(last.dtype)
        if len(self.weights) == 2:
            found = nn.functional.linear(found, self.weights[0], self.biases[0]).relu()
        out: Tensor = nn.functional.linear(mean_of(found, mask), self.weights[-1], last)
        return out


def mean_of(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The mean [B, H] over the tokens [B, S, H] of each row, of those in `mask` [B, S] alone."""
    if mask is None:
        return tokens.mean(1)
    weights = mask.to(tokens.dtype).unsqueeze(2)
    return (tokens * weights).sum(1) / weights.sum(1)


class RoutedMlp(nn.Module):
    """An MLP whose layers are merged with the coefficients that a router gives its input.

    W = W₀ + Σ_t g_t τ_t for weights and biases: one model a sample, or one for the batch.
    """

    def __init__(
        self, mlp: nn.Module, router: nn.Module, mixer: Mixer, names: Sequence[str], pooled: bool
    ) -> None:
        """A routed MLP.

        Args:
            mlp: whose layers read `mixer` (`modules.merge_layers`).
            router: [B, S, H] -> [B, T].
            mixer: base and task vectors.
            names: of the MLP's tensors, as the mixer knows them.
            pooled: one model for the batch, by the mean of its coefficients.
        """
        super().__init__()
        self.mlp, self.router, self.mixer = mlp, router, mixer
        self.names, self.pooled = tuple(names), pooled
        self.mask: Tensor | None = None
        """[B, S]: which tokens are no padding; set before a forward pass of padded rows."""

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        coefficients = self.router(hidden, self.mask)
        if self.pooled:
            coefficients = coefficients.mean(0, keepdim=True)
        with self.mixer.coded(dict.fromkeys(self.names, coefficients)):
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
    adapt_on: Unlabelled = "fit",
    router_seed: Annotated[int, Interval(ge=0)] = 0,
    save_every: Annotated[int, Interval(ge=1)] = 100,
    compat: Compat = "paper",
) -> ResidentCourse:
    """MLPs W₀ + Σ_t g_t(h) τ_t, g(h) = mean over tokens of a router; all else task arithmetic.

    Routers alone are learned, without labels: Adam on Σ_tasks mean_batch H(softmax(logits)). They
    are kept as one small file. Evaluation merges one MLP a sample, in batched products.

    Args:
        shape: tasks; no tensor is looked at.
        scale: λ: of task arithmetic, and the last bias of each router. Default 0.3: FusionBench.
        depth: linear layers of a router: 2 the paper's; 1; 0 a constant.
        batch_mean: learn with the mean coefficients of each batch. Default true: the code's.
        routing: at evaluation: `sample`: each image has its own MLPs, as the paper says; `batch`:
            128 consecutive images share their mean coefficients.
        learning_rate: Adam's. Default 1e-4; published generalisation runs 2e-3, corrupted 5e-5.
        steps: default 1000.
        batch_size: images a task and step. Default 16.
        adapt_on: whose unlabelled images are learned from; the paper: the test split (`report`).
        router_seed: of the routers' weights N(0, 0.01²).
        save_every: steps between checkpoints.
        compat: `fusionbench`: evaluate by `batch`, for its switch to samples never reaches the
            blocks, and its published numbers have 128 images share a model.

    Deviations: entropy without epsilon; drawing is seeded.

    Source: Tang et al. 2024, arXiv:2402.00433, §3; FusionBench's CLIP implementation.
    """
    together = TOGETHER if routing == "batch" or compat == "fusionbench" else 0
    return ResidentCourse(
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
    adapt_on: Unlabelled = "fit",
    router_seed: Annotated[int, Interval(ge=0)] = 0,
    save_every: Annotated[int, Interval(ge=1)] = 100,
    compat: Compat = "paper",
) -> ResidentCourse:
    """WE-MoE with one router for all blocks, and MLP task vectors of which a tenth is left.

    Of each tensor of an MLP (weights and biases), and each task, entries are kept whose |τ| is
    strictly above the quantile `prune` of its |τ|; they are stored sparse. What is no MLP is task
    arithmetic with whole task vectors.

    Args:
        shape: see `wemoe`.
        scale: see `wemoe`.
        depth: see `wemoe`.
        prune: the quantile (linearly interpolated). Default 0.9, "E-WEMoE 90 %"; 1 leaves
            nothing of the MLPs' task vectors, 0 drops the smallest entry of each alone.
        shared: one router, applied to each block's own hidden states; false: one a block.
        batch_mean: see `wemoe`.
        routing: see `wemoe`.
        learning_rate: see `wemoe`.
        steps: see `wemoe`.
        batch_size: see `wemoe`.
        adapt_on: see `wemoe`.
        router_seed: see `wemoe`.
        save_every: see `wemoe`.
        compat: see `wemoe`.

    Deviations: as `wemoe`; no encoding of layers and no pruning of the router (both off there).

    Source: Shen et al. 2024, arXiv:2410.21804, §3; FusionBench's sparse CLIP implementation.
    """
    together = TOGETHER if routing == "batch" or compat == "fusionbench" else 0
    return ResidentCourse(
        RouterOptions(depth, shared, batch_mean, together, prune, router_seed),
        scale,
        learning_rate,
        steps,
        batch_size,
        adapt_on,
        save_every,
    )
