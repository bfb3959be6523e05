"""Frozen networks that compute the features a gate reads: a ResNet, a sentence encoder, or a model
of a family.

DAWE (Yang et al.) uses a ResNet-18 or -50 of the Hugging Face hub: the last stage's feature map,
averaged over positions, d = 512 or 2048 non-negative numbers for each image. For a family that
encodes texts, the features are the mean of its encoder's last states over the text's tokens; for
another family with embeddings the model's output (for CLIP: the projected embedding, not
normalised). Sentence encoders: see `sentence_encoder.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.checkpoints.checkpoint import (
    content_hash,
    headers,
    load_config,
)
from actors.checkpoints.sources import resolve
from actors.data.images.inputs import ImageInputs
from actors.data.images.preprocessor_config import read_convnext
from actors.data.protocol import Activations, Extract, Inputs
from actors.data.text.inputs import TextInputs
from actors.data.text.tokenise import Words
from actors.families.images.resnet_architecture import COUNTER, resnet_fields, resnet_tensors
from actors.families.protocol import compute_all_rows
from actors.families.registry import by_type, family_in, inspect
from actors.files.fingerprint import Fingerprint, fingerprint, software
from actors.files.hashes import hash_files
from actors.gate_features.sentence_encoder import (
    TYPES,
    SentenceEncoder,
    is_sentence_encoder,
    masked_mean,
    open_sentence_encoder,
)
from actors.training.precision import exact_products
from fusion.errors import InputError, reading

RESNET = "resnet"
"""`model_type` of a ResNet, and the prefix of its tensors in files with a classifier."""

REST = "classifier."
"""Prefix of the classifier's tensors, which are not used."""

SENTENCE = "sentence"
"""Kind of a sentence encoder."""

FIELDS = "fields:"
"""Before the source of an encoder of texts: it reads the texts of a task's columns, and not the
prompt that they are put into."""


@dataclass(frozen=True)
class Extractor:
    """A frozen network on disk, known from its configuration and headers."""

    source: str
    """Source as given in the spec."""
    folder: Path
    kind: str
    """`resnet`, `sentence`, or the name of a model family."""
    width: int
    """d: number of features of a row."""
    inputs: Inputs
    """Its own preprocessing."""
    fingerprint: Fingerprint
    """Hash of all that features depend on: weights, configuration, preprocessing, libraries."""

    squashed: bool = False
    """Whether images are first resized to the input size without keeping the aspect ratio."""
    encoder: SentenceEncoder | None = None
    """The sentence encoder; None: it is none."""

    def load(self, device: Any = "cpu") -> Extract:
        """Load the network. See `load_extractor`."""
        return load_extractor(self, device)


def open_extractor(source: str, what: str, *, squash: bool = False) -> Extractor:
    """Open an extractor; weights are hashed (once), not loaded.

    Args:
        source: a folder, `embedded:extractor`, `embedded:base`, or a hub id
            (`microsoft/resnet-18`, `microsoft/resnet-50`); `fields:` before one that reads texts:
            see `FIELDS`.
        what: the spec's field, which starts each message.
        squash: first resize every image to the extractor's input size without keeping the aspect
            ratio, as the original DAWE does (`Preprocess.squash`); its ResNet then crops the
            centre.

    Raises:
        InputError: no such source; none of the networks above; damaged or inconsistent files;
            weights in a pickle; unsupported preprocessing.
    """
    place = source.removeprefix(FIELDS)
    folder = resolve(place, what=what)
    with reading(f"{what}: {folder}"):
        found = opened(place, folder, what, squash, "prompt" if place == source else "fields")
        return replace(found, source=source)


def opened(source: str, folder: Path, what: str, squash: bool, words: Words) -> Extractor:
    """Open the extractor in a folder. See `open_extractor`."""
    if is_sentence_encoder(folder):
        return sentence(source, folder, what, squash, words)
    config = read_config(folder, what)
    if config["model_type"] in TYPES and config["model_type"] not in by_type():
        return sentence(source, folder, what, squash, words)
    if config["model_type"] == RESNET:
        kind = RESNET
        fields = resnet_fields(config, f"{what}: {folder / 'config.json'}")
        files = check_resnet(folder, config, fields, what)
        width, content = fields["hidden_sizes"][-1], hash_files(files)
        inputs: Inputs = ImageInputs(read_convnext(folder))
    else:
        checkpoint = inspect(source, what)
        family = family_in(checkpoint)
        states = family.encoder_states(checkpoint)
        if states is None and "embeddings" not in family.offers(checkpoint):
            raise InputError(f"{what}: {folder}: {family.name} models have no embeddings")
        kind, content = family.name, content_hash(checkpoint)
        width = family.width(checkpoint) if states is None else states.width
        inputs = family.inputs(checkpoint)
        if isinstance(inputs, TextInputs):
            inputs = replace(inputs, words=words)
        family.segments(checkpoint)  # raises if the inputs do not fit the model
    if squash:
        inputs = squashed(inputs, what)
    if words == "fields" and inputs.kind != "text":
        raise InputError(f"{what}: {FIELDS}{source}: of texts only")
    libraries = software("torch", "transformers")
    found = fingerprint("extractor-2", kind, content, inputs.fingerprint, libraries)
    return Extractor(source, folder, kind, width, inputs, found, squash)


