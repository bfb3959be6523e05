"""Experts on a Ray cluster: replicas of shards as actors, weights once a node. The only file here
that starts actors; what they do is `LocalExperts` and `Shard`.

A *replica* is one whole model: in one process, or a conductor of several *shards*, each in a
process of its own. Base and task vectors are read-only views of the node's object store. The
*desk* hands each call to the next free replica; callers (trials) hold nothing but its handle. Calls
carry all they need, so an actor that dies is restarted and its call run again, with the same result
to the bit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import Tensor

from actors.embeddings import EmbeddingCache
from actors.experts import Evaluation, Recipe, TaskData
from actors.placement import Plan
from actors.pool import FlatVectors, Pool, load_flat
from actors.replica import LANES, Replica, Setup, ShardActor
from actors.segments import clip_segments, segment_names
from actors.transport import fetched
from fusion.errors import InputError
from fusion.learning import Gradient, Lesson
from fusion.trim import Trim

RESTARTS = 50
"""How often an actor that dies is started again."""

RETRIES = 3
"""How often a call that an actor took down with it is run again."""


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
    replicas: int = 1

    def evaluate(self, recipe: Recipe, role: str) -> Evaluation:
        """Blocks until a replica has done it."""
        result: Evaluation = fetched(self.submit("evaluate", recipe, role))
        return result

    def merge(self, recipe: Recipe) -> dict[str, Tensor]:
        """Blocks; moves a whole model through the object store: for tests and exports."""
        result: dict[str, Tensor] = fetched(self.submit("merge", recipe))
        return result

    def gradients(self, lessons: Sequence[Lesson], role: str, trim: Trim) -> list[Gradient]:
        """Blocks; lessons are dealt to all replicas: the result is the same on any of them."""
        each = -(-len(lessons) // self.replicas)
        refs = [
            self.submit("gradients", lessons[start : start + each], role, trim)
            for start in range(0, len(lessons), each)
        ]
        return [gradient for ref in refs for gradient in fetched(ref)]

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
        setup = Setup(pool.base, pool.tasks, pool.groups, plan, dtype, data, embeddings)
        chain = clip_segments(pool.base)
        # Read by tasks, a block each, so that the weights never pass through the driver.
        reader = ray.remote(read).options(name="read experts", num_cpus=0, num_returns=2)
        blocks = [segment_names(chain, *block) for block in plan.blocks]
        self.read, self.flat = zip(*(reader.remote(pool, names) for names in blocks), strict=True)
        weights = [ray.cloudpickle.dumps(flat) for flat in self.flat]
        self.groups: list[PlacementGroup] = []
        self.shards: list[Any] = []
        self.replicas: list[Any] = []
        for number in range(plan.replicas):
            self.start_replica(setup, weights, number)
        lanes = [
            replica for replica in self.replicas for _ in range(LANES if plan.shards > 1 else 1)
        ]
        self.desk = ray.remote(Desk).options(num_cpus=0, max_concurrency=1000).remote(lanes)
        self.client = Client(self.desk, plan.replicas)

    def start_replica(self, setup: Setup, weights: list[bytes], number: int) -> None:
        """The actors of one replica, in a placement group of a bundle a shard."""
        plan = setup.plan
        need = {"GPU": plan.gpus} if plan.device == "cuda" else {"CPU": 1.0}
        group = placement_group([need] * plan.shards, strategy="PACK")
        self.groups.append(group)
        robust = {"max_restarts": RESTARTS, "max_task_retries": RETRIES}

        def options(index: int) -> dict[str, Any]:
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
            return {
                "num_cpus": need.get("CPU", 0),
                "num_gpus": need.get("GPU", 0),
                "scheduling_strategy": place,
                **robust,
            }

        if plan.shards == 1:
            actor = ray.remote(Replica).options(**options(0))
            self.replicas.append(actor.remote(setup, weights[0]))
            return
        direct = {"enable_tensor_transport": True} if plan.device == "cuda" else {}
        shards = [
            ray.remote(ShardActor).options(**options(index), **direct).remote(setup, each, index)
            for index, each in enumerate(weights)
        ]
        self.shards += shards
        conductor = ray.remote(Replica).options(num_cpus=0, max_concurrency=LANES, **robust)
        self.replicas.append(conductor.remote(setup, None, shards))

    def ready(self, timeout: float = 600.0) -> None:
        """Wait until every actor holds its weights.

        Raises:
            InputError: the weights were refused (the line names the tensor and the file).
            TimeoutError: the cluster did not give the actors their place in time.
        """
        refs = [actor.pid.remote() for actor in (*self.shards, *self.replicas)]
        try:
            for each in self.read:
                fetched(each, timeout)
            ray.get(refs, timeout=timeout)
        except ray.exceptions.GetTimeoutError:
            have, needed = ray.cluster_resources(), self.groups[0].bundle_specs
            raise TimeoutError(
                f"fleet: {len(self.groups)} replica(s) of {needed} did not start within"
                f" {timeout:.0f} s; the cluster has {have.get('CPU', 0):.0f} CPUs and"
                f" {have.get('GPU', 0):.0f} GPUs"
            ) from None

    def close(self) -> None:
        """Kill what was started, and give its places back."""
        for actor in (self.desk, *self.replicas, *self.shards):
            ray.kill(actor)
        for group in self.groups:
            remove_placement_group(group)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(pool: Pool, names: tuple[str, ...]) -> tuple[tuple[str, ...], FlatVectors]:
    """The experts' names, small enough to fetch (or to fail by), and a block's weights.

    Raises:
        InputError: an expert that is not there on this node, or is refused.
    """
    for member in (pool.base, *pool.experts.values()):
        for info in member.tensors.values():
            if not info.file.exists():
                raise InputError(
                    f"{member.name}: {info.file}: missing on node {ray.util.get_node_ip_address()}"
                )
            break
    return pool.tasks, load_flat(pool, only=names)
