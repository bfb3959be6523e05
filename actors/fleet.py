"""Experts on a Ray cluster: replicas as actors, weights once a node. The only file here that
knows actors; everything they do is `LocalExperts`.

A *replica* is one resident model and read-only views of base and task vectors in the node's
object store. The *desk* hands each call to the next free replica; callers (trials) hold nothing
but its handle. Calls carry all they need, so a replica that dies is restarted and its call run
again, with the same result to the bit.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from actors.embeddings import EmbeddingCache
from actors.experts import Evaluation, LocalExperts, Recipe, TaskData
from actors.models import ImageEncoder
from actors.placement import Plan
from actors.pool import FlatVectors, Pool, load_flat, unflatten

RESTARTS = 3
"""How often a replica that dies is started again, and a call that it took down is run again."""


@dataclass(frozen=True)
class Setup:
    """What a replica is built from, beside the weights."""

    base: Path
    device: str
    dtype: str
    threads: int
    data: Mapping[str, TaskData]
    embeddings: EmbeddingCache


class Replica:
    """`LocalExperts` in a process of its own."""

    def __init__(self, setup: Setup, weights: bytes) -> None:
        """`weights`: a pickled reference to `FlatVectors`, which the fleet keeps alive.

        As an argument proper it would be the actor's own, and Ray warns of each that a restart
        may not find it.
        """
        torch.set_num_threads(setup.threads)
        flat: FlatVectors = ray.get(ray.cloudpickle.loads(weights))
        vectors = unflatten(flat, setup.device)
        encoder = ImageEncoder(setup.base, setup.device, getattr(torch, setup.dtype))
        self.experts = LocalExperts(vectors, encoder, setup.data, setup.embeddings)

    def evaluate(self, recipe: Recipe, role: str) -> Evaluation:
        """See `LocalExperts.evaluate`."""
        return self.experts.evaluate(recipe, role)

    def measure(self, method: str, params: dict[str, Any], role: str) -> dict[str, Any]:
        """`evaluate` in plain types, for callers that do without torch."""
        return self.experts.evaluate(Recipe(method, params), role).plain()

    def merge(self, recipe: Recipe) -> dict[str, Tensor]:
        """See `LocalExperts.merge`."""
        return self.experts.merge(recipe)

    def embed(self, expert: str, role: str) -> None:
        """See `LocalExperts.embed`."""
        self.experts.embed(expert, role)

    def pid(self) -> int:
        """The process, so that a test can kill it."""
        return os.getpid()


class Desk:
    """Hands calls to free replicas, first come, first served."""

    def __init__(self, replicas: list[Any]) -> None:
        self.free: asyncio.Queue[Any] = asyncio.Queue()
        for replica in replicas:
            self.free.put_nowait(replica)

    async def call(self, method: str, *args: Any) -> Any:
        """`method(*args)` on the next free replica; a caller that dies leaves nothing behind."""
        replica = await self.free.get()
        try:
            return await getattr(replica, method).remote(*args)
        finally:
            self.free.put_nowait(replica)


@dataclass(frozen=True)
class Client:
    """What a trial holds of a fleet: `Experts`, by way of the desk."""

    desk: Any

    def evaluate(self, recipe: Recipe, role: str) -> Evaluation:
        """Blocks until a replica has done it."""
        result: Evaluation = unwrapped(self.submit("evaluate", recipe, role))
        return result

    def merge(self, recipe: Recipe) -> dict[str, Tensor]:
        """Blocks; moves a whole model through the object store: for tests and exports."""
        result: dict[str, Tensor] = unwrapped(self.submit("merge", recipe))
        return result

    def submit(self, method: str, *args: Any) -> Any:
        """An object reference to the result."""
        return self.desk.call.remote(method, *args)


class Fleet:
    """The replicas of one sweep; a context manager that leaves no actor behind."""

    def __init__(
        self,
        pool: Pool,
        data: Mapping[str, TaskData],
        embeddings: EmbeddingCache,
        plan: Plan,
        dtype: str = "float32",
    ) -> None:
        setup = Setup(pool.base.folder, plan.device, dtype, plan.threads, data, embeddings)
        # Read once, by a task, so that the weights never pass through the driver.
        reader = ray.remote(read).options(name="read experts", num_cpus=0, num_returns=2)
        self.read, self.flat = reader.remote(pool)
        options = {
            "num_cpus": 1 if plan.device == "cpu" else 0,
            "num_gpus": 1 if plan.device == "cuda" else 0,
            "max_restarts": RESTARTS,
            "max_task_retries": RESTARTS,
        }
        actor, weights = ray.remote(Replica), ray.cloudpickle.dumps(self.flat)
        self.replicas = [
            actor.options(**options).remote(setup, weights) for _ in range(plan.replicas)
        ]
        self.desk = ray.remote(Desk).options(num_cpus=0, max_concurrency=1000).remote(self.replicas)
        self.client = Client(self.desk)

    def ready(self, timeout: float = 600.0) -> None:
        """Wait until every replica holds its weights.

        Raises:
            InputError: the weights were refused (the line names the tensor and the file).
            TimeoutError: the cluster did not give the replicas their place in time.
        """
        refs = [replica.pid.remote() for replica in self.replicas]
        try:
            unwrapped(self.read, timeout)
            ray.get(refs, timeout=timeout)
        except ray.exceptions.GetTimeoutError:
            have = ray.cluster_resources()
            raise TimeoutError(
                f"fleet: {len(self.replicas)} replicas did not start within {timeout:.0f} s; the "
                f"cluster has {have.get('CPU', 0):.0f} CPUs and {have.get('GPU', 0):.0f} GPUs"
            ) from None

    def close(self) -> None:
        """Kill what was started."""
        for actor in (self.desk, *self.replicas):
            ray.kill(actor)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(pool: Pool) -> tuple[tuple[str, ...], FlatVectors]:
    """The experts' names, small enough to fetch (or to fail by), and the weights."""
    return pool.tasks, load_flat(pool)


def unwrapped(ref: Any, timeout: float | None = None) -> Any:
    """The value of a reference; an error raised remotely is raised here as itself."""
    try:
        return ray.get(ref, timeout=timeout)
    except ray.exceptions.RayTaskError as error:
        raise root_cause(error) from None


def root_cause(error: BaseException) -> BaseException:
    """The user's exception inside Ray's (nested, where a call went through the desk)."""
    while isinstance(error, ray.exceptions.RayTaskError) and error.cause is not None:
        error = error.cause
    return error
