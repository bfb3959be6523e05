"""Layers of models of images: normalised pixels, and transformer layers with norms before them.

Axes: B rows, n tokens, d width, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from actors.data.images.preprocess import Preprocess, normalised
from actors.families.activations import activation
from actors.families.protocol import Activations


class PixelReader(nn.Module):
    """A first segment: reads uint8 pixels and normalises them."""

    def __init__(self, preprocess: Preprocess) -> None:
        """`preprocess`: the model's."""
        super().__init__()
        self.preprocess = preprocess
        self.dtype = torch.float32
        """dtype of activations, set by the holder of the weights."""
        self.constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> floats; constants are kept for each device from the first call."""
        device = pixels.device
        if device not in self.constants:
            with torch.inference_mode(False):  # a pass with gradients may follow
                self.constants[device] = self.preprocess.constants(device, self.dtype)
        return normalised(pixels, *self.constants[device])


class Attention(nn.Module):
    """Attention between all positions, as CLIPAttention and ViTAttention of `transformers` compute
    it (`sdpa`)."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        """`fields`: `hidden_size`, `num_attention_heads`; `qkv_bias`, by default true."""
        super().__init__()
        width, bias = fields["hidden_size"], fields.get("qkv_bias", True)
        self.head_width = width // fields["num_attention_heads"]
        self.scale = self.head_width**-0.5
        self.k_proj = nn.Linear(width, width, bias=bias)
        self.v_proj = nn.Linear(width, width, bias=bias)
        self.q_proj = nn.Linear(width, width, bias=bias)
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
    """One transformer layer, as CLIPEncoderLayer and ViTLayer of `transformers` compute it.

    Those classes are not used: their modules take two seconds to import, in each replica.
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
