"""The frozen network whose features of an image a gate reads: a ResNet, or a CLIP's image side.

DAWE (Yang et al.) reads a ResNet-18 or -50 of the Hugging Face hub: the last stage's map, averaged
over all places, d = 512 or 2048 non-negative numbers an image. Of a CLIP it is the projected
embedding, not normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from actors.checkpoints.checkpoint import (
    MODEL_TYPES,
    content_hash,
    headers,
    inspect,
    load_config,
)
from actors.checkpoints.sources import resolve
from actors.families.clip.architecture import LARGEST, PROJECTION
from actors.families.clip.preprocessor_config import Preprocess, read_convnext, read_preprocess
from actors.files.fingerprint import Fingerprint, fingerprint, software
from actors.files.hashes import hash_files
from actors.training.precision import exact_products
from fusion.errors import InputError, reading

RESNET = "resnet"
"""The `model_type` of a ResNet, and what files with a classifier write before its names."""

LAYERS = ("basic", "bottleneck")

ACTIVATIONS = ("relu", "gelu", "silu")

REST = "classifier."
"""What a ResNet with its classifier has beside the network."""

COUNTER = ".num_batches_tracked"
"""Steps that a BatchNorm was trained for: nothing reads it."""

Extract: TypeAlias = Callable[[Tensor], Tensor]
"""extract(uint8 pixels [B, 3, H, W]) -> float32 features [B, d], on the extractor's device."""


@dataclass(frozen=True)
class Extractor:
    """A frozen network on disk, known by its configuration and headers."""

    source: str
    """As the spec writes it."""
    folder: Path
    kind: Literal["resnet", "clip"]
    width: int
    """d: how many features an image has."""
    preprocess: Preprocess
    fingerprint: Fingerprint
    """Of all that features depend on: weights, configuration, preprocessing, libraries."""


def open_extractor(source: str, what: str, *, squash: bool = False) -> Extractor:
    """What a source offers as an extractor; weights are hashed (once), and not loaded.

    Args:
        source: a folder, `embedded:extractor`, `embedded:base`, or a hub id
            (`microsoft/resnet-18`, `microsoft/resnet-50`).
        what: where the spec names it; begins each message.
        squash: first resize every image straight to the extractor's size, as the original DAWE
            does (`Preprocess.squash`); its ResNet then sees the middle of the squashed image.

    Raises:
        InputError: no such source; neither a ResNet nor a CLIP with a projection; damaged or
            lying files; weights in a pickle; preprocessing that is not supported.
    """
    folder = resolve(source, what=what)
    with reading(f"{what}: {folder}"):
        return opened(source, folder, what, squash)


def opened(source: str, folder: Path, what: str, squash: bool) -> Extractor:
    """The extractor in a folder. See `open_extractor`."""
    config = read_config(folder, what)
    if config["model_type"] == RESNET:
        kind: Literal["resnet", "clip"] = "resnet"
        fields = resnet_fields(config, f"{what}: {folder / 'config.json'}")
        files = check_resnet(folder, config, fields, what)
        width, content = fields["hidden_sizes"][-1], hash_files(files)
        preprocess = read_convnext(folder)
    else:
        kind = "clip"
        checkpoint = inspect(source, what)
        if PROJECTION not in checkpoint.tensors:
            raise InputError(f"{what}: {folder}: no {PROJECTION}; an extractor needs it")
        width, content = checkpoint.tensors[PROJECTION].shape[0], content_hash(checkpoint)
        preprocess = read_preprocess(folder)
        size = checkpoint.fields["image_size"]
        if preprocess.shape != (size, size):
            raise InputError(
                f"{what}: {folder}: images are prepared to {preprocess.shape};"
                f" the model takes {(size, size)}"
            )
    if squash:
        preprocess = replace(preprocess, squash=preprocess.shape)
    libraries = software("torch", "transformers")
    found = fingerprint("extractor-2", kind, content, preprocess.fingerprint, libraries)
    return Extractor(source, folder, kind, width, preprocess, found)


