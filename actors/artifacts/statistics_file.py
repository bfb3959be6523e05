"""Files of statistics: one an expert and segment, named by a hash of all that it depends on.

They lie under the node's cache folder: whoever needs them next maps them, and a model that is cut
otherwise finds the same files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from actors.artifacts.errors import Forgotten
from actors.families.clip.architecture import PROJECTION
from actors.files.atomic import replacing
from actors.files.cache_dir import cache_dir
from actors.files.checksums import CHECKED, again, check_tensors, seal, state_of
from fusion.errors import InputError
from fusion.methods.statistics.collect import Statistics
from fusion.task_vectors.lazy import Computed

if TYPE_CHECKING:
    from actors.pool.pool import Pool

KEYS = "keys"
"""Metadata: tensor name -> the name of the tensor whose statistic is its own as well."""


def place(key: str, segment: int, root: Path | None = None) -> Path:
    """The file of one expert's statistics of one segment; `root`: the cache, by default ours."""
    return (root or cache_dir()) / "statistics" / f"{key}-{segment}.safetensors"


def opened(keys: Sequence[str], segments: Sequence[int], root: Path | None = None) -> Statistics:
    """Statistics of T experts, stacked when they are read: [T, …].

    Raises:
        Forgotten: a file that is not on this node (any more).
        InputError: a file that is damaged; also raised by reading what is returned.
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

    return Statistics(Computed(files, stacked), shared or {name: name for name in files})


@contextmanager
def mapped(path: Path) -> Iterator[Any]:
    """A file of statistics, opened; what is wrong with it, in one line.

    Raises:
        Forgotten: it is gone.
        InputError: it is cut short, or is no such file.
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
    """Whether a file is there and holds what was written. That one is damaged is said."""
    try:
        check(path)
    except FileNotFoundError:
        return False
    except (SafetensorError, OSError, ValueError) as error:
        again(path, error)
        return False
    return True


def check(path: Path, *, whole: bool = False) -> None:
    """Look at a file's checksum, once a process; `whole`: whether or not it did before.

    Raises:
        OSError: it is not there.
        SafetensorError, ValueError: it is not what was written.
    """
    if not whole and CHECKED.has(path):
        return
    state = state_of(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        check_tensors(tensors, file.metadata() or {})
    CHECKED.add(path, state, state[2])


def write(path: Path, found: Mapping[str, Tensor], keys: Mapping[str, str]) -> None:
    """One file, whole or not at all; `keys`: see `KEYS`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
    with replacing(path) as part:
        save_file(tensors, part, metadata=seal(tensors, {KEYS: json.dumps(dict(keys))}))


def gram_sizes(pool: Pool) -> dict[str, int]:
    """Key -> bytes of an expert's Gram matrix [in, in] of that input of linear layers.

    q, k and v of an attention read the same input, and share q's.
    """
    return {
        name: 4 * pool.base.tensors[name].shape[1] ** 2
        for name in pool.groups
        if name.endswith((".q_proj.weight", ".out_proj.weight", ".fc1.weight", ".fc2.weight"))
        or name == PROJECTION
    }
