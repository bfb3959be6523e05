"""T5 checkpoints: sort a file's tensors into the model's own, and other names of its embeddings.

Whether embeddings and output share a table is read off the files, never off the configuration:
`transformers` 5 says they do whatever was trained, and then loads one in place of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from actors.checkpoints.checkpoint import Checkpoint, TensorInfo, headers
from actors.families.t5.architecture import (
    ALIASES,
    LM_HEAD,
    SHARED,
    UNUSED,
    t5_fields,
    t5_tensors,
)
from actors.files.documents import read_json, shown
from fusion.errors import InputError


def inspected(source: str, folder: Path, config: Mapping[str, Any], name: str) -> Checkpoint:
    """The T5 in a folder, by its configuration and headers.

    Raises:
        InputError: missing, unknown or mis-shaped tensors, float16, or files that disagree on the
            start or the end token; see also `headers` and `t5_fields`.
    """
    found = headers(folder, config, name, "T5ForConditionalGeneration")
    file = folder / "config.json"
    fields = t5_fields(config, LM_HEAD not in found, f"{name}: {file}")
    check_generation(folder, fields, name)
    shapes = t5_tensors(fields)
    tensors, aliases = sort_out(found, shapes, name)
    for key, shape in shapes.items():
        if key not in tensors:
            there = next(iter(found.values())).file
            raise InputError(f"{name}: {there}: tensor {key!r}: missing")
        check_tensor(key, tensors[key], shape, name, file)
    for key, info in aliases.items():
        check_tensor(key, info, shapes[SHARED], name, file)
    ordered = {key: tensors[key] for key in shapes}
    return Checkpoint(name, source, folder, config, ordered, {}, {}, fields=fields, aliases=aliases)


def check_generation(folder: Path, fields: Mapping[str, Any], name: str) -> None:
    """Raise InputError where `generation_config.json` has another start or end token.

    `generate` of `transformers` reads that file, and training reads `config.json`.
    """
    file = folder / "generation_config.json"
    if not file.is_file():
        return
    given = read_json(file, name)
    for field in ("decoder_start_token_id", "eos_token_id"):
        stated = given.get(field)
        if stated is not None and fields[field] not in (stated, *listed(stated)):
            raise InputError(
                f"{name}: {file}: {field}: {shown(stated)}; config.json has {fields[field]}"
            )


def listed(value: object) -> list[object]:
    """A list as it is; of anything else an empty one."""
    return value if isinstance(value, list) else []


def sort_out(
    found: Mapping[str, TensorInfo], shapes: Mapping[str, object], name: str
) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
    """The model's tensors under canonical names, and those of files that are its embeddings again.

    A file without `shared` may hold the table under another of its names.

    Raises:
        InputError: a tensor that is neither.
    """
    tensors: dict[str, TensorInfo] = {}
    aliases: dict[str, TensorInfo] = {}
    for key, info in found.items():
        if key in shapes:
            tensors[key] = info
        elif key in ALIASES:
            aliases[key] = info
        elif key != UNUSED:
            raise InputError(f"{name}: {info.file}: tensor {key!r}: not part of a T5 model")
    if SHARED not in tensors and aliases:
        tensors[SHARED] = aliases.pop(next(iter(aliases)))
    return tensors, aliases


def check_tensor(
    key: str, info: TensorInfo, shape: tuple[int, ...], name: str, config: Path
) -> None:
    """Raise InputError where a tensor has another shape, or a dtype that T5 is not used in."""
    where = f"{name}: {info.file}: tensor {key!r}"
    if info.shape != shape:
        raise InputError(f"{where}: shape {list(info.shape)}; {config} says {list(shape)}")
    if info.dtype == torch.float16:
        raise InputError(
            f"{where}: dtype float16, in which activations of T5 overflow; float32 or bfloat16"
            " needed"
        )
    if not info.dtype.is_floating_point:
        raise InputError(f"{where}: dtype {info.dtype}; floating point needed")
