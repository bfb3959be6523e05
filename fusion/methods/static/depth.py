"""Relative depth of tensors in a model, from their names."""

from __future__ import annotations

import re
from collections.abc import Sequence

LAYER = re.compile(r"(?:(.+?)\.)?(\d+)\.")
"""A stack of layers, and the number of one of them: the first number between dots in a name."""

FIRST = {"shared", "wte", "wpe", "conv1", "stem", "cls_token"}
FIRST |= {"pre_layrnorm", "pre_layernorm", "ln_pre", "norm_pre"}
"""Parts of names, between dots, of tensors before the first layer; so is each with "embed" in it
(`embeddings`, `embed_tokens`, `patch_embed`, `embedder`), except `embed_out`, an output layer."""


def layer_depths(groups: Sequence[str]) -> dict[str, float]:
    """Name -> relative depth in [0, 1], for the tensors that are in a numbered layer.

    The first number between dots is the layer's: `layers.3` in `vision_model.encoder.layers.3.…`,
    `block.3` in `decoder.block.3.layer.0.…`. What is before it names a stack, and each stack has a
    depth of its own: 0 in its first layer, 1 in its last, linear in the number between them; 0.5 if
    it has one layer. So the encoder and the decoder of a T5 both run from 0 to 1.

    Args:
        groups: names of the tensors of the whole model (`TaskVectors.groups`), in any order.

    >>> layer_depths(["embed.weight", "encoder.block.0.w", "encoder.block.2.w"])
    {'encoder.block.0.w': 0.0, 'encoder.block.2.w': 1.0}
    """
    places = {}
    for name in groups:
        if found := LAYER.match(name):
            places[name] = found.group(1), int(found.group(2))
    numbers: dict[str | None, set[int]] = {}
    for stack, number in places.values():
        numbers.setdefault(stack, set()).add(number)
    depths = {}
    for name, (stack, number) in places.items():
        first, last = min(numbers[stack]), max(numbers[stack])
        depths[name] = (number - first) / (last - first) if last > first else 0.5
    return depths


def depths(groups: Sequence[str]) -> dict[str, float]:
    """Name -> relative depth in [0, 1], for all tensors.

    That of its layer (`layer_depths`); outside of numbered layers 0 for embeddings and what is
    before the first layer (`is_first`), else 1: final norms, poolers, projections and heads.

    >>> depths(["shared.weight", "encoder.block.0.w", "encoder.final_layer_norm.weight"])
    {'shared.weight': 0.0, 'encoder.block.0.w': 0.5, 'encoder.final_layer_norm.weight': 1.0}
    """
    inside = layer_depths(groups)
    return {name: inside.get(name, 0.0 if is_first(name) else 1.0) for name in groups}


def is_first(name: str) -> bool:
    """Whether a tensor outside of numbered layers comes before the first one.

    >>> is_first("embeddings.class_embedding"), is_first("vision_model.pre_layrnorm.bias")
    (True, True)
    >>> is_first("bert.pooler.dense.weight"), is_first("embed_out.weight")
    (False, False)
    """
    parts = name.split(".")
    return not FIRST.isdisjoint(parts) or any(
        "embed" in part and part != "embed_out" for part in parts
    )
