"""CLIP's vision tower as a chain of segments, which is cut into shards.

Activations: {"pixels": uint8 [B, 3, H, W]} first, {"hidden": [B, n, d]} between segments,
{"output": [B, D]} last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from actors.checkpoints.checkpoint import Checkpoint
from actors.data.images.preprocess import Preprocess, normalised
from actors.data.images.preprocessor_config import read_preprocess
from actors.families.activations import activation
from actors.families.clip.architecture import PROJECTION
from actors.families.protocol import Activations, Segment, check_untied, segment
from fusion.errors import InputError
from fusion.merged_layers.modules import BareParameter


class Embed(nn.Module):
    """Pixels to the first hidden states: patches, class token, positions, first norm."""

    def __init__(self, fields: Mapping[str, Any], preprocess: Preprocess) -> None:
        """`fields`: see `architecture.DEFAULTS`."""
        super().__init__()
        self.preprocess = preprocess
        width, patch = fields["hidden_size"], fields["patch_size"]
        self.positions = (fields["image_size"] // patch) ** 2 + 1
        self.token = BareParameter(width)
        self.patch_embedding = nn.Conv2d(
            fields["num_channels"], width, kernel_size=patch, stride=patch, bias=False
        )
        self.position_embedding = nn.Embedding(self.positions, width)
        self.pre_layrnorm = nn.LayerNorm(width, eps=fields["layer_norm_eps"])
        self.dtype = torch.float32
        """dtype of activations, set by the holder of the weights."""
        self.constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def forward(self, carry: Activations) -> Activations:
        """{"pixels"} -> {"hidden"}."""
        pixels = carry["pixels"]
        images = normalised(pixels, *self.constants_on(pixels.device))
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        token = self.token().unsqueeze(1).to(patches.dtype)
        hidden = torch.cat([token.expand(len(patches), -1, -1), patches], dim=1)
        ids = torch.arange(self.positions, device=pixels.device)[None]
        hidden = hidden + self.position_embedding(ids).to(hidden.dtype)
        return {"hidden": self.pre_layrnorm(hidden)}

    def constants_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The constants of the normalisation on a device, kept from the first call on."""
        if device not in self.constants:
            with torch.inference_mode(False):  # a pass with gradients may follow
                self.constants[device] = self.preprocess.constants(device, self.dtype)
        return self.constants[device]


class Attention(nn.Module):
    """Attention between all positions, as CLIPAttention of `transformers` computes it (`sdpa`)."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        width = fields["hidden_size"]
        self.head_width = width // fields["num_attention_heads"]
        self.scale = self.head_width**-0.5
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor, first: int | None = None) -> Tensor:
        """[B, n, d] -> [B, n, d], or the `first` tokens alone."""
        read = hidden if first is None else hidden[:, :first]  # Gram matrices: one for one tensor
        query, key, value = (
            layer(x).view(*x.shape[:-1], -1, self.head_width).transpose(1, 2)
            for layer, x in (
                (self.q_proj, read),
                (self.k_proj, hidden),
                (self.v_proj, hidden),
            )
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, scale=self.scale)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """The two linear layers of a transformer layer with the activation between them."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self.activation = activation(fields["hidden_act"])
        self.fc1 = nn.Linear(fields["hidden_size"], fields["intermediate_size"])
        self.fc2 = nn.Linear(fields["intermediate_size"], fields["hidden_size"])

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, n, d] -> [B, n, d]."""
        out: Tensor = self.fc2(self.activation(self.fc1(hidden)))
        return out


class EncoderLayer(nn.Module):
    """One transformer layer, as CLIPEncoderLayer of `transformers` computes it.

    That class is not used: its module takes two seconds to import, in each replica.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        width, epsilon = fields["hidden_size"], fields["layer_norm_eps"]
        self.self_attn = Attention(fields)
        self.layer_norm1 = nn.LayerNorm(width, eps=epsilon)
        self.mlp = Mlp(fields)
        self.layer_norm2 = nn.LayerNorm(width, eps=epsilon)

    def forward(self, hidden: Tensor, first: int | None = None) -> Tensor:
        """[B, n, d] -> [B, n, d], or the `first` tokens alone."""
        hidden = hidden[:, :first] + self.self_attn(self.layer_norm1(hidden), first)
        out: Tensor = hidden + self.mlp(self.layer_norm2(hidden))
        return out


class Block(nn.Module):
    """One transformer layer of the chain."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer = EncoderLayer(fields)

    def forward(self, carry: Activations) -> Activations:
        """{"hidden"} -> {"hidden"}."""
        return {"hidden": self.layer(carry["hidden"])}


class LastBlock(Block):
    """The last transformer layer, of whose tokens only the class token is read."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self.whole = False
        """Whether all tokens are computed, see `compute_all_rows`."""

    def forward(self, carry: Activations) -> Activations:
        """{"hidden" [B, n, d]} -> {"hidden" [B, 1, d]}; all n tokens if `whole`."""
        return {"hidden": self.layer(carry["hidden"], None if self.whole else 1)}


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
