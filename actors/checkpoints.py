"""Checkpoints on disk: Hugging Face folders of CLIP models, safetensors only.

`inspect` reads headers; `read` yields memory-mapped tensors under their canonical names, which
are those of the flattened `CLIPVisionModel` whatever version of `transformers` wrote the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.architecture import PREFIX, PROJECTION, vision_fields, vision_tensors
from actors.hashes import hash_files
from actors.sources import INDEX, resolve
from actors.spans import stamp_of
from fusion.errors import InputError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")

MODEL_TYPES = ("clip", "clip_vision_model")

REST = ("text_model.", "text_projection.weight", "logit_scale")
"""What a full CLIP model has beside the vision tower and its projection."""

POSITION_IDS = "embeddings.position_ids"
"""0, 1, 2, …: a buffer that old files hold and nothing reads."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as a header states it."""

    file: Path
    key: str
    """Its name in the file."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Where its bytes begin in the file."""
    stamp: tuple[int, int]
    """The file's size and time of change when its header was read."""

    @property
    def numel(self) -> int:
        """How many elements."""
        return int(torch.Size(self.shape).numel())

    @property
    def nbytes(self) -> int:
        """How many bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Checkpoint:
    """One model on disk, known by its headers."""

    name: str
    """Where the spec names it (`pool.base`, `pool.experts.mnist`): begins each message."""
    source: str
    """As the spec writes it."""
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    """Canonical name -> vision tower, then `visual_projection.weight` where it is there."""
    rest: Mapping[str, TensorInfo]
    """Text tower, text projection, logit scale: of a full CLIP model only."""
    buffers: Mapping[str, TensorInfo]
    """Legacy position ids: checked when weights are read, then dropped."""

    @property
    def fields(self) -> dict[str, Any]:
        """The configuration fields that the vision tower's computation depends on."""
        return vision_fields(self.config, str(self.folder / "config.json"))

    @property
    def files(self) -> list[Path]:
        """The files that hold its tensors."""
        infos = (*self.tensors.values(), *self.rest.values())
        return sorted({info.file for info in infos})


def inspect(source: str, name: str) -> Checkpoint:
    """A checkpoint's configuration and headers; no weight is read.

    Args:
        source: a folder, `embedded:NAME` or a hub id.
        name: where the spec names it.

    Raises:
        InputError: no such source; not a CLIP model; no, damaged or lying files; missing,
            unknown or mis-shaped tensors; weights in a pickle.
    """
    folder = resolve(source, what=name)
    config = read_config(folder, name)
    found = headers(folder, config, name)
    shapes = vision_tensors(vision_fields(config, f"{name}: {folder / 'config.json'}"))
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
    for key, info in ordered.items():
        if not info.dtype.is_floating_point:
            raise InputError(
                f"{name}: {info.file}: tensor {key!r}: dtype {info.dtype}; floating point needed"
            )
    return Checkpoint(name, source, folder, config, ordered, rest, buffers)


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """`config.json` of a CLIP model.

    Raises:
        InputError: none, not JSON, or of another kind of model.
    """
    config = load_config(folder, name)
    if config.get("model_type") not in MODEL_TYPES:
        raise InputError(
            f"{name}: {folder / 'config.json'}: model_type {config.get('model_type')!r};"
            f" allowed: {', '.join(MODEL_TYPES)}"
            " (CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection)"
        )
    return config


def load_config(folder: Path, name: str) -> dict[str, Any]:
    """`config.json` of any model.

    Raises:
        InputError: none, or not a JSON object.
    """
    file = folder / "config.json"
    try:
        return dict(json.loads(file.read_text()).items())
    except FileNotFoundError:
        raise InputError(f"{name}: {file}: missing; a Hugging Face folder is needed") from None
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{name}: {file}: not a JSON object: {one_line(error)}") from None


