"""ResNets on paper: fields of a `ResNetModel` of `transformers`, names and shapes of its tensors.

The family of image classifiers and the extractors of gates' features read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusion.errors import InputError

LAYERS = ("basic", "bottleneck")

ACTIVATIONS = ("relu", "gelu", "silu")

COUNTER = ".num_batches_tracked"
"""Suffix of BatchNorm's step counters, which are not used."""

MOST_LAYERS, WIDEST = 256, 1 << 16
"""Most layers of a stage, and most channels, of a ResNet."""

MOST_STAGES = 16
"""Most stages of a ResNet."""


def resnet_fields(config: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Fields that determine a ResNet's tensors; defaults as in `transformers.ResNetConfig`.

    Raises:
        InputError: a field with a wrong type or value, by name.
    """
    defaults: dict[str, Any] = {
        "embedding_size": 64,
        "hidden_sizes": [256, 512, 1024, 2048],
        "depths": [3, 4, 6, 3],
        "layer_type": "bottleneck",
        "downsample_in_first_stage": False,
        "hidden_act": "relu",
        "num_channels": 3,
    }
    fields = {name: config.get(name, default) for name, default in defaults.items()}
    for name in ("hidden_sizes", "depths"):
        if not isinstance(fields[name], list) or not fields[name]:
            raise InputError(f"{file}: {name}: {fields[name]!r}; a list of whole numbers needed")
    if len(fields["hidden_sizes"]) != len(fields["depths"]):
        given = [fields["hidden_sizes"], fields["depths"]]
        raise InputError(f"{file}: hidden_sizes, depths: {given}; one of each a stage needed")
    for name in ("embedding_size", "hidden_sizes", "depths"):
        values = fields[name] if isinstance(fields[name], list) else [fields[name]]
        if not all(type(value) is int and value > 0 for value in values):
            raise InputError(f"{file}: {name}: {fields[name]!r}; positive whole numbers needed")
        most = MOST_LAYERS if name == "depths" else WIDEST
        if len(values) > MOST_STAGES or max(values) > most:
            raise InputError(
                f"{file}: {name}: {str(fields[name])[:80]}; at most {most} each, and"
                f" {MOST_STAGES} of them, allowed"
            )
    choices: dict[str, tuple[object, ...]] = {
        "layer_type": LAYERS,
        "hidden_act": ACTIVATIONS,
        "num_channels": (3,),
    }
    for name, allowed in choices.items():
        if fields[name] not in allowed:
            values = list(allowed)
            raise InputError(f"{file}: {name}: {fields[name]!r}; allowed: {values}")
    return fields


def resnet_tensors(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a `ResNetModel`, without BatchNorm's step counters."""
    tensors: dict[str, tuple[int, ...]] = {}

    def conv(name: str, into: int, out: int, kernel: int) -> None:
        tensors[f"{name}.convolution.weight"] = (out, into, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{name}.normalization.{part}"] = (out,)

    conv("embedder.embedder", 3, fields["embedding_size"], 7)
    into = fields["embedding_size"]
    for stage, (out, depth) in enumerate(
        zip(fields["hidden_sizes"], fields["depths"], strict=True)
    ):
        for layer in range(depth):
            name = f"encoder.stages.{stage}.layers.{layer}"
            halved = layer == 0 and (stage > 0 or fields["downsample_in_first_stage"])
            if halved or into != out:
                conv(f"{name}.shortcut", into, out, 1)
            if fields["layer_type"] == "basic":
                steps = [(into, out, 3), (out, out, 3)]
            else:
                inner = out // 4
                steps = [(into, inner, 1), (inner, inner, 3), (inner, out, 1)]
            for step, sizes in enumerate(steps):
                conv(f"{name}.layer.{step}", *sizes)
            into = out
    return tensors
