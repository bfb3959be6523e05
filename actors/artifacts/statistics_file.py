"""Files of data statistics (Fisher diagonals, Gram matrices): one for each expert and segment.

A file's name is a hash of all that it depends on. Files are in the node's cache folder and are
memory-mapped. A model that is cut into other shards uses the same files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from actors.artifacts.errors import Forgotten
from actors.files.atomic import replacing
from actors.files.cache_dir import cache_dir
from actors.files.checksums import CHECKED, again, check_tensors, seal, state_of
from fusion.errors import InputError
from fusion.methods.statistics.collect import Statistics
from fusion.task_vectors.lazy import LazyTensors

KEYS = "keys"
"""Metadata field: tensor name -> name of the tensor whose statistic it shares."""


def place(key: str, segment: int, root: Path | None = None) -> Path:
    """Path of one expert's statistics of one segment; `root`: default: the cache folder."""
    return (root or cache_dir()) / "statistics" / f"{key}-{segment}.safetensors"


def opened(keys: Sequence[str], segments: Sequence[int], root: Path | None = None) -> Statistics:
    """Statistics of T experts [T, …], stacked when a tensor is read.

    Raises:
        Forgotten: a file is not, or no longer, on this node.
        InputError: a file is damaged; also raised when a tensor is read.
    """
    files: dict[str, list[Path]] = {}
    shared: dict[str, str] = {}
    for at in segments:
        paths = [place(key, at, root) for key in keys]
        with mapped(paths[0]) as first:
            names = list(first.keys())
            shared |= json.loads((first.metadata() or {})[KEYS])
        files |= dict.fromkeys(names, paths)

    def stacked(name: str) -> Tensor:
        parts: list[Tensor] = []
        for path in files[name]:
            with mapped(path) as file:
                parts.append(file.get_tensor(name))
                if parts[-1].shape != parts[0].shape:
                    raise ValueError(f"{name}: {list(parts[-1].shape)}; others have another shape")
        return torch.stack(parts)

    return Statistics(LazyTensors(files, stacked), shared or {name: name for name in files})


@contextmanager
def mapped(path: Path) -> Iterator[Any]:
    """Open a file of statistics.

    Raises:
        Forgotten: the file is gone.
        InputError: the file is truncated or not a file of statistics; one line.
    """
    try:
        check(path)
        with safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError as error:
        raise Forgotten(f"{path}: statistics that are gone") from error
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: damaged statistics ({reason}); remove the file, and it is gathered again"
        ) from error


def sound(path: Path) -> bool:
    """Whether a file exists and is intact; damage is logged."""
    try:
        check(path)
    except FileNotFoundError:
        return False
    except (SafetensorError, OSError, ValueError) as error:
        again(path, error)
        return False
    return True


def check(path: Path, *, whole: bool = False) -> None:
    """Verify a file's checksum, once a process; `whole`: even if it was verified before.

    Raises:
        OSError: no such file.
        SafetensorError, ValueError: the content is not what was written.
    """
    if not whole and CHECKED.has(path):
        return
    state = state_of(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        check_tensors(tensors, file.metadata() or {})
    CHECKED.add(path, state, state[2])


def write(path: Path, found: Mapping[str, Tensor], keys: Mapping[str, str]) -> None:
    """Write a file of statistics atomically; `keys`: see `KEYS`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
    with replacing(path) as part:
        save_file(tensors, part, metadata=seal(tensors, {KEYS: json.dumps(dict(keys))}))
