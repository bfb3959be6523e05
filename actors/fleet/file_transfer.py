"""Files of the driver's cache on nodes that do not see them: taken from the driver's node, once a
node.

Names in the cache are content hashes, so a file of the same name is the same file, wherever it
lies. It is sent in pieces through the object store, from the driver's node to the one that lacks
it; the driver's process has no part in it, and what is under way is bounded on both nodes.
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
"""Pieces under way for one file: reading, sending and writing then overlap."""

KINDS = frozenset({"pixels", "heads", "features"})
"""What a task has in the cache."""


class Lost(InputError):
    """A file that the driver's node does not give: one line saying which, and why."""


@dataclass(frozen=True)
class Home:
    """Where the files of a sweep were made: the driver's node, and its cache folder there."""

    node: str
    root: Path


def home() -> Home:
    """This node, as the driver says it; Ray must be initialised."""
    return Home(own_id(), cache_dir())


def settled(
    data: Mapping[str, TaskData], home: Home | None, kinds: Collection[str] = KINDS
) -> dict[str, TaskData]:
    """The same data, its files where this node has them; files it lacks are fetched first.

    Where all are at their paths (one machine, a shared file system) that is a look at each.

    Args:
        data: task -> paths as the driver has them.
        home: whose they are; None: this process's.
        kinds: what will be read; other paths stay as they are.

    Raises:
        InputError: see `fetch`.
    """
    if home is None:
        return dict(data)

    def at(path: Path, kind: str) -> Path:
        return settle(path, home) if kind in kinds else path

    def rows(given: Rows) -> Rows:
        features = {key: at(path, "features") for key, path in given.features.items()}
        return replace(given, file=at(given.file, "pixels"), features=features)

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


def settle(path: Path, home: Home) -> Path:
    """Where this node has a file of the driver's cache: at the same path (a shared file system), or
    in the node's own cache, where it is fetched to if need be.

    Raises:
        InputError: see `fetch`.
    """
    if path.exists():
        return path
    return fetch(path, home, cache_dir() / path.relative_to(home.root))


def fetch(path: Path, home: Home, mine: Path) -> Path:
    """A file of the driver's node as `mine`; of several processes of a node, one copies it.

    Args:
        path: on the driver's node.
        home: that node.
        mine: here; its name says its content.

    Raises:
        InputError: it is gone there, or that node is; or no room, or no right to write, here. The
            line names node and file.
    """
    if mine.exists():
        return mine
    try:
        mine.parent.mkdir(parents=True, exist_ok=True)
        with mine.with_name(f".{mine.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # goes with the process, however it ends
            if not mine.exists():
                with replacing(mine) as part:
                    copy(path, home, part)
    except Lost:
        raise
    except (OSError, InputError) as error:
        said = error if isinstance(error, InputError) else f"{mine}: {error.strerror}"
        raise InputError(
            f"node {address(own_id())}: {said}; mend that, or start the node with"
            " FUSION_SWEEPS_CACHE set to a folder that has room and can be written"
        ) from None
    return mine


def copy(path: Path, home: Home, to: Path) -> None:
    """Write a file of the driver's node to `to`, a few pieces ahead of what is written.

    Raises:
        Lost: it cannot be had.
        OSError: it cannot be written; of a disk that is too small before any piece is.
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
            raise Lost(f"{path}: changed on node {address(home.node)} while it was copied")


def received(ref: Any, path: Path, home: Home) -> Any:
    """A piece; Lost where there is none."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, OSError):
            raise
        reason = (
            f"cannot be read on node {address(home.node)}, the driver's: {error.cause.strerror}"
        )
        raise Lost(f"{path}: {reason}; --resume makes it again") from None
    except ray.exceptions.RayError as error:
        gone = f"node {address(home.node)}, the driver's, does not answer ({type(error).__name__})"
        raise Lost(f"{path}: cannot be copied: {gone}") from None
