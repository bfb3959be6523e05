"""Checksums of what the product writes for itself, so that damage is found and never used.

Each file holds its own checksum (xxHash, 64 bits) over all that is read from it: tensors, columns,
facts. A file is checked when a process first opens it, and again when it has changed since. Files
up to `WHOLE` bytes are checked whole; of larger ones, and after `ALL` bytes in one process, only
randomly drawn chunks are, `SAMPLE` bytes of each file. `sweeps cache verify` checks everything.
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

from fusion.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

FIELD = "xxh3"
"""Where a file's metadata hold its checksum."""

DIGITS = 16
"""Hex digits of one checksum."""

WHOLE = 4 << 30
"""Files up to this size are checked whole: half a second from the page cache."""

ALL = 16 << 30
"""Once a process has checked so many bytes, it checks samples only."""

SAMPLE = 64 << 20
"""Bytes checked of a file that is not checked whole."""

CHUNK = 4 << 20
"""Bytes that one checksum is of, at least; larger where a column would have more than `MOST`."""

MOST = 1024
"""Checksums a column, at most."""


class Damaged(InputError):
    """A file of the product's own does not hold what was written into it. The message is the
    reason alone: who catches it knows the file."""


class Checked:
    """What this process has checked: path -> the file's state then; and how many bytes in all."""

    def __init__(self) -> None:
        self.states: dict[str, tuple[int, ...]] = {}
        self.bytes = 0

    def has(self, path: Path) -> bool:
        """Whether the file was found intact, and is the same since.

        Raises:
            OSError: it is gone.
        """
        return self.states.get(str(path)) == state_of(path)

    def add(self, path: Path, state: tuple[int, ...], count: int) -> None:
        """The file was found intact, in the state that it was opened in."""
        self.bytes += count
        if settled(state[-1]):
            self.states[str(path)] = state

    def budget(self, size: int) -> int:
        """How many bytes of a file of this size to check."""
        return size if size <= WHOLE and self.bytes + size <= ALL else min(size, SAMPLE)


CHECKED = Checked()

TICK_NS = 100_000_000
"""Two changes of a file within this time may leave it with the same time of change."""


def settled(changed_ns: int) -> bool:
    """Whether a file's time of change lies so far back that a later change shows."""
    return changed_ns + TICK_NS < time.time_ns()


def state_of(path: Path) -> tuple[int, ...]:
    """Which file is there, its size and its times of change."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def again(path: Path, error: Exception) -> None:
    """Say that a damaged file is made again."""
    logging.getLogger("sweeps").warning("%s: damaged (%s); made again", path, reason_of(error))


def reason_of(error: Exception) -> str:
    """Why a file is damaged, in a line."""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return text


def checksum(*parts: Any) -> str:
    """Of bytes-like parts, one after the other."""
    total = xxhash.xxh3_64()
    for part in parts:
        total.update(part)
    return total.hexdigest()


def facts_sum(facts: Mapping[str, Any], *more: str) -> str:
    """Of plain facts, without a checksum among them."""
    told = {name: value for name, value in facts.items() if name != FIELD}
    return checksum(json.dumps([told, *more], sort_keys=True, default=str).encode())


# ---------------------------------------------------------------------------------- long columns


def chunks_of(size: int) -> list[slice]:
    """The parts of `size` bytes that have a checksum each."""
    step = max(CHUNK, -(-size // MOST))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def column_sums(columns: Iterable[Any]) -> list[str]:
    """A checksum for each chunk of each column (bytes-like)."""
    views = [memoryview(column).cast("B") for column in columns]
    return [checksum(view[part]) for view in views for part in chunks_of(len(view))]


def differing(columns: Iterable[Any], sums: list[str], budget: int) -> str | None:
    """The first chunk whose checksum is another; None: none of those that were looked at.

    Args:
        columns: bytes-like.
        sums: of all chunks of all columns.
        budget: bytes to look at; which, is drawn anew each time.
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
    """An object as JSON with its checksum; see `unsealed_json`."""
    return json.dumps({**content, FIELD: facts_sum(content)})


def unsealed_json(text: str | bytes) -> dict[str, Any]:
    """What `sealed_json` was given.

    Raises:
        ValueError: damaged, or not written by it.
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
    """Of named tensors and the metadata beside them, without a checksum among these."""
    import torch

    total = xxhash.xxh3_64()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
            total.update(content)
    return facts_sum(facts, total.hexdigest())


def seal(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a safetensors file of these tensors (contiguous, on the CPU)."""
    return {**facts, FIELD: tensors_sum(tensors, facts)}


def sealed(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> bytes:
    """A safetensors file with its checksum among the metadata; the same bytes each time."""
    from safetensors.torch import save

    data = bytes(save(dict(tensors), metadata=seal(tensors, facts)))
    # safetensors writes metadata in an order of chance.
    size = int.from_bytes(data[:8], "little")
    told = json.loads(data[8 : 8 + size])
    told["__metadata__"] = dict(sorted(told["__metadata__"].items()))
    text = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def metadata_of(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file.

    Raises:
        ValueError: it is none.
    """
    size = int.from_bytes(data[:8], "little")
    found = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    return {str(name): str(value) for name, value in found.items()}


def check_tensors(
    tensors: Mapping[str, Tensor], facts: Mapping[str, str], *, must: bool = True
) -> None:
    """Raise ValueError where a file's checksum is not that of its tensors and metadata.

    Args:
        tensors: all of the file.
        facts: its metadata.
        must: whether there must be a checksum; files of earlier versions have none.
    """
    stated = facts.get(FIELD)
    if (stated is not None or must) and stated != tensors_sum(tensors, facts):
        raise ValueError("no checksum" if stated is None else "another checksum")


def unsealed(data: bytes, *, must: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of what `sealed` wrote.

    Raises:
        ValueError: damaged. (safetensors' own errors are turned into it.)
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(data)
        facts = metadata_of(data)
    except (SafetensorError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(reason_of(error)) from None
    check_tensors(tensors, facts, must=must)
    return tensors, facts
