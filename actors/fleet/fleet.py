"""Fleet: the replicas of a sweep on a Ray cluster, with one copy of the weights on each node.

The only file here that starts actors; what they do is in `LocalExperts` and `Shard`.

A *replica* is one whole model: one process, or a coordinator of several *shards*, each in a process
of its own. Base and task vectors are read-only views of the node's object store, or task vectors
are
computed from the experts' files as they are read (`vectors_on_disk.py`). The *dispatcher* sends
each
call to the next free replica; callers (trials) hold only its handle. Every call carries all that it
needs, so an actor that dies is restarted and its call repeated, with the same result to the bit.
The
dispatcher counts these repetitions.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from actors.cluster.actor_names import actor_name
from actors.cluster.fatal import OutOfMemory
from actors.cluster.node_labels import selector
from actors.cluster.partition import gigabytes
from actors.cluster.planner import Plan
from actors.cluster.worker_deaths import is_death
from actors.data.task_rows import TaskData
from actors.experts.embedding_cache import EmbeddingCache
from actors.families.protocol import segment_names
from actors.fleet.client import Client
from actors.fleet.dispatcher import PATIENCE, REVIVALS, Dispatcher, Slot, lost
from actors.fleet.errors import Unplaced, placed, shortage
from actors.fleet.file_transfer import home
from actors.fleet.replica import SLOTS, Replica, Setup, ShardActor
from actors.fleet.restarts import Deaths, Vitals, killed_by_ray
from actors.fleet.transport import fetched
from actors.pool.pool import FlatVectors, Pool, load_flat
from actors.pool.vectors_low_rank import FactoredVectors, factor_vectors
from actors.pool.vectors_on_disk import FiledVectors, file_vectors
from actors.shards.resident_model import blueprint
from fusion.errors import InputError

RESTARTS = 50
"""How often an actor that dies is started again in all; what a call may cost of them is counted at
the dispatcher. Starting one is cheap: weights are taken up by its first call."""

RETRIES = 20
"""How often a call to the dispatcher, which holds nothing, is made again where it died. A node that
dies
is asked again and again until the cluster has noticed."""

READS = 2
"""How often a block of weights is read again whose reader died."""

ROBUST = {"max_restarts": RESTARTS, "max_task_retries": RETRIES}


@dataclass(frozen=True)
class Member:
    """One replica of a fleet, with what it is made of."""

    number: int
    replica: Any
    shards: tuple[Any, ...]
    group: PlacementGroup


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
        readers: Sequence[str] = (),
        sweep: str = "",
        weights: str = "memory",
        results: str = "base",
    ) -> None:
        """Start all actors, without waiting for them.

        Args:
            pool: the models.
            data: of each task.
            embeddings: cache of expert embeddings.
            plan: how many replicas of how many shards, and where.
            dtype: what is computed in.
            patience: seconds that calls wait where no replica has a place any more.
            transport: how activations travel between shards; see `transport.choose`.
            readers: ids of nodes that see the checkpoints: the weights' blocks are read there in
                turn, and pulled from there by other nodes. Empty: wherever Ray likes.
            sweep: its name, for those of the actors; one fleet at a time has it.
            weights: `memory`; `factored`: adapters' factors are the objects; or `files`: task
                vectors are none, each replica opens the experts' files; its node must see them.
            results: `base` or `float32`: what merged models are rounded to.
        """
        base = blueprint(pool.base, pool.names)
        self.known = Setup(
            base, pool.tasks, pool.groups, plan, dtype, data, embeddings, transport, results, home()
        )
        self.plan, self.sweep = plan, sweep
        self.setup = ray.put(self.known)
        # Read by tasks, a block each, so that the weights never pass through the driver.
        self.read, self.flat = [], []
        for index, block in enumerate(plan.blocks):
            options: dict[str, Any] = {
                "name": f"read experts: block {index}",
                "num_cpus": 0,
                "max_retries": READS,
            }
            if readers:
                options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                    readers[index % len(readers)], soft=True
                )
            reader = ray.remote(read).options(num_returns=2, **options)
            names, flat = reader.remote(pool, segment_names(base.chain, *block), weights)
            self.read.append(names)
            self.flat.append(flat)
        self.numbers = itertools.count()
        self.members: list[Member] = []
        for _ in range(plan.replicas):
            self.start()
        dispatcher = ray.remote(Dispatcher).options(
            num_cpus=0, max_concurrency=1000, **self.name(), **ROBUST
        )
        slots = [slot for member in self.members for slot in self.slots(member)]
        self.dispatcher = dispatcher.remote(ray.cloudpickle.dumps(slots), patience, needed(plan))
        self.client = Client(self.dispatcher, plan.replicas)

    @property
    def replicas(self) -> list[Any]:
        """One actor a replica."""
        return [member.replica for member in self.members]

    @property
    def shards(self) -> list[Any]:
        """The actors of all shards; none where replicas are whole."""
        return [shard for member in self.members for shard in member.shards]

    @property
    def groups(self) -> list[PlacementGroup]:
        """The places, one group a replica."""
        return [member.group for member in self.members]

    def start(self) -> Member:
        """The actors of one more replica, in a placement group of a bundle a shard."""
        plan, number = self.plan, next(self.numbers)
        setup = ray.cloudpickle.dumps(self.setup)
        weights = [ray.cloudpickle.dumps(flat) for flat in self.flat]
        need = share(plan)
        group = reserve(plan, self.name(number).get("name", ""))

        def options(index: int, shard: int | None = None) -> dict[str, Any]:
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
            return {
                "num_cpus": need.get("CPU", 0),
                "num_gpus": need.get("GPU", 0),
                "scheduling_strategy": place,
                **self.name(number, shard),
                **ROBUST,
            }

        if plan.shards == 1:
            whole = ray.remote(Replica).options(**options(0)).remote(setup, weights[0])
            member = Member(number, whole, (), group)
        else:
            # Of the class: as one of `options`, Ray would take it and ignore it.
            direct = plan.device == "cuda" and self.known.transport == "direct"
            kind = ray.remote(enable_tensor_transport=direct)(ShardActor)
            shards = tuple(
                kind.options(**options(index, index)).remote(setup, each, index)
                for index, each in enumerate(weights)
            )
            coordinator = ray.remote(Replica).options(
                num_cpus=0, max_concurrency=SLOTS, **self.name(number), **ROBUST
            )
            replica = coordinator.remote(setup, None, ray.cloudpickle.dumps(shards))
            member = Member(number, replica, shards, group)
        self.members.append(member)
        return member

    def name(self, replica: int | None = None, shard: int | None = None) -> dict[str, str]:
        """The name of an actor, as an option; none where the sweep has no name."""
        return {"name": actor_name(self.sweep, replica, shard)} if self.sweep else {}

    def slots(self, member: Member) -> list[Slot]:
        """The slots of a replica: one for each call that it takes at the same time."""
        count = SLOTS if member.shards else 1
        return [Slot(member.number, member.replica, member.group) for _ in range(count)]

    def staff(self, members: Sequence[Member], coming: Sequence[Member] = ()) -> None:
        """Set the replicas that take calls from now on.

        Args:
            members: are ready.
            coming: are not yet, and stay. All others are given up: the calls that they have are
                made again by others.
        """
        slots = [slot for member in members for slot in self.slots(member)]
        ray.get(self.dispatcher.staff.remote(ray.cloudpickle.dumps(slots)))
        kept = {member.number: member for member in (*members, *coming)}
        for member in self.members:
            if member.number not in kept:
                end(member)
        self.members = list(kept.values())

    def ready(self, timeout: float = 600.0) -> None:
        """Wait until every actor holds its weights.

        Raises:
            InputError: what an actor refused; of weights, the line names the tensor and the file.
                Or an actor or reader died again and again, or they are not ready in time.
            Unplaced: the cluster has no room for them.
        """
        deadline = time.monotonic() + timeout
        rises = [Rise(actor, needed(self.plan)) for actor in actors_of(self.members)]
        rising = {rise.ready: rise for rise in rises}
        waiting = [*self.read, *rising]  # in order of cause and effect
        count = len(waiting)
        while waiting:
            done, waiting = ray.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
            for ref in done:
                try:
                    fetched(ref)
                except Exception as error:
                    if not is_death(error):
                        raise
                    if ref not in rising:
                        raise OutOfMemory(
                            f"fleet: a reader of weights died {READS + 1} times, for want of"
                            f" memory most likely; planned: {needed(self.plan)}; set"
                            " placement.weights: files, or grant more memory"
                        ) from error
                    rise = rising.pop(ref)
                    rise.again()
                    rising[rise.ready] = rise
                    waiting.append(rise.ready)
            if not done and not all(map(placed, self.groups)):
                raise Unplaced(f"{shortage(self.groups)}; waited {timeout:.0f} s")
            if not done:
                raise InputError(
                    f"fleet: {len(waiting)} of {count} readers and actors are not ready after"
                    f" {timeout:.0f} s; is the machine, or the disk with the models, that busy?"
                    " Fewer placement.replicas start sooner"
                )

    def close(self) -> None:
        """End all actors and remove their placement groups.

        Readers that are under way end by themselves. In Ray 2.60 a task that is cancelled in the
        moment in which it is handed to a worker takes its driver with it ("tried to complete task
        that was not pending").
        """
        self.read.clear()
        ray.kill(self.dispatcher)
        for member in self.members:
            end(member)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def share(plan: Plan) -> dict[str, float]:
    """Resources that each shard requests from Ray."""
    return {"GPU": plan.gpus} if plan.device == "cuda" else {"CPU": 1.0}


def reserve(plan: Plan, name: str = "") -> PlacementGroup:
    """Placement group of one replica: one bundle for each shard, packed onto few nodes."""
    places = plan.places or ((),) * plan.shards
    return placement_group(
        [share(plan)] * plan.shards,
        strategy="PACK",
        name=name,
        bundle_label_selector=[selector(place, plan.labels) for place in places],
    )


def actors_of(members: Iterable[Member]) -> list[Any]:
    """The actors of these replicas; shards first."""
    members = list(members)
    shards = [shard for member in members for shard in member.shards]
    return [*shards, *(member.replica for member in members)]


def pids(members: Iterable[Member]) -> list[Any]:
    """References that are ready when these replicas hold their weights; shards first."""
    return [ready_of(actor) for actor in actors_of(members)]


def ready_of(actor: Any) -> Any:
    """A reference that is ready when an actor holds its weights, or fails if the actor dies."""
    return actor.pid.options(max_task_retries=0).remote()


class Rise:
    """An actor that is loading its weights; it may die of that a few times."""

    def __init__(self, actor: Any, need: str) -> None:
        """`need`: the memory that was counted, for messages."""
        self.actor = actor
        self.deaths = Deaths("a replica takes up its weights", need)
        # First, for an actor takes its calls in order.
        self.vitals = actor.vitals.options(max_task_retries=0).remote()
        self.ready = ready_of(actor)

    def again(self) -> None:
        """Ask again after a death; Ray restarts the actor.

        Raises:
            OutOfMemory, Died: that was once too often.
        """
        known: list[Vitals] = []
        with suppress(ray.exceptions.RayActorError):  # it died before it could say
            known = fetched(self.vitals)
        self.vitals = self.actor.vitals.options(max_task_retries=REVIVALS).remote()
        now = fetched(self.vitals)
        self.deaths.add(known, now, killed_by_ray(lost(known, now)))
        self.ready = ready_of(self.actor)


def needed(plan: Plan) -> str:
    """The memory that a plan counted, for messages."""
    largest = gigabytes(max(plan.shard_bytes, default=0))
    of = "shard" if plan.shards > 1 else "replica"
    return (
        f"{gigabytes(plan.total_bytes)} on the fullest node: {plan.replicas} replica(s), {largest}"
        f" each {of}, and {gigabytes(plan.store_bytes)} of weights and results"
    )


def end(member: Member) -> None:
    """Kill a replica's actors and remove its placement group."""
    for actor in (member.replica, *member.shards):
        ray.kill(actor)
    remove_placement_group(member.group)


def read(
    pool: Pool, names: tuple[str, ...], weights: str = "memory"
) -> tuple[tuple[str, ...], FlatVectors | FiledVectors | FactoredVectors]:
    """The experts' names, small enough to fetch (or to fail by), and a block's weights.

    Of weights that stay in files, those of the base.

    Raises:
        InputError: an expert that is not there on this node, or is refused.
    """
    node = ray.util.get_node_ip_address()
    for member in (pool.base, *pool.experts.values()):
        for file in member.fused_files:
            if not file.exists():
                raise InputError(f"{member.name}: {file}: missing on node {node}")
    if weights == "files":
        return pool.tasks, file_vectors(pool, only=names, node=node)
    if weights == "factored":
        return pool.tasks, factor_vectors(pool, only=names)
    return pool.tasks, load_flat(pool, only=names)
