"""Resident models: a vision tower whose parameter memory merges are written into."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from actors.architecture import PROJECTION
from actors.checkpoints import Checkpoint, inspect, read
from actors.preprocess import read_preprocess
from fusion.errors import InputError

if TYPE_CHECKING:
    from transformers import CLIPConfig


class ImageEncoder:
    """CLIP's image side, resident on one device: pixels in, projected embeddings out."""

    def __init__(
        self,
        base: Path | str | Checkpoint,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Build the tower from its configuration and fill it from the file.

        Args:
            base: the folder of a model with a projection, or its inspected checkpoint.
            device: where it lives and computes.
            dtype: what it computes in.

        Raises:
            InputError: no projection, or images prepared to another size than the model's.
        """
        checkpoint = base if isinstance(base, Checkpoint) else inspect(str(base), "pool.base")
        if PROJECTION not in checkpoint.tensors:
            raise InputError(f"{checkpoint.name}: {checkpoint.folder}: no {PROJECTION}")
        self.device = torch.device(device)
        self.dtype = dtype
        self.preprocess = read_preprocess(checkpoint.folder)
        size = checkpoint.fields["image_size"]
        if self.preprocess.shape != (size, size):
            raise InputError(
                f"{checkpoint.folder}: images are prepared to {self.preprocess.shape};"
                f" the model takes {(size, size)}"
            )
        from transformers import CLIPVisionModel

        self.tower = empty(CLIPVisionModel, clip_config(checkpoint).vision_config, device, dtype)
        out, width = checkpoint.tensors[PROJECTION].shape
        self.projection = torch.empty(out, width, device=device, dtype=dtype)
        self.arena: dict[str, Tensor] = {**weights(self.tower), PROJECTION: self.projection}
        """Canonical name -> the live memory of that parameter, contiguous."""
        self.load(read(checkpoint))

    def load(self, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """Copy weights into the arena."""
        left = set(self.arena)
        for name, tensor in tensors:
            self.arena[name].copy_(tensor)
            left.remove(name)
        assert not left, f"not filled: {sorted(left)}"  # headers were checked before

    @torch.inference_mode()
    def embed(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [B, 3, H, W] -> projected embeddings [B, D], not normalised."""
        images = self.preprocess.normalise(pixels.to(self.device), self.dtype)
        pooled = self.tower(pixel_values=images).pooler_output
        return torch.nn.functional.linear(pooled, self.projection)


def empty(kind: Any, config: Any, device: str | torch.device, dtype: torch.dtype) -> nn.Module:
    """A CLIP tower of `transformers` with uninitialised weights, frozen, in evaluation mode.

    Nothing is drawn at random and nothing loaded: for a large model that is seconds.
    """
    with torch.device("meta"):
        model: nn.Module = kind(config)
    model = model.to_empty(device=device).to(dtype).eval().requires_grad_(False)
    for name, buffer in model.named_buffers():
        assert name.endswith("position_ids"), name  # the one buffer that CLIP's towers have
        buffer.copy_(torch.arange(buffer.numel(), device=device).view_as(buffer))
    return model


def weights(tower: nn.Module) -> dict[str, Tensor]:
    """Canonical name -> parameter memory, in definition order."""
    # `transformers` before 5.6 nests the tower; the structure is looked at, never the version.
    for nested in ("vision_model", "text_model"):
        tower = getattr(tower, nested, tower)
    return {name: parameter.data for name, parameter in tower.named_parameters()}


def clip_config(checkpoint: Checkpoint) -> CLIPConfig:
    """The configuration as `transformers` understands it.

    Raises:
        InputError: it does not.
    """
    from transformers import CLIPConfig, CLIPVisionConfig

    values = copy.deepcopy(dict(checkpoint.config))
    try:
        if values["model_type"] == "clip":
            return CLIPConfig(**values)
        return CLIPConfig(vision_config=CLIPVisionConfig(**values).to_dict())
    except (TypeError, ValueError, KeyError) as error:
        file = checkpoint.folder / "config.json"
        raise InputError(f"{checkpoint.name}: {file}: {' '.join(str(error).split())}") from None
