"""Build empty towers of `transformers` from a configuration, with access by canonical names."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from actors.checkpoints.checkpoint import Checkpoint
from actors.families.activations import activation
from actors.families.clip.architecture import text_fields, text_tensors
from fusion.errors import InputError, reading

if TYPE_CHECKING:
    from transformers import CLIPConfig

TEXT_PREFIX = "text_model."


def empty(kind: Any, config: Any, device: str | torch.device, dtype: torch.dtype) -> nn.Module:
    """A CLIP tower of `transformers` with uninitialised weights, frozen, in evaluation mode.

    Draws no random numbers and loads nothing, which saves seconds for a large model.
    """
    with torch.device("meta"):
        model: nn.Module = kind(config)
    model = model.to_empty(device=device).to(dtype).eval().requires_grad_(False)
    for name, buffer in model.named_buffers():
        assert name.endswith("position_ids"), name  # the only buffer of CLIP's towers
        buffer.copy_(torch.arange(buffer.numel(), device=device).view_as(buffer))
    return model


def weights(tower: nn.Module) -> dict[str, Tensor]:
    """Canonical name -> parameter memory, in definition order."""
    # `transformers` before 5.6 nests the tower; the structure decides, not the version.
    for nested in ("vision_model", "text_model"):
        tower = getattr(tower, nested, tower)
    return {name: parameter.data for name, parameter in tower.named_parameters()}


def clip_config(checkpoint: Checkpoint) -> CLIPConfig:
    """The configuration as an object of `transformers`.

    Raises:
        InputError: `transformers` refuses it, or a size of the text tower is out of bounds.
    """
    from transformers import CLIPConfig, CLIPVisionConfig

    values = copy.deepcopy(dict(checkpoint.config))
    file = f"{checkpoint.name}: {checkpoint.folder / 'config.json'}"
    with reading(file):
        if values["model_type"] == "clip":
            text_fields(values, file)  # all layers of the text tower would be built
            return CLIPConfig(**values)
        return CLIPConfig(vision_config=CLIPVisionConfig(**values).to_dict())


def check_towers(base: Checkpoint) -> None:
    """Check that both towers of a base can be built, and compare the text tower's tensors.

    Raises:
        InputError: fields of the text tower that are out of bounds or contradict each other, an
            unknown activation, or a text tower with missing or mis-shaped tensors.
    """
    file = base.folder / "config.json"
    fields = text_fields(base.config, f"{base.name}: {file}")
    with reading(f"{base.name}: {file}"):
        activation(base.fields["hidden_act"])
        activation(fields["hidden_act"])
    wanted = text_tensors(fields)
    for key, info in base.rest.items():
        if key.startswith(TEXT_PREFIX) and key.removeprefix(TEXT_PREFIX) not in wanted:
            raise InputError(f"{base.name}: {info.file}: tensor {key!r}: not part of a CLIP model")
    for name, shape in wanted.items():
        if TEXT_PREFIX + name not in base.rest:
            raise InputError(f"{base.name}: {base.folder}: tensor {TEXT_PREFIX + name!r}: missing")
        info = base.rest[TEXT_PREFIX + name]
        if info.shape != shape:
            raise InputError(
                f"{base.name}: {info.file}: tensor {TEXT_PREFIX + name!r}: shape"
                f" {list(info.shape)}; {file} says {list(shape)}"
            )
