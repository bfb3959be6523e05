"""Interface of fitted classifiers: the embeddings they read, and the result they keep.

The mathematics is elsewhere (`cache_model`, `clip_adapter`, `cafo`, `probe`, `ensemble`); the
methods themselves are in `fitted_heads` and `fitted_caches`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from fusion.errors import InputError, unknown
from fusion.logits.dataset import Labelled
from fusion.logits.exact_alpha import ExactAlpha
from fusion.methods.classifiers.grid_search import Surface
from fusion.methods.classifiers.tip_adapter import (
    few_shot,
)
from fusion.task_vectors.task_vectors import accumulator

BASE = "pretrained"

Embedded: TypeAlias = Callable[[str], Tensor]
"""Source (the base, or an expert) -> embeddings [N, D] of the rows that are classified."""


@dataclass(frozen=True, eq=False)
class Plane:
    """One task, as its fit and select rows are seen."""

    experts: tuple[str, ...]
    head: Tensor
    """[C, D], logit scale included."""
    labels: Callable[[str], Tensor]
    """Role -> int64 [N]."""
    embedded: Callable[[str, str, Tensor | None], Tensor]
    """(source, role, which rows; None: all) -> embeddings [n, D], not normalised."""

    def rows(self, source: str, role: str, at: Tensor | None = None) -> Labelled:
        """Embeddings and labels of a role's rows.

        Raises:
            InputError: an unknown source.
        """
        known = (BASE, *self.experts)
        if source not in known:
            raise InputError(f"features: {unknown('source', source, known)}")
        labels = self.labels(role)
        return Labelled(self.embedded(source, role, at), labels if at is None else labels[at], role)

    def widened(self) -> Plane:
        """The same task, head and embeddings in float32 at least."""
        return replace(self, head=wide(self.head), embedded=lambda *at: wide(self.embedded(*at)))

    def shots(self, shots: int | None, seed: int) -> Tensor | None:
        """Which fit rows: so many a class; None: all."""
        return None if shots is None else few_shot(self.labels("fit"), shots, seed, len(self.head))


def wide(tensor: Tensor) -> Tensor:
    """In float32 at least: embeddings and heads in half precision are multiplied there."""
    return tensor.to(accumulator(tensor.dtype))


@dataclass(frozen=True, eq=False)
class Fit:
    """What a method keeps of one task."""

    kept: Mapping[str, Tensor]
    """All that its logits need, and the surface it was chosen from."""
    chosen: Mapping[str, float] = field(default_factory=dict)
    """What was chosen on the select rows, by name."""


def scalar(value: float) -> Tensor:
    """A number as it is kept."""
    return torch.tensor(value, dtype=torch.float64)


def surface_of(found: Surface) -> dict[str, Tensor]:
    """A search's surface as it is kept: `surface.beta` or `surface.temperature` [R], and so on."""
    columns = ("accuracy", "low", "high", "alpha", "alphas", "grid")
    kept = {f"surface.{name}": getattr(found, name) for name in columns}
    return {f"surface.{found.name}": found.values, **kept}


def curve_of(found: ExactAlpha, at: Sequence[float]) -> dict[str, Tensor]:
    """Accuracy over α alone as it is kept: a surface of one row, without a second axis."""
    row = {"accuracy": found.accuracy, "low": found.low, "high": found.high, "alpha": found.middle}
    kept = {f"surface.{name}": scalar(value)[None] for name, value in row.items()}
    alphas = torch.tensor(list(at), dtype=torch.float64)
    grid = torch.tensor([found.curve], dtype=torch.float64)
    return {**kept, "surface.alphas": alphas, "surface.grid": grid}
