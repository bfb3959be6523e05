"""Images and labels of a task's rows, for training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from actors.data.images.pixel_cache import open_pixels
from actors.data.task_rows import BATCH, Rows


def images_of(rows: Rows) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, H, W] and labels [N] of a role."""
    pixels = open_pixels(rows.file)
    at = slice(None) if rows.indices is None else rows.indices
    return pixels.images[at], pixels.labels[at]


def outputs_of(rows: Rows, seen: Callable[[Tensor], Tensor]) -> Tensor:
    """A model's outputs [N, …] of a role's rows, on the CPU; it reads uint8 images."""
    images, _ = images_of(rows)
    return torch.cat([seen(part).cpu() for part in torch.split(images, BATCH)])
