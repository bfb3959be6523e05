"""CLIP's vision tower on paper: its configuration, its tensors, their names and their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusion.errors import InputError

PROJECTION = "visual_projection.weight"

PREFIX = "vision_model."
"""What `transformers` before 5.6, and every full CLIP model, writes before the tower's names."""

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

SIZES = tuple(name for name, value in DEFAULTS.items() if isinstance(value, int))


def vision_fields(config: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The vision tower's fields of a `config.json`, defaults filled in.

    Args:
        config: of a CLIPModel (`vision_config` inside) or a CLIPVisionModel.
        file: for the message.

    Raises:
        InputError: a field that is not a positive whole number where one is needed.
    """
    given: Mapping[str, Any] = config
    if config.get("model_type") == "clip":
        given = config.get("vision_config") or {}
        # Files of 2022 hold the fields twice; `transformers` lets this copy win.
        if config.get("vision_config_dict"):
            given = {**given, **DEFAULTS, **config["vision_config_dict"]}
    fields = {name: given.get(name, default) for name, default in DEFAULTS.items()}
    for name in SIZES:
        if type(fields[name]) is not int or fields[name] < 1:
            raise InputError(f"{file}: {name}: {fields[name]!r}; a positive whole number needed")
    return fields


def vision_tensors(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor of the tower, in CLIPVisionModel's own order.

    That order is the axis of layer-wise codings: k, v, q within attention. `visual_projection`
    is not part of the tower.
    """
    width, inner = fields["hidden_size"], fields["intermediate_size"]
    patch = fields["patch_size"]
    tensors: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, fields["num_channels"], patch, patch),
        "embeddings.position_embedding.weight": ((fields["image_size"] // patch) ** 2 + 1, width),
    }

    def linear(name: str, into: int, out: int) -> None:
        tensors[f"{name}.weight"] = (out, into)
        tensors[f"{name}.bias"] = (out,)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = tensors[f"{name}.bias"] = (width,)

    norm("pre_layrnorm")  # sic
    for index in range(fields["num_hidden_layers"]):
        layer = f"encoder.layers.{index}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            linear(f"{layer}.self_attn.{part}", width, width)
        norm(f"{layer}.layer_norm1")
        linear(f"{layer}.mlp.fc1", width, inner)
        linear(f"{layer}.mlp.fc2", inner, width)
        norm(f"{layer}.layer_norm2")
    norm("post_layernorm")
    return tensors
