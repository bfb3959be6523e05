"""CLIP's vision tower from its configuration: names, shapes and order of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.families.fields import check_fit, check_sizes, filled, linear, norm
from actors.files.documents import shown
from fusion.errors import InputError

PROJECTION = "visual_projection.weight"

PREFIX = "vision_model."
"""Prefix of the tower's names in full CLIP models, and in files of `transformers` before 5.6."""

DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""The configuration fields that the computation depends on, as CLIPVisionConfig has them."""

LARGEST: Mapping[str, int] = {
    "hidden_size": 1 << 14,
    "intermediate_size": 1 << 16,
    "num_hidden_layers": 256,
    "num_attention_heads": 1024,
    "num_channels": 64,
    "image_size": 4096,
    "patch_size": 1024,
}
"""Field -> largest accepted value, ten times that of the largest tower in use. Lists as long as the
number of layers are built before any weight is read."""


TEXT_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""The same of the text tower, as CLIPTextConfig has them."""

LARGEST_TEXT: Mapping[str, int] = {
    "hidden_size": 1 << 14,
    "intermediate_size": 1 << 16,
    "num_hidden_layers": 256,
    "num_attention_heads": 1024,
    "max_position_embeddings": 1 << 16,
    "vocab_size": 1 << 24,
}
"""The same of the text tower, all of whose layers are built before its weights are read."""


def vision_fields(config: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Fields of the vision tower in a `config.json`, with defaults filled in.

    Args:
        config: of a CLIPModel (with `vision_config` inside) or a CLIPVisionModel.
        file: the file, for messages.

    Raises:
        InputError: a field that must be a whole number from 1 to its largest value and is not, a
            width that is not divisible by the number of heads, an image smaller than a patch, an
            invalid epsilon, an activation that is not a name.
    """
    full = config.get("model_type") == "clip"
    fields = section(config, "vision_config", DEFAULTS, file) if full else filled(config, DEFAULTS)
    check_sizes(fields, LARGEST, file)
    check_fit(fields, file)
    if fields["patch_size"] > fields["image_size"]:
        raise InputError(
            f"{file}: patch_size: {fields['patch_size']}; at most image_size"
            f" ({fields['image_size']}) allowed"
        )
    return fields


def text_fields(config: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Fields of the text tower in the `config.json` of a CLIPModel, with defaults filled in.

    Args:
        config: its content.
        file: the file, for messages.

    Raises:
        InputError: see `vision_fields`.
    """
    fields, where = section(config, "text_config", TEXT_DEFAULTS, file), f"{file}: text_config"
    check_sizes(fields, LARGEST_TEXT, where)
    check_fit(fields, where)
    return fields


def section(
    config: Mapping[str, Any], name: str, defaults: Mapping[str, Any], file: str
) -> dict[str, Any]:
    """Fields of one tower of a full model.

    Raises:
        InputError: the section is not a mapping.
    """
    given = mapping(config, name, file)
    # Files of 2022 hold the fields twice; `transformers` uses this copy.
    if config.get(f"{name}_dict"):
        given = {**given, **defaults, **mapping(config, f"{name}_dict", file)}
    return filled(given, defaults)


def mapping(config: Mapping[str, Any], name: str, file: str) -> Mapping[str, Any]:
    """One section of a configuration; an empty mapping if it is missing.

    Raises:
        InputError: not a mapping.
    """
    found = config.get(name) or {}
    if not isinstance(found, Mapping):
        raise InputError(f"{file}: {name}: {shown(found)}; an object needed")
    return found


def vision_tensors(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor of the tower, in CLIPVisionModel's own order.

    This order is the axis of layer-wise codings: k, v, q within attention. `visual_projection` is
    not part of the tower.
    """
    width, patch = fields["hidden_size"], fields["patch_size"]
    return {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, fields["num_channels"], patch, patch),
        "embeddings.position_embedding.weight": ((fields["image_size"] // patch) ** 2 + 1, width),
        **norm("pre_layrnorm", width),  # sic
        **layers(fields),
        **norm("post_layernorm", width),
    }


def text_tensors(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor of the text tower, without its projection."""
    width = fields["hidden_size"]
    return {
        "embeddings.token_embedding.weight": (fields["vocab_size"], width),
        "embeddings.position_embedding.weight": (fields["max_position_embeddings"], width),
        **layers(fields),
        **norm("final_layer_norm", width),
    }


def layers(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of a tower's transformer layers."""
    width, inner = fields["hidden_size"], fields["intermediate_size"]
    tensors: dict[str, tuple[int, ...]] = {}
    for index in range(fields["num_hidden_layers"]):
        layer = f"encoder.layers.{index}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            tensors |= linear(f"{layer}.self_attn.{part}", width, width)
        tensors |= norm(f"{layer}.layer_norm1", width)
        tensors |= linear(f"{layer}.mlp.fc1", width, inner)
        tensors |= linear(f"{layer}.mlp.fc2", inner, width)
        tensors |= norm(f"{layer}.layer_norm2", width)
    return tensors


def activations(fields: Mapping[str, int]) -> tuple[int, int, int]:
    """Elements of activations for each image: (peak of a forward pass, kept for a backward pass,
    the same with one model per image).

    The forward pass counts, for one block, the residual stream, q, k, v and the MLP's hidden layer,
    or three copies of the image if that is more: as read, scaled and normalised.
    The backward pass counts what autograd keeps for every block: 8 times the width, and twice the
    hidden layer, before and after its activation. Merged layers with several models in a batch keep
    two more inputs. Attention scores are never stored as a whole (scaled dot product attention).
    """
    tokens = (fields["image_size"] // fields["patch_size"]) ** 2 + 1
    width, hidden = fields["hidden_size"], fields["intermediate_size"]
    depth = fields["num_hidden_layers"]
    forward = max(tokens * (5 * width + hidden), 3 * 3 * fields["image_size"] ** 2)
    return (
        forward,
        tokens * (8 * width + 2 * hidden) * depth,
        tokens * (10 * width + 2 * hidden) * depth,
    )