def load_extractor(extractor: Extractor, device: str | torch.device = "cpu") -> Extract:
    """The network, frozen and in evaluation mode: BatchNorm uses what it learnt, and keeps it.

    Computes in float32, on GPUs without TF32 and with cuDNN's deterministic algorithms, so that
    features do not depend on where they are computed beyond the order of sums.

    Raises:
        InputError: files that changed since the extractor was opened.
    """
    exact_products()
    forward = resnet(extractor, device) if extractor.kind == "resnet" else clip(extractor, device)

    def extract(pixels: Tensor) -> Tensor:
        exact = {"enabled": True, "deterministic": True, "allow_tf32": False}
        with torch.no_grad(), torch.backends.cudnn.flags(**exact):
            return forward(pixels)

    return extract


def resnet(extractor: Extractor, device: str | torch.device) -> Extract:
    """The pooled last stage of transformers' own `ResNetModel`."""
    from transformers import ResNetModel

    from actors.families.clip.fine_tune import quiet

    with reading(f"{extractor.source}: {extractor.folder}"), quiet():
        model = ResNetModel.from_pretrained(
            extractor.folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
    model = model.to(device).eval().requires_grad_(False)

    def forward(pixels: Tensor) -> Tensor:
        images = extractor.preprocess.normalise(pixels.to(device))
        pooled: Tensor = model(pixel_values=images).pooler_output
        return pooled.flatten(1)

    return forward


def clip(extractor: Extractor, device: str | torch.device) -> Extract:
    """The projected image embeddings of a CLIP."""
    from actors.shards.resident_model import ImageEncoder

    encoder = ImageEncoder(inspect(str(extractor.folder), extractor.source), device)
    # `embed` computes in inference mode; a copy made outside of it may be trained on.
    return lambda pixels: encoder.embed(pixels).clone()


def read_config(folder: Path, what: str) -> dict[str, Any]:
    """`config.json` of a ResNet or a CLIP.

    Raises:
        InputError: none, not JSON, or of another kind of model.
    """
    config = load_config(folder, what)
    kind, allowed = config.get("model_type"), (RESNET, *MODEL_TYPES)
    if kind not in allowed:
        file, words = folder / "config.json", ", ".join(allowed)
        raise InputError(f"{what}: {file}: model_type {kind!r}; an extractor: {words}")
    return config


MOST_STAGES = 16
"""Stages of a ResNet, at most."""


def resnet_fields(config: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The fields that fix a ResNet's tensors; defaults of `transformers.ResNetConfig` (ResNet-50).

    Raises:
        InputError: a field of a wrong kind, by name.
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
        most = LARGEST["num_hidden_layers" if name == "depths" else "intermediate_size"]
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
    """Name -> shape of every tensor of a `ResNetModel`, but the counters of its BatchNorms."""
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


def check_resnet(
    folder: Path, config: Mapping[str, Any], fields: Mapping[str, Any], what: str
) -> dict[str, Path]:
    """A ResNet's files, name -> file, once all headers agree with the configuration.

    Raises:
        InputError: missing, unknown or mis-shaped tensors, or no safetensors, by name.
    """
    shapes = resnet_tensors(fields)
    found = headers(folder, {**config, "architectures": ["ResNetModel"]}, what)
    files = {folder / "config.json", *(info.file for info in found.values())}
    for key, info in found.items():
        name = key.removeprefix(f"{RESNET}.")
        if name.startswith(REST) or name.endswith(COUNTER):
            continue
        if name not in shapes:
            raise InputError(f"{what}: {info.file}: tensor {key!r}: not part of a ResNet")
        shape = shapes.pop(name)
        if info.shape != shape or not info.dtype.is_floating_point:
            raise InputError(
                f"{what}: {info.file}: tensor {key!r}: {info.dtype} {list(info.shape)};"
                f" {folder / 'config.json'} says floats {list(shape)}"
            )
    if shapes:
        file = next(iter(found.values())).file
        raise InputError(f"{what}: {file}: tensor {next(iter(shapes))!r}: missing")
    return {file.name: file for file in sorted(files)}
