"""Read safetensors headers, and tensors memory-mapped."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from actors.files.documents import LFS, check_pointer
from actors.files.file_ranges import stamp_of
from fusion.errors import InputError, one_line, reading

PEFT = "base_model.model."
"""Prefix that PEFT adds to the tensor names of an adapted model."""

WRAPPERS = (
    PEFT, "_orig_mod.", "module.", "model.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.",
)  # fmt: skip
"""Prefixes that PEFT, `torch.compile`, DataParallel, FSDP and trainers add to names of tensors.
A prefix is removed if all names of a folder have it."""

FILE_BYTES = 1 << 32
"""Most bytes of a file that is read as a whole (a head, a gate)."""

LONGEST = 256
"""Most characters of a tensor's name."""

COARSE = 20_000_000
"""Nanoseconds by which a file system's clock may lag behind the system clock."""

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
    """One tensor as described by a file's header."""

    file: Path
    key: str
    """Name of the tensor in the file."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Position of its first byte in the file."""
    stamp: tuple[int, int]
    """Size and time of modification (ns) of the file when its header was read."""
    seen: tuple[int, int]
    """Time of change (ctime) of the file and time of reading the header, in ns."""
    wrapper: str = ""
    """Prefix that all names of its folder share, for example `_orig_mod.`."""

    @property
    def plain(self) -> str:
        """Name without the wrapper's prefix."""
        return self.key.removeprefix(self.wrapper)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return int(torch.Size(self.shape).numel())

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.numel * self.dtype.itemsize


def header(file: Path, name: str) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file.

    Raises:
        InputError: no regular file, a Git LFS pointer, truncated or damaged, or a dtype that is
            not supported.
    """
    where = f"{name}: {file}"
    found = {}
    with reading(where):
        check_regular(file, where)
        try:
            with file.open("rb") as raw, safe_open(file, "pt") as handle:
                stamp, seen = stamp_of(raw.fileno()), seen_now(raw.fileno())
                offset = 8 + int.from_bytes(raw.read(8), "little")  # the data follows without gaps
                for key in handle.offset_keys():
                    found[key] = info_of(
                        file, key, handle.get_slice(key), offset, stamp, seen, where
                    )
                    offset += found[key].nbytes
        except SafetensorError as error:
            raise InputError(
                f"{where}: truncated or not a safetensors file: {one_line(error)[:300]}"
            ) from None
        if offset != stamp[0]:
            raise InputError(f"{where}: changed while it was read")
    if not found:
        raise InputError(f"{where}: holds no tensor")
    return found


def info_of(
    file: Path,
    key: str,
    part: Any,
    offset: int,
    stamp: tuple[int, int],
    seen: tuple[int, int],
    where: str,
) -> TensorInfo:
    """One tensor of a header, checked.

    Raises:
        InputError: a name that is too long, or a dtype that is not supported.
    """
    if len(key) > LONGEST:
        raise InputError(
            f"{where}: tensor {key[:40]!r}…: a name of {len(key)} characters; at most {LONGEST}"
            " allowed"
        )
    if (dtype := part.get_dtype()) not in DTYPES:
        raise InputError(f"{where}: tensor {key!r}: dtype {dtype}; allowed: {', '.join(DTYPES)}")
    return TensorInfo(file, key, DTYPES[dtype], tuple(part.get_shape()), offset, stamp, seen)


def check_regular(file: Path, where: str) -> None:
    """Raise InputError if `file` is not a regular file, or is a Git LFS pointer.

    Reading a pipe or a device could block or never end.
    """
    if file.exists() and not file.is_file():
        raise InputError(f"{where}: not a regular file")
    with file.open("rb") as raw:
        check_pointer(raw.read(len(LFS)), where)


def read_whole(file: Path, where: str) -> bytes:
    """Content of a small file.

    Raises:
        InputError: the file cannot be read, is not regular, or has more than `FILE_BYTES` bytes.
    """
    with reading(f"{where}: cannot be read"):
        check_regular(file, where)
        if (size := file.stat().st_size) > FILE_BYTES:
            raise InputError(f"{where}: {size:,} bytes; at most {FILE_BYTES:,} allowed")
        return file.read_bytes()


def seen_now(descriptor: int) -> tuple[int, int]:
    """Time of change (ctime) of an open file, and the time now, in ns."""
    return os.fstat(descriptor).st_ctime_ns, time.time_ns()


def unwrapped(found: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Rename tensors: remove the prefixes of wrappers that all names share."""
    wrapper = ""
    while found and (more := common(found, wrapper)):
        wrapper += more
    return {
        key.removeprefix(wrapper): replace(info, wrapper=wrapper) for key, info in found.items()
    }


def common(names: Collection[str], before: str) -> str:
    """The wrapper prefix that all names have after the prefix `before`; empty if none."""
    return next(
        (each for each in WRAPPERS if all(name.startswith(before + each) for name in names)), ""
    )


def mapped(
    infos: Mapping[str, TensorInfo], who: str, *, strict: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor), memory-mapped and read-only by convention, in the order given.

    Args:
        infos: name -> tensor of an inspected file.
        who: begins the message.
        strict: whether a later file of the same size counts as changed.

    Raises:
        InputError: a file has changed since it was inspected.
    """
    with ExitStack() as stack:
        opened: dict[Path, Any] = {}
        for name, info in infos.items():
            with reading(f"{who}: {info.file}"):
                if info.file not in opened:
                    opened[info.file] = stack.enter_context(unchanged(info, who, strict))
                tensor = opened[info.file].get_tensor(info.key)
            if tensor.shape != info.shape or tensor.dtype != info.dtype:
                raise InputError(f"{who}: {info.file}: tensor {info.key!r}: changed while in use")
            yield name, tensor


def unchanged(info: TensorInfo, who: str, strict: bool) -> Any:
    """Open a tensor's file, which must be the file whose header was read.

    Another node may have its own copy with its own times: then the size must be equal, and the copy
    older than the reading of the header.

    Raises:
        InputError: the file is missing or another one.
    """
    check_regular(info.file, f"{who}: {info.file}")
    status = info.file.stat()
    changed, looked = info.seen
    later = strict and status.st_ctime_ns != changed and status.st_ctime_ns > looked - COARSE
    if status.st_size != info.stamp[0] or later:
        raise InputError(f"{who}: {info.file}: changed while in use")
    return safe_open(info.file, "pt")
