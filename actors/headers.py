"""Safetensors files by their headers: what tensors there are, and reading them memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.spans import stamp_of
from fusion.errors import InputError, one_line

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


def mapped(infos: Mapping[str, TensorInfo], who: str) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor), memory-mapped: read-only by convention, in the order given.

    Args:
        infos: name -> tensor of an inspected file.
        who: begins the message.

    Raises:
        InputError: a file that changed since it was inspected.
    """
    from safetensors import SafetensorError, safe_open

    with ExitStack() as stack:
        opened: dict[Path, Any] = {}
        for name, info in infos.items():
            try:
                if info.file not in opened:
                    opened[info.file] = stack.enter_context(safe_open(info.file, "pt"))
                tensor = opened[info.file].get_tensor(info.key)
            except (SafetensorError, OSError) as error:
                raise InputError(f"{who}: {info.file}: {one_line(error)}") from None
            if tensor.shape != info.shape or tensor.dtype != info.dtype:
                raise InputError(f"{who}: {info.file}: tensor {info.key!r}: changed while in use")
            yield name, tensor
