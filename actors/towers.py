"""Towers of `transformers`: built empty from a configuration, their weights by canonical name."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from actors.checkpoints import Checkpoint
from fusion.errors import InputError

if TYPE_CHECKING:
    from transformers import CLIPConfig


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
