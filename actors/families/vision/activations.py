"""Sizes of activations of image classifiers, by which memory is planned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.families.images.resnet_architecture import resnet_tensors
from actors.families.vision.architecture import RESNET


def activations(fields: Mapping[str, Any], side: int) -> tuple[int, int, int]:
    """Elements of activations for each image: (peak of a forward pass, kept for a backward pass,
    the same with one model per image).

    The forward pass counts one layer at a time, or three copies of the image if that is more: as
    read, scaled and normalised.

    Args:
        fields: of the model.
        side: pixels of an image, a side.
    """
    image = 3 * 3 * side**2
    forward, kept = (of_resnet if fields["model_type"] == RESNET else of_vit)(fields, side)
    return max(forward, image), kept, kept + kept // 4


def of_vit(fields: Mapping[str, Any], side: int) -> tuple[int, int]:
    """Of a ViT: the residual stream, q, k, v and the MLP's hidden layer of one block; and what
    autograd keeps of every block, 8 times the width and twice the hidden layer."""
    tokens = (side // fields["patch_size"]) ** 2 + 1
    width, hidden = fields["hidden_size"], fields["intermediate_size"]
    depth = fields["num_hidden_layers"]
    return tokens * (5 * width + hidden), tokens * (8 * width + 2 * hidden) * depth


def of_resnet(fields: Mapping[str, Any], side: int) -> tuple[int, int]:
    """Of a ResNet: maps before and after the convolutions of one layer; and what autograd keeps,
    the input of each convolution, of its norm and of its activation."""
    places = {"embedder": -((-side // 2) ** 2)}
    at = -(-side // 4)
    for stage in range(len(fields["hidden_sizes"])):
        at = -(-at // 2) if stage or fields["downsample_in_first_stage"] else at
        places[f"encoder.stages.{stage}"] = at**2
    layers: dict[str, int] = {}
    for name, shape in resnet_tensors(fields).items():
        if name.endswith("convolution.weight"):
            place = next(count for stem, count in places.items() if name.startswith(f"{stem}."))
            layer = name.split(".layer.")[0].removesuffix(".shortcut.convolution.weight")
            layers[layer] = layers.get(layer, 0) + 3 * place * max(shape[0], shape[1])
    return max(layers.values()), sum(layers.values())