def headers(folder: Path, config: Mapping[str, Any], name: str) -> dict[str, TensorInfo]:
    """Every tensor of the folder's safetensors files, under its name in the file."""
    single, index = folder / "model.safetensors", folder / INDEX
    if single.exists():
        return header(single, name)
    if not index.exists():
        raise InputError(f"{name}: {folder}: {no_weights(folder, config)}")
    try:
        where = json.loads(index.read_text())["weight_map"]
        shards = dict.fromkeys(where.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{name}: {index}: not an index: {one_line(error)}") from None
    found: dict[str, TensorInfo] = {}
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise InputError(f"{name}: {index}: {shard!r}: a file name in the folder is needed")
    for shard in shards:
        if not (folder / shard).exists():
            raise InputError(f"{name}: {folder / shard}: missing; {INDEX} lists it")
        inside = header(folder / shard, name)
        stated = {key for key, file in where.items() if file == shard}
        for key in sorted(stated ^ inside.keys()):
            fault = "missing; the index says it is there" if key in stated else "not in the index"
            raise InputError(f"{name}: {folder / shard}: tensor {key!r}: {fault} ({INDEX})")
        found |= inside
    return found


def header(file: Path, name: str) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file.

    Raises:
        InputError: truncated or damaged, or a dtype that is not supported.
    """
    from safetensors import SafetensorError, safe_open

    found = {}
    try:
        with safe_open(file, "pt") as handle, file.open("rb") as raw:
            stamp = stamp_of(raw.fileno())
            offset = 8 + int.from_bytes(raw.read(8), "little")  # data follow the header, no holes
            for key in handle.offset_keys():
                part = handle.get_slice(key)
                dtype = part.get_dtype()
                if dtype not in DTYPES:
                    raise InputError(
                        f"{name}: {file}: tensor {key!r}: dtype {dtype};"
                        f" allowed: {', '.join(DTYPES)}"
                    )
                shape = tuple(part.get_shape())
                found[key] = TensorInfo(file, key, DTYPES[dtype], shape, offset, stamp)
                offset += found[key].nbytes
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{name}: {file}: truncated or not a safetensors file: {one_line(error)}"
        ) from None
    if not found:
        raise InputError(f"{name}: {file}: holds no tensor")
    return found


def no_weights(folder: Path, config: Mapping[str, Any]) -> str:
    """What to say of a folder without safetensors."""
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if not pickles:
        return f"no model.safetensors and no {INDEX}"
    kind = (config.get("architectures") or ["CLIPModel"])[0]
    return (
        f"{pickles[0]} is a pickle, which can run code when it is read; safetensors only."
        f' Convert a file that you trust: python -c "from transformers import {kind};'
        f" {kind}.from_pretrained('{folder}').save_pretrained('NEW_FOLDER')\""
        " (and copy the tokenizer and preprocessor files beside it)"
    )


def sort_out(
    found: Mapping[str, TensorInfo], shapes: Mapping[str, object], name: str
) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo], dict[str, TensorInfo]]:
    """Vision tensors under canonical names, the rest of a full model, legacy buffers.

    Raises:
        InputError: a tensor that is none of these, or one under two names.
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


def read(
    checkpoint: Checkpoint, names: Iterable[str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """(canonical name, tensor), memory-mapped: read-only by convention, in canonical order.

    Args:
        checkpoint: an inspected one.
        names: of `tensors`, `rest` or `buffers`; None: all of `tensors`.

    Raises:
        InputError: a file that changed since it was inspected.
    """
    from safetensors import SafetensorError, safe_open

    infos = {**checkpoint.tensors, **checkpoint.rest, **checkpoint.buffers}
    wanted = None if names is None else set(names)
    order = checkpoint.tensors if wanted is None else [name for name in infos if name in wanted]
    with ExitStack() as stack:
        opened: dict[Path, Any] = {}
        for name in order:
            info = infos[name]
            try:
                if info.file not in opened:
                    opened[info.file] = stack.enter_context(safe_open(info.file, "pt"))
                tensor = opened[info.file].get_tensor(info.key)
            except (SafetensorError, OSError) as error:
                raise InputError(f"{checkpoint.name}: {info.file}: {one_line(error)}") from None
            if tensor.shape != info.shape or tensor.dtype != info.dtype:
                raise InputError(
                    f"{checkpoint.name}: {info.file}: tensor {info.key!r}: changed while in use"
                )
            yield name, tensor


def content_hash(checkpoint: Checkpoint) -> str:
    """sha256 over `config.json` and the weights; computed once, then remembered."""
    files = [checkpoint.folder / "config.json", *checkpoint.files]
    return hash_files({file.name: file for file in files})


def one_line(error: BaseException) -> str:
    """An exception's message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
