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
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
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

RETRIES = 20
"""How often a call that an actor took down with it is run again. A node that dies is asked again
and again until the cluster has noticed."""

ROBUST = {"max_restarts": RESTARTS, "max_task_retries": RETRIES}

PATIENCE = 300.0
"""Seconds that a call waits for a place that its replica lost, with a node say."""

PULSE = 2.0
"""Seconds between looks at whether a replica still has its place."""


class Unplaced(InputError):
    """The cluster has no room for a replica: one line saying what is needed, and what is there."""


@dataclass
class Lane:
    """A call at a time of one replica."""

    replica: Any
    group: PlacementGroup
    lost: bool = False
    """Whether patience with it has ended."""


class Desk:
    """Hands calls to free replicas, first come, first served."""

    def __init__(self, lanes: bytes, patience: float) -> None:
        """`lanes`: pickled, since Ray would keep them apart and warn that they may be lost."""
        self.lanes: list[Lane] = ray.cloudpickle.loads(lanes)
        self.patience = patience
        self.free: asyncio.Queue[Lane] = asyncio.Queue()
        for lane in self.lanes:
            self.free.put_nowait(lane)

    async def call(self, method: str, *args: Any) -> Any:
        """`method(*args)` on the next free replica; a caller that dies leaves nothing behind.

        Raises:
            Unplaced: no replica has had a place for longer than `patience`.
        """
        while True:
            lane = await self.free.get()
            try:
                return await self.watched(lane, method, args)
            except Unplaced:
                if not any(placed(each.group) for each in self.lanes):
                    raise
            finally:
                self.free.put_nowait(lane)

    async def watched(self, lane: Lane, method: str, args: tuple[Any, ...]) -> Any:
        """A call's result; Ray itself would wait without end for a replica that lost its place."""
        result = asyncio.ensure_future(getattr(lane.replica, method).remote(*args))
        since = time.monotonic()
        while not (await asyncio.wait([result], timeout=PULSE))[0]:
            if placed(lane.group):
                since, lane.lost = time.monotonic(), False
            elif lane.lost or time.monotonic() - since > self.patience:
                lane.lost = True
                raise Unplaced(shortage([each.group for each in self.lanes]))
        return result.result()


def placed(group: PlacementGroup) -> bool:
    """Whether a placement group has all its places."""
    return bool(placement_group_table(group)["state"] == "CREATED")


def shortage(groups: Sequence[PlacementGroup]) -> str:
    """What these placement groups need, and what is there, in one line."""
    different = {group.id: group for group in groups}.values()
    lost = [group for group in different if not placed(group)]
    specs = [spec for group in lost for spec in group.bundle_specs]
    each = " and ".join(f"{amount:g} {kind}" for kind, amount in specs[0].items()) if specs else ""
    there, free = (
        ", ".join(f"{found.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
        for found in (ray.cluster_resources(), ray.available_resources())
    )
    return (
        f"fleet: no place for {len(lost)} of {len(different)} replicas: {len(specs)} shards need"
        f" {each} each; the cluster has {there} in all, {free} free"
    )


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
        patience: float = PATIENCE,
        transport: str = "store",
    ) -> None:
        setup = Setup(pool.base, pool.tasks, pool.groups, plan, dtype, data, embeddings, transport)
        self.setup = ray.put(setup)
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
            self.start_replica(setup, ray.cloudpickle.dumps(self.setup), weights, number)
        lanes = [
            Lane(replica, group)
            for replica, group in zip(self.replicas, self.groups, strict=True)
            for _ in range(LANES if plan.shards > 1 else 1)
        ]
        desk = ray.remote(Desk).options(num_cpus=0, max_concurrency=1000, **ROBUST)
        self.desk = desk.remote(ray.cloudpickle.dumps(lanes), patience)
        self.client = Client(self.desk, plan.replicas)

    def start_replica(self, known: Setup, setup: bytes, weights: list[bytes], number: int) -> None:
        """The actors of one replica, in a placement group of a bundle a shard."""
        plan = known.plan
        need = {"GPU": plan.gpus} if plan.device == "cuda" else {"CPU": 1.0}
        group = placement_group([need] * plan.shards, strategy="PACK")
        self.groups.append(group)

        def options(index: int) -> dict[str, Any]:
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
            return {
                "num_cpus": need.get("CPU", 0),
                "num_gpus": need.get("GPU", 0),
                "scheduling_strategy": place,
                **ROBUST,
            }

        if plan.shards == 1:
            actor = ray.remote(Replica).options(**options(0))
            self.replicas.append(actor.remote(setup, weights[0]))
            return
        # Of the class: as one of `options`, Ray would take it and ignore it.
        direct = plan.device == "cuda" and known.transport == "direct"
        kind = ray.remote(enable_tensor_transport=direct)(ShardActor)
        shards = [
            kind.options(**options(index)).remote(setup, each, index)
            for index, each in enumerate(weights)
        ]
        self.shards += shards
        conductor = ray.remote(Replica).options(num_cpus=0, max_concurrency=LANES, **ROBUST)
        self.replicas.append(conductor.remote(setup, None, ray.cloudpickle.dumps(shards)))

    def ready(self, timeout: float = 600.0) -> None:
        """Wait until every actor holds its weights.

        Raises:
            InputError: what an actor refused; of weights, the line names the tensor and the file.
            Unplaced: the cluster has no room for them.
            TimeoutError: it has, but they are not ready in time.
        """
        deadline = time.monotonic() + timeout
        pids = [actor.pid.remote() for actor in (*self.shards, *self.replicas)]
        waiting = [*self.read, *pids]  # in order of cause and effect
        while waiting:
            done, waiting = ray.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
            for ref in done:
                fetched(ref)
            if not done and not all(map(placed, self.groups)):
                raise Unplaced(f"{shortage(self.groups)}; waited {timeout:.0f} s")
            if not done:
                raise TimeoutError(
                    f"fleet: {len(waiting)} of {len(self.read) + len(pids)} readers and actors"
                    f" are not ready after {timeout:.0f} s"
                )

    def close(self) -> None:
        """End what was started, and give its places back."""
        for ref in self.read:
            ray.cancel(ref, force=True)  # nothing where it is done
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
        for file in dict.fromkeys(info.file for info in member.tensors.values()):
            if not file.exists():
                node = ray.util.get_node_ip_address()
                raise InputError(f"{member.name}: {file}: missing on node {node}")
    return pool.tasks, load_flat(pool, only=names)
