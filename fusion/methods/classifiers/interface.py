"""Interface of fitted classifiers: the embeddings they read, and the result they store.

The mathematics is in `tip_adapter`, `tip_adapter_f`, `clip_adapter`, `cafo`, `linear_probe` and
`ensemble`. The methods of the table are in `fit_heads` and `fit_adapters`.
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
from fusion.logits.head import CosineHead, Head
from fusion.methods.classifiers.grid_search import Surface
from fusion.methods.classifiers.tip_adapter import (
    few_shot,
)
from fusion.task_vectors.task_vectors import accumulator

BASE = "pretrained"

MERGED = "merged model"
"""Source of the outputs of the model that a method of kind `Adapted` repairs."""

Embedded: TypeAlias = Callable[[str], Tensor]
"""Source (the base, an expert's name, or `MERGED`) -> embeddings [N, D] of the rows to classify."""


@dataclass(frozen=True, eq=False)
class TaskEmbeddings:
    """Embeddings, labels and head of one task, for the fit and select splits."""

    experts: tuple[str, ...]
    head: Head
    """The task's own classifier."""
    labels: Callable[[str], Tensor]
    """Role (split) -> int64 [N]."""
    embedded: Callable[[str, str, Tensor | None], Tensor]
    """(source, role, row numbers or None for all) -> embeddings [n, D], not normalised. The source
    `MERGED` is there for methods of kind `Adapted` only."""
    task: str = ""
    """Its name."""

    @property
    def weight(self) -> Tensor:
        """Class weights [C, D] of a cosine head; see `class_weights`."""
        return class_weights(self.head)

    def rows(self, source: str, role: str, at: Tensor | None = None) -> Labelled:
        """Embeddings and labels of the rows of a split.

        Raises:
            InputError: an unknown source.
        """
        known = (BASE, *self.experts)
        if source not in known:
            raise InputError(f"features: {unknown('source', source, known)}")
        labels = self.labels(role)
        return Labelled(self.embedded(source, role, at), labels if at is None else labels[at], role)

    def widened(self) -> TaskEmbeddings:
        """The same data, with embeddings at least in float32."""
        return replace(self, embedded=lambda *at: float32_at_least(self.embedded(*at)))

    def shots(self, shots: int | None, seed: int) -> Tensor | None:
        """Row numbers of a few-shot subset of the fit split; None: all rows."""
        return (
            None if shots is None else few_shot(self.labels("fit"), shots, seed, self.head.classes)
        )


def class_weights(head: Head) -> Tensor:
    """Class weights [C, D] of a cosine head, logit scale included, at least in float32.

    Raises:
        InputError: another head, which compares no normalised embeddings.
    """
    if not isinstance(head, CosineHead):
        raise InputError(f"head: {type(head).__name__}; a cosine head needed")
    return float32_at_least(head.weight)


def float32_at_least(tensor: Tensor) -> Tensor:
    """Convert half precision to float32, in which embeddings and heads are multiplied."""
    return tensor.to(accumulator(tensor.dtype))


@dataclass(frozen=True, eq=False)
class Fit:
    """Result of a fit: the tensors that a method stores for one task."""

    kept: Mapping[str, Tensor]
    """Name -> tensor: all that its logits need, and the accuracy surface of the search."""
    chosen: Mapping[str, float] = field(default_factory=dict)
    """Name -> hyper-parameter that was chosen on the select rows."""


def scalar(value: float) -> Tensor:
    """A number as a float64 tensor, for storing."""
    return torch.tensor(value, dtype=torch.float64)


def surface_of(found: Surface) -> dict[str, Tensor]:
    """Accuracy surface of a search as named tensors: `surface.beta` [R], and so on."""
    columns = ("accuracy", "low", "high", "alpha", "alphas", "grid")
    kept = {f"surface.{name}": getattr(found, name) for name in columns}
    return {f"surface.{found.name}": found.values, **kept}


def curve_of(found: ExactAlpha, at: Sequence[float]) -> dict[str, Tensor]:
    """Accuracy over α as tensors: a surface of one row, without a second axis."""
    row = {"accuracy": found.accuracy, "low": found.low, "high": found.high, "alpha": found.middle}
    kept = {f"surface.{name}": scalar(value)[None] for name, value in row.items()}
    alphas = torch.tensor(list(at), dtype=torch.float64)
    grid = torch.tensor([found.curve], dtype=torch.float64)
    return {**kept, "surface.alphas": alphas, "surface.grid": grid}
