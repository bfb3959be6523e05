"""Artifact store: files of learning trials in the sweep's folder, written from any node.

On the driver's node a trial writes there itself. On others it hands its files to a small actor on
the driver's node, and continues when they are written. The driver itself reads the folder.

Imports neither torch nor `fusion` when loaded, for the reason `actors/data/images/preprocess.py`
gives.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.files.atomic import replacing

RESTARTS = 50
"""How often the actor is started again: it holds nothing, and a file written twice is the same."""


class ArtifactStore(Protocol):
    """A store of small files by name."""

    def put(self, name: str, data: bytes) -> None:
        """Write a file atomically; it exists when this returns."""
        ...

    def get(self, name: str) -> bytes | None:
        """Content of a file; None if it is missing."""
        ...


@dataclass(frozen=True)
class LocalStore:
    """Files in a folder of this machine."""

    path: Path

    def put(self, name: str, data: bytes) -> None:
        """See `ArtifactStore.put`.

        Raises:
            InputError: no space, or no right to write; the line names the file.
        """
        with replacing(self.path / name) as part:
            part.write_bytes(data)

    def get(self, name: str) -> bytes | None:
        """See `ArtifactStore.get`."""
        with suppress(OSError):
            return (self.path / name).read_bytes()
        return None


@dataclass(frozen=True)
class RemoteStore:
    """Files in a folder of the driver's node, through an actor there; on that node directly."""

    folder: LocalStore
    node: str
    """Id of the driver's node."""
    actor: Any

    def put(self, name: str, data: bytes) -> None:
        """See `LocalStore.put`."""
        if self.near():
            self.folder.put(name, data)
        else:
            answer(self.actor.put.remote(name, data))

    def get(self, name: str) -> bytes | None:
        """See `LocalStore.get`."""
        if self.near():
            return self.folder.get(name)
        found: bytes | None = answer(self.actor.get.remote(name))
        return found

    def near(self) -> bool:
        """Whether this process is on the driver's node."""
        return bool(ray.get_runtime_context().get_node_id() == self.node)


class StoreActor(LocalStore):
    """`LocalStore` as an actor."""


def answer(ref: Any) -> Any:
    """Result of an actor's call; its errors are raised as themselves.

    Raises:
        InputError: the driver's node cannot write.
    """
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def artifact_store(path: Path, *, everywhere: bool) -> ArtifactStore:
    """The artifact store of a sweep.

    Args:
        path: the folder, on this node.
        everywhere: whether there may be trials on other nodes, which need the actor. It ends with
            this process.
    """
    folder = LocalStore(path)
    if not everywhere:
        return folder
    node = ray.get_runtime_context().get_node_id()
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    actor = ray.remote(StoreActor).options(
        num_cpus=0,
        scheduling_strategy=here,
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
    )
    return RemoteStore(folder, node, actor.remote(path))
