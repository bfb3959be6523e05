"""Checksums in cache and result files: damaged files are detected and never used.

Each file holds its own checksum (xxHash, 64 bits) of all that is read from it: tensors, columns,
metadata. A file is checked when a process first opens it, and again if it has changed. Files up to
`WHOLE` bytes are checked completely. Of larger files, and once a process has checked `ALL` bytes,
only random chunks are checked, `SAMPLE` bytes a file. `sweeps cache verify` checks everything.
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash
from safetensors import SafetensorError

from fusion.errors import InputError

if TYPE_CHECKING:  # start-up time: processes that only decode rows need no torch
    from torch import Tensor

FIELD = "xxh3"
"""Name of the metadata field that holds the checksum."""

DIGITS = 16
"""Hexadecimal digits of a checksum."""

WHOLE = 4 << 30
"""Files up to this many bytes are checked completely: half a second from the page cache."""

ALL = 16 << 30
"""After this many bytes a process checks samples only."""

SAMPLE = 64 << 20
"""Bytes checked of a file that is not checked completely."""

CHUNK = 4 << 20
"""Least bytes of a chunk; more if a column would have more than `MOST` chunks."""

MOST = 1024
"""Most chunks, each with a checksum, of a column."""


class Damaged(InputError):
    """A cache or result file does not hold what was written. The message is the reason only; the
    caller adds the file."""


class Checked:
    """Record of the files that this process has checked, with their state, and of the bytes."""

    def __init__(self) -> None:
        self.states: dict[str, tuple[int, ...]] = {}
        self.bytes = 0

    def has(self, path: Path) -> bool:
        """Whether the file was intact when checked, and has not changed since.

        Raises:
            OSError: the file is gone.
        """
        return self.states.get(str(path)) == state_of(path)

    def add(self, path: Path, state: tuple[int, ...], count: int) -> None:
        """Record an intact file, in the state that it had when it was opened."""
        self.bytes += count
        if settled(state[-1]):
            self.states[str(path)] = state

    def budget(self, size: int) -> int:
        """Bytes to check of a file of this size."""
        return size if size <= WHOLE and self.bytes + size <= ALL else min(size, SAMPLE)


CHECKED = Checked()

TICK_NS = 100_000_000
"""Two changes within this many nanoseconds may give a file the same time of change."""


def settled(changed_ns: int) -> bool:
    """Whether a time of change is old enough that any later change gives another one."""
    return changed_ns + TICK_NS < time.time_ns()


def state_of(path: Path) -> tuple[int, ...]:
    """Identity of a file: device, inode, size, times of modification and of change."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def again(path: Path, error: Exception) -> None:
    """Log that a damaged file is made again."""
    logging.getLogger("sweeps").warning("%s: damaged (%s); made again", path, reason_of(error))


def reason_of(error: Exception) -> str:
    """Reason of an error in one line of at most 200 characters."""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return text


def checksum(*parts: Any) -> str:
    """Checksum of bytes-like parts, one after the other."""
    total = xxhash.xxh3_64()
    for part in parts:
        total.update(part)
    return total.hexdigest()


def facts_sum(facts: Mapping[str, Any], *more: str) -> str:
    """Checksum of plain data; a field that holds a checksum is left out."""
    told = {name: value for name, value in facts.items() if name != FIELD}
    return checksum(json.dumps([told, *more], sort_keys=True, default=str).encode())


# ---------------------------------------------------------------------------------- long columns


def chunks_of(size: int) -> list[slice]:
    """The chunks of `size` bytes; each has a checksum."""
    step = max(CHUNK, -(-size // MOST))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def column_sums(columns: Iterable[Any]) -> list[str]:
    """A checksum for each chunk of each column (bytes-like)."""
    views = [memoryview(column).cast("B") for column in columns]
    return [checksum(view[part]) for view in views for part in chunks_of(len(view))]


def differing(columns: Iterable[Any], sums: list[str], budget: int) -> str | None:
    """Describe the first chunk whose checksum differs; None if no checked chunk differs.

    Args:
        columns: bytes-like.
        sums: checksums of all chunks of all columns.
        budget: bytes to check; the chunks are drawn at random if it is less than all.
    """
    views = [memoryview(column).cast("B") for column in columns]
    parts = [(at, part) for at, view in enumerate(views) for part in chunks_of(len(view))]
    if len(parts) != len(sums):
        return f"{len(sums)} checksums for {len(parts)} parts"
    chosen = list(range(len(parts)))
    if budget < sum(map(len, views)):
        random.Random(os.urandom(8)).shuffle(chosen)
    for number in chosen:
        at, part = parts[number]
        if checksum(views[at][part]) != sums[number]:
            return f"column {at}: bytes {part.start} to {part.stop}: another checksum"
        budget -= part.stop - part.start
        if budget < 0:
            break
    return None


# --------------------------------------------------------------------------------- plain objects


def sealed_json(content: Mapping[str, Any]) -> str:
    """Encode an object as JSON with a checksum; `unsealed_json` reads it."""
    return json.dumps({**content, FIELD: facts_sum(content)})


def unsealed_json(text: str | bytes) -> dict[str, Any]:
    """Decode what `sealed_json` wrote, without the checksum.

    Raises:
        ValueError: damaged, or not written by `sealed_json`.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict) or found.pop(FIELD, None) != facts_sum(found):
        raise ValueError("another checksum")
    return found


# --------------------------------------------------------------------------------- safetensors


def tensors_sum(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """Checksum of named tensors and metadata; a checksum in the metadata is left out."""
    import torch  # start-up time: processes that only decode rows need no torch

    total = xxhash.xxh3_64()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
            total.update(content)
    return facts_sum(facts, total.hexdigest())


def seal(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> dict[str, str]:
    """Add the checksum to the metadata of a safetensors file of contiguous CPU tensors."""
    return {**facts, FIELD: tensors_sum(tensors, facts)}


def sealed(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> bytes:
    """A safetensors file with a checksum in its metadata; equal input gives equal bytes."""
    from safetensors.torch import save  # start-up time: as torch

    data = bytes(save(dict(tensors), metadata=seal(tensors, facts)))
    # safetensors writes metadata in random order.
    size = int.from_bytes(data[:8], "little")
    told = json.loads(data[8 : 8 + size])
    told["__metadata__"] = dict(sorted(told["__metadata__"].items()))
    text = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def metadata_of(data: bytes) -> dict[str, str]:
    """Metadata of a safetensors file.

    Raises:
        ValueError: not a safetensors file.
    """
    size = int.from_bytes(data[:8], "little")
    found = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    return {str(name): str(value) for name, value in found.items()}


def check_tensors(
    tensors: Mapping[str, Tensor], facts: Mapping[str, str], *, must: bool = True
) -> None:
    """Raise ValueError if the checksum in the metadata does not match tensors and metadata.

    Args:
        tensors: all tensors of the file.
        facts: its metadata.
        must: whether a missing checksum is an error; files of earlier versions have none.
    """
    stated = facts.get(FIELD)
    if (stated is not None or must) and stated != tensors_sum(tensors, facts):
        raise ValueError("no checksum" if stated is None else "another checksum")


def unsealed(data: bytes, *, must: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that `sealed` wrote.

    Raises:
        ValueError: damaged; errors of safetensors are converted.
    """
    from safetensors.torch import load  # start-up time: as torch

    try:
        tensors: dict[str, Tensor] = load(data)
        facts = metadata_of(data)
    except (SafetensorError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(reason_of(error)) from None
    check_tensors(tensors, facts, must=must)
    return tensors, facts