def sentence(source: str, folder: Path, what: str, squash: bool, words: Words) -> Extractor:
    """The sentence encoder in a folder. See `open_extractor`."""
    encoder = open_sentence_encoder(folder, what)
    inputs: Inputs = encoder.inputs(words, what)
    if squash:
        inputs = squashed(inputs, what)
    content = hash_files({str(file.relative_to(folder)): file for file in encoder.files})
    libraries = software("torch", "transformers")
    found = fingerprint("extractor-2", SENTENCE, content, inputs.fingerprint, libraries)
    return Extractor(source, folder, SENTENCE, encoder.width, inputs, found, squash, encoder)


def squashed(inputs: Inputs, what: str) -> ImageInputs:
    """The same inputs with images first resized to their final size.

    Raises:
        InputError: rows that are not images.
    """
    if not isinstance(inputs, ImageInputs):
        raise InputError(f"{what}: squash: true; of images only")
    look = inputs.preprocess
    return ImageInputs(replace(look, squash=look.shape))


def pictures(extractor: Extractor) -> ImageInputs:
    """Inputs of a network that reads images."""
    assert isinstance(extractor.inputs, ImageInputs)
    return extractor.inputs


def load_extractor(extractor: Extractor, device: str | torch.device = "cpu") -> Extract:
    """Load the network, frozen and in evaluation mode (BatchNorm uses its running statistics).

    Computes in float32, on GPUs without TF32 and with cuDNN's deterministic algorithms, so that
    features differ between devices only by the order of sums.

    Raises:
        InputError: files that changed since the extractor was opened.
    """
    exact_products()
    if extractor.encoder is not None:
        forward = extractor.encoder.load(device, extractor.source)
    else:
        forward = (resnet if extractor.kind == RESNET else embedding)(extractor, device)

    def extract(inputs: Activations) -> Tensor:
        exact = {"enabled": True, "deterministic": True, "allow_tf32": False}
        with torch.no_grad(), torch.backends.cudnn.flags(**exact):
            return forward(inputs)

    return extract


def resnet(extractor: Extractor, device: str | torch.device) -> Extract:
    """Forward pass to the pooled last stage of transformers' `ResNetModel`."""
    from transformers import ResNetModel

    from actors.training.optimizer_loop import quiet

    with reading(f"{extractor.source}: {extractor.folder}"), quiet():
        model = ResNetModel.from_pretrained(
            extractor.folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
    model = model.to(device).eval().requires_grad_(False)

    preprocess = pictures(extractor).preprocess

    def forward(inputs: Activations) -> Tensor:
        images = preprocess.normalise(inputs["pixels"].to(device))
        pooled: Tensor = model(pixel_values=images).pooler_output
        return pooled.flatten(1)

    return forward


def embedding(extractor: Extractor, device: str | torch.device) -> Extract:
    """Forward pass to a model's outputs, or to the mean of its encoder's states."""
    from actors.shards.resident_model import ResidentModel

    checkpoint = inspect(str(extractor.folder), extractor.source)
    states = family_in(checkpoint).encoder_states(checkpoint)
    if states is not None:
        part = ResidentModel(checkpoint, device, block=(0, states.stop))
        for module in part.modules:
            compute_all_rows(module, True)

        def mean(inputs: Activations) -> Tensor:
            carry = part.run({name: value.to(part.device) for name, value in inputs.items()})
            return masked_mean(carry[states.name], carry[states.mask])

        return mean
    encoder = ResidentModel(checkpoint, device)
    # `outputs` runs in inference mode; a copy made outside it may take part in training.
    return lambda inputs: encoder.outputs(inputs).clone()


def read_config(folder: Path, what: str) -> dict[str, Any]:
    """Read `config.json` of a ResNet or of a model of a family.

    Raises:
        InputError: missing, not JSON, or another kind of model.
    """
    config = load_config(folder, what)
    kind = config.get("model_type")
    allowed = tuple(dict.fromkeys((RESNET, *by_type(), *TYPES)))
    if kind not in allowed:
        file, words = folder / "config.json", ", ".join(allowed)
        raise InputError(f"{what}: {file}: model_type {kind!r}; an extractor: {words}")
    return config


def check_resnet(
    folder: Path, config: Mapping[str, Any], fields: Mapping[str, Any], what: str
) -> dict[str, Path]:
    """Check that a ResNet's files agree with its configuration; returns name -> file.

    Raises:
        InputError: missing, unknown or mis-shaped tensors, or no safetensors, by name.
    """
    shapes = resnet_tensors(fields)
    found = headers(folder, {**config, "architectures": ["ResNetModel"]}, what, "ResNetModel")
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
