"""Experts whose loss is a formula of the coefficients: no model, no image."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from actors.artifacts.coding_file import load_coding
from actors.data.images.pixel_cache_writer import PixelWriter
from actors.data.images.shifted_pixels import chunk
from actors.data.task_rows import Rows, TaskData
from actors.experts.evaluation import Evaluation, TaskScore
from fusion.task_vectors.gram import Gram
from sweeps.analysis.core.evaluated_points import PROBE, Points
from sweeps.analysis.core.inputs import AnalysisInputs
from sweeps.console.progress import Progress

N, C = 40, 3
NAMES = ("a", "b", "c")
VECTORS = torch.tensor([[3.0, 0.0], [1.0, 2.0], [3.0, 0.0]], dtype=torch.float64)
"""Task vectors in two dimensions; a and c are the same model."""

LOWEST = torch.tensor([1.0, 1.0], dtype=torch.float64)
"""Where the bowl of the loss is lowest."""


@dataclass
class Bowl:
    """loss = ‖θ − LOWEST‖², and as many of the samples wrong, in hundredths of the loss."""

    replicas: int = 2
    fails_after: float = math.inf
    asked: list[tuple[float, ...]] = field(default_factory=list)
    roles: set[str] = field(default_factory=set)

    def coefficients(self, recipe) -> torch.Tensor:
        return load_coding(recipe.learned, NAMES, ("w",), "test").flatten().double()

    def evaluate_all(self, recipes, role):
        if len(self.asked) + len(recipes) > self.fails_after:
            raise ConnectionError("killed")
        self.roles.add(role)
        return [self.evaluate(recipe, role) for recipe in recipes]

    def evaluate(self, recipe, role):
        point = self.coefficients(recipe)
        self.asked.append(tuple(point.tolist()))
        loss = float((point @ VECTORS - LOWEST).square().sum())
        hits = np.arange(100) >= min(100, round(10 * loss))
        return Evaluation({"t": TaskScore(hits, loss)}, 0.0, 1)

    def logits(self, recipe, role):
        """Linear in the coefficients: a soup's logits are the ensemble's."""
        assert role == PROBE
        parts = torch.randn(len(NAMES) + 1, N, C, generator=torch.Generator().manual_seed(0))
        drift = torch.einsum("t,tnc->nc", self.coefficients(recipe).float(), parts[1:])
        return {"t": parts[0] + drift}

    def gram(self) -> Gram:
        total = VECTORS @ VECTORS.T
        return Gram(NAMES, total, {"w": total})


def pixel_file(path: Path, labels: list[int], pixels: np.ndarray | None = None) -> Path:
    """Images [N, 3, H, W] with these labels; of one black pixel where none are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((len(labels), 3, 1, 1)) if pixels is None else pixels
    images = pixels.astype(np.uint8).reshape(len(labels), -1)
    shape = ",".join(map(str, pixels.shape[1:]))
    with PixelWriter([(path, len(labels), {"shape": shape})], images.shape[1]) as writer:
        writer.write(chunk(images, np.array(labels), 0))
    return path


def given(folder: Path, experts: Bowl | None = None, **changes) -> AnalysisInputs:
    """What parts read, over a bowl."""
    experts = experts or Bowl()
    pixels = folder / "pixels.arrow"
    if not pixels.exists():
        labels = torch.randint(C, (N,), generator=torch.Generator().manual_seed(1))
        pixel_file(pixels, labels.tolist())
    rows = Rows(pixels)
    progress = Progress(Console(quiet=True))
    whole, probe = (
        Points(experts, NAMES, role, folder / "points" / f"{role}.json", progress)
        for role in ("select", PROBE)
    )
    singles = whole([whole.of({name: 1.0}) for name in NAMES], "experts")
    known = {
        "context": "x", "gram": experts.gram(), "whole": whole, "probe": probe,
        "data": {"t": TaskData("t", folder / "head", {"select": rows, PROBE: rows})},
        "singles": dict(zip(NAMES, singles, strict=True)), "metric": "acc/mean", "recipes": {},
        "dtype": "float32", "seed": 0, "rows": N, "soup": True,
    }  # fmt: skip
    return AnalysisInputs(**(known | changes))
