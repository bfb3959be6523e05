"""Frank-Wolfe merging: move step by step towards the expert that lowers the loss most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn

from fusion.methods.learned.learned_soup import Granularity, parts_of
from fusion.methods.learned.steps import LabelledSplit, Shape, TrainingPlan


class Vertices(nn.Module):
    """A coding that moves between vertices: the experts, and the start if it is one of them."""

    vertices: Tensor
    """[V, T] coefficients of each vertex."""
    taken: Tensor
    """Number of steps made, int64."""

    def __init__(
        self, tasks: int, parts: Sequence[int], scale: float, start_is_vertex: bool
    ) -> None:
        """Begin at task arithmetic.

        Args:
            tasks: number of experts T.
            parts: the part, 0 … K − 1, of each tensor; all 0 for the whole model.
            scale: initial coefficient of every expert.
            start_is_vertex: whether the start is a vertex too.
        """
        super().__init__()
        count = max(parts, default=0) + 1
        self.coding = nn.Parameter(torch.full((tasks, count), scale))
        self.parts = list(parts) if count > 1 else [0]
        vertices = torch.eye(tasks)
        if start_is_vertex:
            vertices = torch.cat([vertices, torch.full((1, tasks), scale)])
        self.register_buffer("vertices", vertices, persistent=False)
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor | None = None) -> Tensor:
        """The coding [1, T, G]; `features` are ignored."""
        return self.coding[None, :, self.parts]

    def beta(self) -> Tensor:
        """Inverse temperature of the logits: 1, it is not learned."""
        return torch.ones(())


class FrankWolfe(torch.optim.Optimizer):
    """One Frank-Wolfe step: c ← (1 − γ)·c + γ·v, towards the vertex v with the least ⟨∂L/∂c, v⟩.

    Every part of the model has a vertex of its own. γ = step_size·2/(k + 2) in step k = 0, 1, …
    Of equal vertices the first is taken.
    """

    def __init__(self, router: Vertices, step_size: float) -> None:
        super().__init__([router.coding], {"lr": step_size})
        self.router = router

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the coding; `closure` is not called."""
        router, gradient = self.router, self.router.coding.grad
        if gradient is None:
            return
        nearest = (router.vertices.to(gradient) @ gradient).argmin(0)
        share = self.param_groups[0]["lr"] * 2 / (int(router.taken) + 2)
        router.coding.lerp_(router.vertices[nearest].T.to(router.coding), share)
        router.taken += 1


def frank_wolfe_optimizer(router: nn.Module, step_size: float) -> FrankWolfe:
    """The optimiser of a `Vertices` router."""
    assert isinstance(router, Vertices)
    return FrankWolfe(router, step_size)


def frank_wolfe(
    shape: Shape,
    *,
    granularity: Granularity = "global",
    scale: float = 0.3,
    step_size: Annotated[float, Interval(gt=0, le=1)] = 1.0,
    start_is_vertex: bool = False,
    steps: Annotated[int, Interval(ge=0)] = 10,
    batch_size: Annotated[int, Interval(ge=1)] = 100,
    adapt_on: LabelledSplit = "fit",
    tasks_at_once: Annotated[int | None, Interval(ge=1)] = 1,
    save_every: Annotated[int, Interval(ge=1)] = 1,
) -> TrainingPlan:
    """Frank-Wolfe merging: θ ← (1 − γ)·θ + γ·θ_s, s = argmin_t ⟨∇L(θ), θ_t⟩, some steps long.

    L is the sum over tasks of the cross-entropy on labelled rows. The least of a linear function
    over the convex hull of the experts is at an expert, so a step needs one gradient of the merged
    model, which shows the expert to move to. All iterates are θ₀ + Σ_t c_t τ_t, and ⟨∇L, θ_t⟩ −
    ⟨∇L, θ₀⟩ = ⟨∇L, τ_t⟩ = ∂L/∂c_t. So a step is made on the coding c: towards the expert of the
    least ∂L/∂c_t. γ = step_size·2/(k + 2) in step k = 0, 1, …

    Args:
        shape: experts and tensors.
        granularity: `global` (default, FusionBench's `task`): one expert a step. `tensor`: one for
            each tensor (FusionBench's `layer`, used in the authors' experiments on GLUE). `block`:
            one for each transformer layer (tensors outside of layers share one).
        scale: coefficient of every expert at the start. Default 0.3, task arithmetic, as in
            FusionBench; 0 is the base.
        step_size: factor of γ. Default 1, as in the Frank-Wolfe algorithm: the first step is all
            the way, so that later iterates are convex sums of experts. FusionBench's is 0.1·0.3,
            which stays near the start.
        start_is_vertex: the start is a model to move to, too, as in the released code. Default
            false.
        steps: default 10, the released code's.
        batch_size: rows of each task in a step. Default 100, FusionBench's `dataset_size`.
        adapt_on: split whose inputs AND labels are read. Default `fit`.
        tasks_at_once: tasks in one forward pass. Default 1; the gradient is the same for more.
        save_every: steps between checkpoints.

    Source: Chen et al. 2025, arXiv:2503.12649 (FW-Merging, hard); code:
    github.com/hmarkc/FW-Merging, and FusionBench's `fw_hard`, of the same authors. Deviations: the
    released code compares Σ_k cos(∇L_k, θ_t,k) over tensors k, and not inner products; these need
    products of the gradient with the base, and are not offered. Its soft variant, which selects as
    many experts as there are tasks and then runs AdaMerging on them, is `adamerging`.

    >>> plan = frank_wolfe(Shape(("a", "b"), ("w",)), scale=0.5)
    >>> plan.router.coding.grad = torch.tensor([[1.0], [-1.0]])  # b lowers the loss
    >>> plan.optimizer(plan.router, 0.5).step()  # γ = 0.5·2/(0 + 2)
    >>> plan.router(None).flatten().tolist()
    [0.25, 0.75]
    """
    return TrainingPlan(
        router=Vertices(
            len(shape.tasks), parts_of(shape.groups, granularity), scale, start_is_vertex
        ),
        learning_rate=step_size,
        steps=steps,
        batch_size=batch_size,
        adapt_on=adapt_on,
        save_every=save_every,
        tasks_at_once=tasks_at_once,
        optimizer=frank_wolfe_optimizer,
    )
