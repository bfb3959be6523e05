"""Copy files of the driver's cache to nodes that do not see them, once for each node.

Names in the cache are content hashes, so files of the same name have the same content. A file is
sent in pieces through the object store, from the driver's node to the one that lacks it. The
driver's process takes no part, and the number of pieces in memory is bounded on both nodes.
"""

from __future__ import annotations

import fcntl
import os
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster.nodes import address, own_id
from actors.data.task_rows import Rows, TaskData
from actors.files.atomic import replacing
from actors.files.cache_dir import cache_dir
from actors.fleet.file_transfer_worker import piece
from fusion.errors import InputError

PIECE = 16 << 20
"""Bytes sent at a time."""

AHEAD = 4
"""Pieces of one file in flight, so that reading, sending and writing overlap."""

KINDS = frozenset({"rows", "heads", "features"})
"""Kinds of files that a task has in the cache."""


class TransferFailed(InputError):
    """A file that cannot be copied from the driver's node; names the file and the reason."""


@dataclass(frozen=True)
class Home:
    """The driver's node and its cache folder, in which the files of a sweep are."""

    node: str
    root: Path


def home() -> Home:
    """This process's node and cache; called by the driver, after Ray is initialised."""
    return Home(own_id(), cache_dir())


def with_local_files(
    data: Mapping[str, TaskData], home: Home | None, kinds: Collection[str] = KINDS
) -> dict[str, TaskData]:
    """The same data with paths of this node; files that it lacks are fetched first.

    If all paths exist (one machine, a shared file system), nothing else happens.

    Args:
        data: task -> paths on the driver's node.
        home: the driver's node; None: this process is the driver.
        kinds: kinds of files to be read; other paths are kept.

    Raises:
        InputError: see `fetch`.
    """
    if home is None:
        return dict(data)

    def at(path: Path, kind: str) -> Path:
        return local_file(path, home) if kind in kinds else path

    def rows(given: Rows) -> Rows:
        features = {key: at(path, "features") for key, path in given.features.items()}
        return replace(given, file=at(given.file, "rows"), features=features)

    return {
        name: replace(
            task,
            head=at(task.head, "heads"),
            rows={role: rows(given) for role, given in task.rows.items()},
        )
        for name, task in data.items()
    }


def paths(data: Mapping[str, TaskData]) -> list[Path]:
    """All files of a sweep's tasks, in order."""
    rows = [given for task in data.values() for given in task.rows.values()]
    return [
        *(task.head for task in data.values()),
        *(path for given in rows for path in (given.file, *given.features.values())),
    ]


def local_file(path: Path, home: Home) -> Path:
    """Path on this node of a file of the driver's cache.

    It is the same path (a shared file system), or one in the node's own cache, to which the file is
    copied if it is missing.

    Raises:
        InputError: see `fetch`.
    """
    if path.exists():
        return path
    return fetch(path, home, cache_dir() / path.relative_to(home.root))


def fetch(path: Path, home: Home, mine: Path) -> Path:
    """Copy a file of the driver's node to `mine`; only one process of a node copies it.

    Args:
        path: path on the driver's node.
        home: the driver's node.
        mine: path on this node; the name is a content hash.

    Raises:
        InputError: the file or the driver's node is gone, or this node lacks disk space or write
            permission. The message names node and file.
    """
    if mine.exists():
        return mine
    try:
        mine.parent.mkdir(parents=True, exist_ok=True)
        with mine.with_name(f".{mine.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the process ends in any way
            if not mine.exists():
                with replacing(mine) as part:
                    copy(path, home, part)
    except TransferFailed:
        raise
    except (OSError, InputError) as error:
        said = error if isinstance(error, InputError) else f"{mine}: {error.strerror}"
        raise InputError(
            f"node {address(own_id())}: {said}; mend that, or start the node with"
            " FUSION_SWEEPS_CACHE set to a folder that has room and can be written"
        ) from None
    return mine


def copy(path: Path, home: Home, to: Path) -> None:
    """Copy a file of the driver's node to `to`; fetches a few pieces ahead of writing.

    Raises:
        TransferFailed: the file cannot be fetched.
        OSError: it cannot be written. A disk that is too small is noticed before the first piece.
    """
    here = NodeAffinitySchedulingStrategy(home.node, soft=False)
    task = ray.remote(piece).options(
        name="send a cached file", num_cpus=0, scheduling_strategy=here
    )
    under_way = deque([task.remote(str(path), 0, PIECE)])
    asked = PIECE
    with to.open("wb") as file:
        while under_way:
            total, data = received(under_way.popleft(), path, home)
            if not file.tell() and total and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, total)
            file.write(data)
            while asked < total and len(under_way) < AHEAD:
                under_way.append(task.remote(str(path), asked, PIECE))
                asked += PIECE
        if file.tell() != total:
            raise TransferFailed(
                f"{path}: changed on node {address(home.node)} while it was copied"
            )


def received(ref: Any, path: Path, home: Home) -> Any:
    """Fetch one piece; raises TransferFailed if that fails."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, OSError):
            raise
        reason = (
            f"cannot be read on node {address(home.node)}, the driver's: {error.cause.strerror}"
        )
        raise TransferFailed(f"{path}: {reason}; --resume makes it again") from None
    except ray.exceptions.RayError as error:
        gone = f"node {address(home.node)}, the driver's, does not answer ({type(error).__name__})"
        raise TransferFailed(f"{path}: cannot be copied: {gone}") from None
