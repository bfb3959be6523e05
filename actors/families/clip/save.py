"""Standardise pixels as CLIP's image processor does, and save fine-tuned vision towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def standardised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Convert uint8 [B, 3, H, W] to the float32 pixels of the image processor."""
    shape = (1, 3, 1, 1)
    return (images.float() / 255 - mean.to(images.device).view(shape)) / std.to(images.device).view(
        shape
    )


def pixel_statistics(folder: Path) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [3] of the channels, from a folder's image processor."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil.from_pretrained(folder)
    return torch.tensor(processor.image_mean), torch.tensor(processor.image_std)


def save_expert(base: Path, tower: Any, folder: Path) -> None:
    """Write a vision tower as `CLIPVisionModel.save_pretrained` does, and its image processor."""
    from transformers import CLIPVisionModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    # Loaded again, because a model is saved under the tensor names that it was loaded with: those
    # of the hub. A tower inside a CLIPModel would be saved under names without prefix.
    model = CLIPVisionModel.from_pretrained(base)
    model.load_state_dict(tower.state_dict())
    model.save_pretrained(folder)
    CLIPImageProcessorPil.from_pretrained(base).save_pretrained(folder)
