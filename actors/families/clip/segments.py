"""CLIP's vision tower as a chain of segments, which is cut into shards.

Activations: {"pixels": uint8 [B, 3, H, W]} first, {"hidden": [B, n, d]} between segments,
{"output": [B, D]} last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from actors.checkpoints.checkpoint import Checkpoint
from actors.data.images.preprocess import Preprocess
from actors.data.images.preprocessor_config import read_preprocess
from actors.families.clip.architecture import PROJECTION
from actors.families.images.layers import Block as Block
from actors.families.images.layers import EncoderLayer as EncoderLayer
from actors.families.images.layers import LastBlock as LastBlock
from actors.families.images.layers import PixelReader
from actors.families.protocol import Activations, Segment, check_untied, segment
from fusion.errors import InputError
from fusion.merged_layers.modules import BareParameter


class Embed(PixelReader):
    """Pixels to the first hidden states: patches, class token, positions, first norm."""

    def __init__(self, fields: Mapping[str, Any], preprocess: Preprocess) -> None:
        """`fields`: see `architecture.DEFAULTS`."""
        super().__init__(preprocess)
        width, patch = fields["hidden_size"], fields["patch_size"]
        self.positions = (fields["image_size"] // patch) ** 2 + 1
        self.token = BareParameter(width)
        self.patch_embedding = nn.Conv2d(
            fields["num_channels"], width, kernel_size=patch, stride=patch, bias=False
        )
        self.position_embedding = nn.Embedding(self.positions, width)
        self.pre_layrnorm = nn.LayerNorm(width, eps=fields["layer_norm_eps"])

    def forward(self, carry: Activations) -> Activations:
        """{"pixels"} -> {"hidden"}."""
        pixels = carry["pixels"]
        patches = self.patch_embedding(self.normalised(pixels)).flatten(2).transpose(1, 2)
        token = self.token().unsqueeze(1).to(patches.dtype)
        hidden = torch.cat([token.expand(len(patches), -1, -1), patches], dim=1)
        ids = torch.arange(self.positions, device=pixels.device)[None]
        hidden = hidden + self.position_embedding(ids).to(hidden.dtype)
        return {"hidden": self.pre_layrnorm(hidden)}


class Project(nn.Module):
    """The class token's last state, normalised and projected."""

    def __init__(self, fields: Mapping[str, Any], out: int) -> None:
        super().__init__()
        width = fields["hidden_size"]
        self.post_layernorm = nn.LayerNorm(width, eps=fields["layer_norm_eps"])
        self.visual_projection = nn.Linear(width, out, bias=False)

    def forward(self, carry: Activations) -> Activations:
        """{"hidden"} -> {"output"}."""
        pooled = self.post_layernorm(carry["hidden"][:, 0])
        return {"output": self.visual_projection(pooled)}


def clip_segments(base: Checkpoint) -> tuple[Segment, ...]:
    """Embeddings, one segment for each layer, projection.

    Raises:
        InputError: no projection, or images prepared to another size than the model's.
    """
    if PROJECTION not in base.tensors:
        raise InputError(f"{base.name}: {base.folder}: no {PROJECTION}")
    fields, preprocess = base.fields, read_preprocess(base.folder)
    size = fields["image_size"]
    if preprocess.shape != (size, size):
        raise InputError(
            f"{base.folder}: images are prepared to {preprocess.shape};"
            f" the model takes {(size, size)}"
        )
    out = base.tensors[PROJECTION].shape[0]
    names = {
        "token.value": "embeddings.class_embedding",
        "patch_embedding.weight": "embeddings.patch_embedding.weight",
        "position_embedding.weight": "embeddings.position_embedding.weight",
        "pre_layrnorm.weight": "pre_layrnorm.weight",
        "pre_layrnorm.bias": "pre_layrnorm.bias",
    }
    chain = [segment(base, Embed, (fields, preprocess), names)]
    for index in range(fields["num_hidden_layers"]):
        prefix = f"encoder.layers.{index}."
        names = {
            f"layer.{name.removeprefix(prefix)}": name
            for name in base.tensors
            if name.startswith(prefix)
        }
        kind = LastBlock if index == fields["num_hidden_layers"] - 1 else Block
        chain.append(segment(base, kind, (fields,), names, "layer.mlp", fields["hidden_size"]))
    names = {name: name for name in ("post_layernorm.weight", "post_layernorm.bias", PROJECTION)}
    chain.append(segment(base, Project, (fields, out), names))
    check_untied(tuple(chain), base.name)
    return tuple(chain)
