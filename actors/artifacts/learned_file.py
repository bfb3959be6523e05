"""Container format of learned results and training states: safetensors with a note and a hash.

The note is JSON in the metadata, under the file's kind (`coding`, `gate`, `resident`, `state`). The
hash covers note and tensors, so a file with a changed bit is refused. Files of earlier versions
without a hash are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load, save
from torch import Tensor, uint8

from actors.files.documents import parse_json
from fusion.errors import InputError, one_line

CHECK = "sha256"
"""Field of the note that holds the hash. It is part of the note, because safetensors writes several
metadata texts in random order, and equal content must give equal bytes."""

HEADER_BYTES = 16 << 20


def packed(tensors: Mapping[str, Tensor], kind: str, about: Mapping[str, Any]) -> bytes:
    """Bytes of a file with contiguous tensors and a note of plain data."""
    note = {**about, CHECK: hash_of(tensors, about)}
    return bytes(save(dict(tensors), metadata={kind: json.dumps(note)}))


def unpacked(data: bytes, kind: str, where: str) -> tuple[dict[str, Tensor], Any]:
    """Tensors of a file by name, and its note; only the hash is checked.

    Raises:
        InputError: not a safetensors file, another kind, or damaged.
    """
    try:
        tensors: dict[str, Tensor] = load(data)
    except Exception as error:  # safetensors raises its own errors and those of torch
        raise InputError(
            f"{where}: truncated or not a safetensors file: {one_line(error)[:200]}"
        ) from None
    about = about_of(data, kind, where)
    if isinstance(about, dict) and about.pop(CHECK, None) not in (None, hash_of(tensors, about)):
        raise InputError(f"{where}: damaged: its hash is another than when it was written")
    return tensors, about


def about_of(data: bytes, kind: str, where: str) -> Any:
    """The note of a file, without reading tensors or checking the hash.

    Raises:
        InputError: not a safetensors file, or another kind.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(len(data) - 8, HEADER_BYTES):
        raise InputError(f"{where}: truncated or not a safetensors file")
    header = parse_json(data[8 : 8 + size], where)
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    note = metadata.get(kind) if isinstance(metadata, dict) else None
    if not isinstance(note, str):
        raise InputError(f"{where}: not a {kind} file: no {kind!r} in the safetensors metadata")
    return parse_json(note, f"{where}: manifest", finite=False)


def hash_of(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """SHA-256 of a note and of tensors: names, dtypes, shapes and bytes."""
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}\n{tensor.dtype}\n{list(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        found.update(flat.view(uint8).numpy().tobytes())
    return found.hexdigest()
