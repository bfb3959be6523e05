"""Inspect CLIP checkpoints: sort tensors into vision tower, rest of a full model, and buffers.

Canonical names are those of the flattened `CLIPVisionModel`, for files of any version of
`transformers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.checkpoints.checkpoint import Checkpoint, TensorInfo, headers
from actors.families.clip.architecture import PREFIX, PROJECTION, vision_fields, vision_tensors
from fusion.errors import InputError

REST = ("text_model.", "text_projection.weight", "logit_scale")
"""Parts of a full CLIP model beside the vision tower and its projection."""

POSITION_IDS = "embeddings.position_ids"
"""0, 1, 2, …: a buffer in old files that is not used."""


def inspected(source: str, folder: Path, config: Mapping[str, Any], name: str) -> Checkpoint:
    """Inspect the CLIP model in a folder, by its configuration and headers.

    Raises:
        InputError: missing, unknown or mis-shaped tensors; see also `headers` and `vision_fields`.
    """
    found = headers(folder, config, name, "CLIPModel")
    fields = vision_fields(config, f"{name}: {folder / 'config.json'}")
    shapes = vision_tensors(fields)
    tensors, rest, buffers = sort_out(found, shapes, name)
    for key, shape in shapes.items():
        if key not in tensors:
            file = next(iter(found.values())).file
            raise InputError(f"{name}: {file}: tensor {key!r}: missing")
        if tensors[key].shape != shape:
            raise InputError(
                f"{name}: {tensors[key].file}: tensor {key!r}: shape {list(tensors[key].shape)};"
                f" {folder / 'config.json'} says {list(shape)}"
            )
    order = [*shapes, *(key for key in tensors if key not in shapes)]
    ordered = {key: tensors[key] for key in order}
    for key, info in {**ordered, **rest}.items():
        if not info.dtype.is_floating_point:
            raise InputError(
                f"{name}: {info.file}: tensor {key!r}: dtype {info.dtype}; floating point needed"
            )
    return Checkpoint(name, source, folder, config, ordered, rest, buffers, fields=fields)


def sort_out(
    found: Mapping[str, TensorInfo], shapes: Mapping[str, object], name: str
) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo], dict[str, TensorInfo]]:
    """Vision tensors under canonical names, the rest of a full model, legacy buffers.

    Raises:
        InputError: an unknown tensor, or a tensor under two names.
    """
    tensors: dict[str, TensorInfo] = {}
    rest: dict[str, TensorInfo] = {}
    buffers: dict[str, TensorInfo] = {}
    for key, info in found.items():
        short = key.removeprefix(PREFIX)
        if short in shapes or key == PROJECTION:
            if short in tensors:
                raise InputError(
                    f"{name}: {info.file}: tensor {short!r}: there twice,"
                    f" as {tensors[short].key!r} and {key!r}"
                )
            tensors[short] = info
        elif key.endswith(POSITION_IDS):
            buffers[key] = info
        elif key.startswith(REST):
            rest[key] = info
        else:
            raise InputError(f"{name}: {info.file}: tensor {key!r}: not part of a CLIP model")
    return tensors, rest, buffers
