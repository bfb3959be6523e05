"""ViT and ResNet classifiers as chains of segments: what shards are cut from.

Activations, axes B rows, n tokens, d width, H × W pixels, C classes: {"pixels": uint8 [B, 3, H, W]}
first; {"hidden": [B, n, d]} or [B, channels, h, w] between; {"output": logits [B, C]} last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from actors.checkpoints.checkpoint import Checkpoint
from actors.data.images.preprocess import Preprocess
from actors.data.images.preprocessor_config import read_classifier
from actors.families.activations import activation
from actors.families.images.layers import Block, LastBlock, PixelReader
from actors.families.protocol import OUTPUT, Activations, Segment, check_untied, segment
from actors.families.vision.architecture import OUT, RESNET
from fusion.errors import InputError
from fusion.merged_layers.modules import BareParameter

INNER = {
    "layernorm_before": "layer_norm1",
    "attention.attention.query": "self_attn.q_proj",
    "attention.attention.key": "self_attn.k_proj",
    "attention.attention.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "layernorm_after": "layer_norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
"""A ViT layer's modules in files -> those of `EncoderLayer`."""


class Embed(PixelReader):
    """Pixels to a ViT's first hidden states: patches, class token, positions."""

    def __init__(self, fields: Mapping[str, Any], preprocess: Preprocess) -> None:
        """`fields`: see `architecture.DEFAULTS`."""
        super().__init__(preprocess)
        width, patch = fields["hidden_size"], fields["patch_size"]
        places = (fields["image_size"] // patch) ** 2 + 1
        self.token, self.position = BareParameter(1, 1, width), BareParameter(1, places, width)
        self.projection = nn.Conv2d(fields["num_channels"], width, kernel_size=patch, stride=patch)

    def forward(self, carry: Activations) -> Activations:
        """{"pixels"} -> {"hidden"}."""
        patches = self.projection(self.normalised(carry["pixels"])).flatten(2).transpose(1, 2)
        token = self.token().flatten(0, 2).to(patches.dtype)  # [B or 1, d], one token
        token = token.unsqueeze(1).expand(len(patches), -1, -1)
        hidden = torch.cat([token, patches], dim=1)
        return {"hidden": hidden + self.position().flatten(0, 1).to(hidden.dtype)}


class ClassifyToken(nn.Module):
    """The class token's last state, normalised, to logits."""

    def __init__(self, fields: Mapping[str, Any], classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(fields["hidden_size"], eps=fields["layer_norm_eps"])
        self.out = nn.Linear(fields["hidden_size"], classes)

    def forward(self, carry: Activations) -> Activations:
        """{"hidden"} -> {"output"}."""
        return {OUTPUT: self.out(self.norm(carry["hidden"][:, 0]))}


class Convolve(nn.Module):
    """A convolution, batch norm, and an activation if there is one."""

    def __init__(
        self, into: int, out: int, kernel: int, stride: int, act: str | None = None
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            into, out, kernel, stride=stride, padding=kernel // 2, bias=False
        )
        self.normalization = nn.BatchNorm2d(out)
        self.act = None if act is None else activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """[B, into, h, w] -> [B, out, h', w']."""
        x = self.normalization(self.convolution(x))
        return x if self.act is None else self.act(x)


class Stem(PixelReader):
    """Pixels to a ResNet's first feature maps: a convolution and the largest of neighbours."""

    def __init__(self, fields: Mapping[str, Any], preprocess: Preprocess) -> None:
        """`fields`: see `resnet_fields`."""
        super().__init__(preprocess)
        self.embedder = Convolve(
            fields["num_channels"], fields["embedding_size"], 7, 2, fields["hidden_act"]
        )
        self.pooler = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, carry: Activations) -> Activations:
        """{"pixels"} -> {"hidden"}."""
        return {"hidden": self.pooler(self.embedder(self.normalised(carry["pixels"])))}


class Residual(nn.Module):
    """A ResNet's layer, basic or bottleneck, as `transformers` computes it."""

    def __init__(self, fields: Mapping[str, Any], into: int, out: int, stride: int) -> None:
        """`fields`: see `resnet_fields`."""
        super().__init__()
        act = fields["hidden_act"]
        self.shortcut = Convolve(into, out, 1, stride) if into != out or stride != 1 else None
        if fields["layer_type"] == "basic":
            steps = [Convolve(into, out, 3, stride, act), Convolve(out, out, 3, 1)]
        else:
            inner, first = out // 4, fields["downsample_in_bottleneck"]
            steps = [
                Convolve(into, inner, 1, stride if first else 1, act),
                Convolve(inner, inner, 3, 1 if first else stride, act),
                Convolve(inner, out, 1, 1),
            ]
        self.layer = nn.Sequential(*steps)
        self.act = activation(act)

    def forward(self, carry: Activations) -> Activations:
        """{"hidden"} -> {"hidden"}."""
        x = carry["hidden"]
        around = x if self.shortcut is None else self.shortcut(x)
        return {"hidden": self.act(self.layer(x) + around)}


class ClassifyMean(nn.Module):
    """The mean of the last feature maps, to logits."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.pooler = nn.AdaptiveAvgPool2d((1, 1))
        self.out = nn.Linear(width, classes)

    def forward(self, carry: Activations) -> Activations:
        """{"hidden"} -> {"output"}."""
        return {OUTPUT: self.out(self.pooler(carry["hidden"]).flatten(1))}


def vision_segments(base: Checkpoint) -> tuple[Segment, ...]:
    """The first layer, one segment for each layer, the classifier.

    Raises:
        InputError: images prepared to another size than a ViT's, or no classifier.
    """
    if not base.fields["labels"]:
        raise InputError(f"{base.name}: {base.folder}: no classifier")
    preprocess = read_classifier(base.folder)
    check_size(base, preprocess)
    resnet = base.fields["model_type"] == RESNET
    chain = tuple((resnet_chain if resnet else vit_chain)(base, preprocess))
    check_untied(chain, base.name)
    return chain


def check_size(base: Checkpoint, preprocess: Preprocess) -> None:
    """Raise InputError where images are prepared to another size than a ViT's; a ResNet takes
    any."""
    size = base.fields.get("image_size")
    if size is not None and preprocess.shape != (size, size):
        raise InputError(
            f"{base.name}: {base.folder}: images are prepared to {preprocess.shape};"
            f" the model takes {(size, size)}"
        )


def vit_chain(base: Checkpoint, preprocess: Preprocess) -> Iterator[Segment]:
    """The segments of a ViT."""
    fields, stem = base.fields, "embeddings."
    names = {
        "token.value": f"{stem}cls_token",
        "position.value": f"{stem}position_embeddings",
        "projection.weight": f"{stem}patch_embeddings.projection.weight",
        "projection.bias": f"{stem}patch_embeddings.projection.bias",
    }
    yield segment(base, Embed, (fields, preprocess), names)
    for index in range(fields["num_hidden_layers"]):
        prefix = f"encoder.layer.{index}."
        inside = [key for key in base.tensors if key.startswith(prefix)]
        names = {f"layer.{own_name(key.removeprefix(prefix))}": key for key in inside}
        kind = LastBlock if index == fields["num_hidden_layers"] - 1 else Block
        yield segment(base, kind, (fields,), names, "layer.mlp", fields["hidden_size"])
    names = {f"norm.{leaf}": f"layernorm.{leaf}" for leaf in ("weight", "bias")}
    yield segment(
        base, ClassifyToken, (fields, len(fields["labels"])), {**names, **out_names(base)}
    )


def own_name(name: str) -> str:
    """A tensor's name in `EncoderLayer`, of its name in a file's layer.

    >>> own_name("attention.output.dense.weight"), own_name("output.dense.bias")
    ('self_attn.out_proj.weight', 'mlp.fc2.bias')
    """
    module, _, leaf = name.rpartition(".")
    return f"{INNER[module]}.{leaf}"


def out_names(base: Checkpoint) -> dict[str, str]:
    """The classifier's own parameter names -> canonical names."""
    name = OUT[base.fields["model_type"]]
    return {f"out.{leaf}": f"{name}.{leaf}" for leaf in ("weight", "bias")}


def resnet_chain(base: Checkpoint, preprocess: Preprocess) -> Iterator[Segment]:
    """The segments of a ResNet: one for each residual layer."""
    fields = base.fields
    yield normed(base, Stem, (fields, preprocess), "embedder.")
    into = fields["embedding_size"]
    for stage, (out, depth) in enumerate(
        zip(fields["hidden_sizes"], fields["depths"], strict=True)
    ):
        for layer in range(depth):
            halved = layer == 0 and (stage > 0 or fields["downsample_in_first_stage"])
            prefix = f"encoder.stages.{stage}.layers.{layer}."
            yield normed(base, Residual, (fields, into, out, 2 if halved else 1), prefix)
            into = out
    yield segment(base, ClassifyMean, (into, len(fields["labels"])), out_names(base))


def normed(
    base: Checkpoint, kind: type[nn.Module], arguments: tuple[Any, ...], prefix: str
) -> Segment:
    """A segment with batch norm, of the tensors whose names begin with `prefix`."""
    names, running = (
        {key.removeprefix(prefix): key for key in tensors if key.startswith(prefix)}
        for tensors in (base.tensors, base.rest)
    )
    return segment(base, kind, arguments, names, running=running)


def is_linear(name: str) -> bool:
    """Whether a tensor is the weight of a linear layer."""
    ends = (".query.weight", ".key.weight", ".value.weight", ".dense.weight")
    return name.endswith(ends) or name in {f"{out}.weight" for out in OUT.values()}


def input_of(name: str) -> str:
    """The weight under whose name statistics of a layer's input are kept: q's for q, k and v."""
    for part in (".attention.key.", ".attention.value."):
        name = name.replace(part, ".attention.query.")
    return name
