"""ViT and ResNet classifiers on paper: configuration, names, shapes and order of their tensors.

Axes: d hidden width, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from actors.families.fields import check_fit, check_sizes, filled, linear, norm
from actors.families.images.resnet_architecture import COUNTER, resnet_fields, resnet_tensors
from actors.files.documents import shown
from fusion.errors import InputError
from fusion.task_vectors.task_vectors import is_batch_statistic

VIT, RESNET = "vit", "resnet"

DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,
}
"""The configuration fields that the computation depends on, as ViTConfig has them."""

LARGEST: Mapping[str, int] = {
    "hidden_size": 1 << 14,
    "intermediate_size": 1 << 16,
    "num_hidden_layers": 256,
    "num_attention_heads": 1024,
    "num_channels": 64,
    "image_size": 4096,
    "patch_size": 1024,
}
"""Field -> largest accepted value."""

OUT = {VIT: "classifier", RESNET: "classifier.1"}
"""`model_type` -> the classifier [C, d]."""

TODAY = (
    (re.compile(r"^layers\.(\d+)\."), r"encoder.layer.\1."),
    (re.compile(r"\.attention\.q_proj\."), ".attention.attention.query."),
    (re.compile(r"\.attention\.k_proj\."), ".attention.attention.key."),
    (re.compile(r"\.attention\.v_proj\."), ".attention.attention.value."),
    (re.compile(r"\.attention\.o_proj\."), ".attention.output.dense."),
    (re.compile(r"\.mlp\.fc1\."), ".intermediate.dense."),
    (re.compile(r"\.mlp\.fc2\."), ".output.dense."),
)
"""Names of a ViT's modules in `transformers` 5 -> those of files on the hub, which it writes."""


def canonical(key: str) -> str:
    """A tensor's name in a file -> its name without the prefix of the model inside the classifier.

    >>> canonical("vit.layers.0.attention.q_proj.bias"), canonical("classifier.1.bias")
    ('encoder.layer.0.attention.attention.query.bias', 'classifier.1.bias')
    """
    for kind in (VIT, RESNET):
        key = key.removeprefix(f"{kind}.")
    for pattern, name in TODAY:
        key = pattern.sub(name, key)
    return key


def classifier_fields(config: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The fields of a `config.json`, defaults filled in; and `model_type`.

    Args:
        config: of a model of type `vit` or `resnet`.
        file: for the message.

    Raises:
        InputError: a field of another type or out of bounds, by name; fields that contradict each
            other.
    """
    if config["model_type"] == RESNET:
        flag = "downsample_in_bottleneck"
        more = {flag: bool(config.get(flag, False))}
        return {"model_type": RESNET, **resnet_fields(config, file), **more}
    fields = filled(config, DEFAULTS)
    for name in ("image_size", "patch_size"):
        fields[name] = side(fields[name])
    check_sizes(fields, LARGEST, file)
    check_fit(fields, file)
    if fields["image_size"] % fields["patch_size"]:
        raise InputError(
            f"{file}: image_size: {fields['image_size']}; a multiple of patch_size"
            f" ({fields['patch_size']}) needed"
        )
    if not isinstance(fields["qkv_bias"], bool):
        raise InputError(f"{file}: qkv_bias: {shown(fields['qkv_bias'])}; true or false needed")
    return {"model_type": VIT, **fields}


def side(value: Any) -> Any:
    """A side of a square that is given as one number or as two equal ones.

    >>> side([224, 224]), side(32)
    (224, 32)
    """
    square = isinstance(value, list) and len(value) == 2 and value[0] == value[1]
    return value[0] if square else value


def body_tensors(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor before the classifier, in the files' order.

    Batch norm's running statistics are among a ResNet's, its counters are not.
    """
    return resnet_tensors(fields) if fields["model_type"] == RESNET else vit_tensors(fields)


def is_running(name: str) -> bool:
    """Whether a tensor is a running mean or variance of batch norm.

    >>> is_running("a.running_var"), is_running("a.num_batches_tracked"), is_running("a.weight")
    (True, False, False)
    """
    return is_batch_statistic(name) and not name.endswith(COUNTER)


def vit_tensors(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of a ViT's tensors without its pooler, in the order of the library.

    This order is the axis of layer-wise codings.
    """
    width, inner, patch = fields["hidden_size"], fields["intermediate_size"], fields["patch_size"]
    places = (fields["image_size"] // patch) ** 2 + 1
    tensors: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, places, width),
        "embeddings.patch_embeddings.projection.weight": (
            width, fields["num_channels"], patch, patch
        ),
        "embeddings.patch_embeddings.projection.bias": (width,),
    }  # fmt: skip
    for index in range(fields["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        for part in ("query", "key", "value"):
            found = linear(f"{layer}.attention.attention.{part}", width, width)
            tensors |= {k: v for k, v in found.items() if len(v) > 1 or fields["qkv_bias"]}
        tensors |= linear(f"{layer}.attention.output.dense", width, width)
        tensors |= linear(f"{layer}.intermediate.dense", width, inner)
        tensors |= linear(f"{layer}.output.dense", inner, width)
        tensors |= norm(f"{layer}.layernorm_before", width)
        tensors |= norm(f"{layer}.layernorm_after", width)
    return {**tensors, **norm("layernorm", width)}


def width_of(fields: Mapping[str, Any]) -> int:
    """d, which the classifier reads."""
    resnet = fields["model_type"] == RESNET
    return int(fields["hidden_sizes"][-1] if resnet else fields["hidden_size"])
