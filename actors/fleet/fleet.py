"""Fleet: the replicas of a sweep on a Ray cluster, with one copy of the weights on each node.

Only this file of the package starts actors; their work is in `LocalExperts` and `Shard`.

A *replica* is one whole model: one process, or a coordinator of several *shards*, each in its own
process. Base and task vectors are read-only views of the node's object store, or task vectors are
computed from the experts' files when they are read (`vectors_on_disk.py`). The *dispatcher* sends
each call to the next free replica; callers (trials) hold only a handle of the dispatcher. A call
carries all its arguments, so an actor that dies is restarted and its call repeated, with the same
bits. The dispatcher counts these repetitions.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from actors.checkpoints.checkpoint import Checkpoint
from actors.cluster.actor_names import actor_name
from actors.cluster.fatal import OutOfMemory
from actors.cluster.node_labels import selector
from actors.cluster.partition import gigabytes
from actors.cluster.planner import Plan
from actors.cluster.worker_deaths import is_death
from actors.data.task_rows import TaskData
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.model_runner import EXACT, Precisions
from actors.families.protocol import segment_names
from actors.fleet.client import Client
from actors.fleet.dispatcher import PATIENCE, STATE_RETRIES, Dispatcher, Slot, lost
from actors.fleet.errors import Unplaced, placed, shortage
from actors.fleet.file_transfer import home
from actors.fleet.replica import Replica, ShardActor
from actors.fleet.replica_setup import SLOTS, Setup
from actors.fleet.restarts import Deaths, ProcessState, killed_by_ray
from actors.fleet.transport import fetched
from actors.pool.pool import FlatVectors, Pool, load_flat
from actors.pool.reference_models import load_references
from actors.pool.running import Policy, batch_norm
from actors.pool.vectors_low_rank import FactoredVectors, factor_vectors
from actors.pool.vectors_on_disk import OnDiskVectors, file_vectors
from actors.shards.resident_model import blueprint
from fusion.errors import InputError

RESTARTS = 50
"""Restarts of an actor in all; the dispatcher limits those of a single call. A restart is cheap:
the first call loads the weights."""

RETRIES = 20
"""Retries of a call to the dispatcher, which keeps no state, after it died. Calls to a dead node
fail repeatedly until the cluster has noticed its death."""

READS = 2
"""Retries of a task that reads a block of weights, after its process died."""

ROBUST = {"max_restarts": RESTARTS, "max_task_retries": RETRIES}


@dataclass(frozen=True)
class Member:
    """One replica of a fleet and its actors."""

    number: int
    replica: Any
    shards: tuple[Any, ...]
    group: PlacementGroup


@dataclass(frozen=True)
class FleetOptions:
    """Settings of a fleet beside its models, data and plan."""

    dtype: str = "float32"
    """dtype to compute in."""
    transport: str = "store"
    """Transport of activations between shards; see `transport.choose`."""
    weights: str = "memory"
    """`memory`: task vectors are in the object store. `factored`: only LoRA factors are. `files`:
    each replica opens the experts' files, which its node must see."""
    results: str = "base"
    """`base` or `float32`: dtype that merged models are rounded to."""
    precisions: Precisions = EXACT
    """Precision of products of activations."""
    batch_norm: Policy = "reestimate"
    """How the running statistics of batch norm of merged models are made."""
    readers: Sequence[str] = ()
    """Ids of nodes that see the checkpoints: they read the blocks of weights in turn, and other
    nodes fetch them from there. Empty: Ray chooses."""
    sweep: str = ""
    """Name of the sweep, for the names of actors; only one fleet at a time may have it."""
    patience: float = PATIENCE
    """Seconds that a call waits where no replica has a place."""


class Fleet:
    """The replicas of one sweep; a context manager that leaves no actor behind."""

    def __init__(
        self,
        pool: Pool,
        data: Mapping[str, TaskData],
        embeddings: EmbeddingCache,
        plan: Plan,
        options: FleetOptions | None = None,
    ) -> None:
        """Start all actors, without waiting for them.

        Args:
            pool: the models.
            data: rows and head of each task.
            embeddings: cache of expert embeddings.
            plan: numbers of replicas and shards, and their places.
            options: other settings; None: `FleetOptions()`.
        """
        options = options or FleetOptions()
        base = blueprint(pool.base, pool.names)
        blocks = [segment_names(base.chain, *block) for block in plan.blocks]
        # One task reads each block, so that the weights never pass through the driver.
        self.read: list[Any] = []
        self.flat: list[Any] = []
        self.models: list[Any] = []
        same = pool.members_of
        for index, names in enumerate(blocks):
            self.flat.append(self.reading(read_block, "experts", index, options, pool, names))
            if None in same.values():
                given = read_references, "references", index, options, pool, names
                self.models.append(self.reading(*given))
        self.known = Setup(
            base,
            pool.tasks,
            pool.groups,
            plan,
            options.dtype,
            data,
            embeddings,
            options.transport,
            options.results,
            home(),
            same,
            tuple(ray.cloudpickle.dumps(each) for each in self.models),
            options.precisions,
            pool.stacked_rows(plan.device, options.dtype) if plan.stacked else 0,
            batch_norm(pool, options.batch_norm),
        )
        self.plan, self.sweep = plan, options.sweep
        self.setup = ray.put(self.known)
        self.numbers = itertools.count()
        self.members: list[Member] = []
        for _ in range(plan.replicas):
            self.start()
        dispatcher = ray.remote(Dispatcher).options(
            num_cpus=0, max_concurrency=1000, **self.name(), **ROBUST
        )
        slots = [slot for member in self.members for slot in self.slots(member)]
        self.dispatcher = dispatcher.remote(
            ray.cloudpickle.dumps(slots), options.patience, needed(plan)
        )
        self.client = Client(self.dispatcher, plan.replicas)

    def reading(
        self,
        reader: Callable[..., Any],
        what: str,
        index: int,
        options: FleetOptions,
        pool: Pool,
        names: tuple[str, ...],
    ) -> Any:
        """A reference to one block of weights, which a Ray task reads."""
        placed: dict[str, Any] = {}
        if options.readers:
            placed["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                options.readers[index % len(options.readers)], soft=True
            )
        task = ray.remote(reader).options(
            num_returns=2,
            name=f"read {what}: block {index}",
            num_cpus=0,
            max_retries=READS,
            **placed,
        )
        done, flat = task.remote(pool, names, options.weights)
        self.read.append(done)
        return flat

    @property
    def replicas(self) -> list[Any]:
        """The actor of each replica."""
        return [member.replica for member in self.members]

    @property
    def shards(self) -> list[Any]:
        """The actors of all shards; empty if each replica is one process."""
        return [shard for member in self.members for shard in member.shards]

    @property
    def groups(self) -> list[PlacementGroup]:
        """The placement group of each replica."""
        return [member.group for member in self.members]

    def start(self) -> Member:
        """Start one more replica, in a placement group with one bundle for each shard."""
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
            # An argument of the class: Ray accepts it in `options` but ignores it there.
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
        """Option with the name of an actor; empty if the sweep has no name."""
        return {"name": actor_name(self.sweep, replica, shard)} if self.sweep else {}

    def slots(self, member: Member) -> list[Slot]:
        """Slots of a replica: one for each call that it runs at the same time."""
        count = SLOTS if member.shards else 1
        return [Slot(member.number, member.replica, member.group) for _ in range(count)]

    def set_replicas(self, members: Sequence[Member], coming: Sequence[Member] = ()) -> None:
        """Set the replicas that take calls from now on.

        Args:
            members: replicas that are ready.
            coming: replicas that are starting. All others are ended, and their calls are repeated
                by other replicas.
        """
        slots = [slot for member in members for slot in self.slots(member)]
        ray.get(self.dispatcher.set_replicas.remote(ray.cloudpickle.dumps(slots)))
        kept = {member.number: member for member in (*members, *coming)}
        for member in self.members:
            if member.number not in kept:
                end(member)
        self.members = list(kept.values())

    def ready(self, timeout: float = 600.0) -> None:
        """Wait until every actor holds its weights.

        Raises:
            InputError: an actor refused its input (for weights, the message names tensor and
                file), an actor or reader died too often, or they are not ready in time.
            Unplaced: the cluster has no room for the replicas.
        """
        deadline = time.monotonic() + timeout
        actors = [LoadingActor(actor, needed(self.plan)) for actor in actors_of(self.members)]
        loading = {actor.ready: actor for actor in actors}
        waiting = [*self.read, *loading]  # readers first: actors wait for them
        count = len(waiting)
        while waiting:
            done, waiting = ray.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
            for ref in done:
                try:
                    fetched(ref)
                except Exception as error:
                    if not is_death(error):
                        raise
                    if ref not in loading:
                        raise OutOfMemory(
                            f"fleet: a reader of weights died {READS + 1} times, for want of"
                            f" memory most likely; planned: {needed(self.plan)}; set"
                            " placement.weights: files, or grant more memory"
                        ) from error
                    actor = loading.pop(ref)
                    actor.retry()
                    loading[actor.ready] = actor
                    waiting.append(actor.ready)
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

        Running readers end by themselves. In Ray 2.60, cancelling a task at the moment when it is
        handed to a worker ends the driver ("tried to complete task that was not pending").
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


def weights_ready(members: Iterable[Member]) -> list[Any]:
    """References that are ready when these replicas hold their weights; shards first."""
    return [ready_of(actor) for actor in actors_of(members)]


def ready_of(actor: Any) -> Any:
    """A reference that is ready when an actor holds its weights, or fails if the actor dies."""
    return actor.pid.options(max_task_retries=0).remote()


class LoadingActor:
    """An actor that is loading its weights, which may kill its process a few times."""

    def __init__(self, actor: Any, need: str) -> None:
        """`need`: the memory that the plan counted for a replica, for messages."""
        self.actor = actor
        self.deaths = Deaths("a replica takes up its weights", need)
        # Submitted first: an actor runs its calls in order.
        self.states = actor.states.options(max_task_retries=0).remote()
        self.ready = ready_of(actor)

    def retry(self) -> None:
        """Wait again after a death; Ray restarts the actor.

        Raises:
            OutOfMemory, Died: the actor died too often.
        """
        known: list[ProcessState] = []
        with suppress(ray.exceptions.RayActorError):  # it died before it answered
            known = fetched(self.states)
        self.states = self.actor.states.options(max_task_retries=STATE_RETRIES).remote()
        now = fetched(self.states)
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


def read_block(
    pool: Pool, names: tuple[str, ...], weights: str = "memory"
) -> tuple[tuple[str, ...], FlatVectors | OnDiskVectors | FactoredVectors]:
    """Read one block of weights; runs as a Ray task.

    Returns:
        The experts' names, which the driver fetches to see errors, and the block's weights. If
        weights stay in files, only those of the base are read.

    Raises:
        InputError: an expert is missing on this node, or is refused.
    """
    node = check_there((pool.base, *pool.experts.values()))
    if weights == "files":
        return pool.tasks, file_vectors(pool, only=names, node=node)
    if weights == "factored":
        return pool.tasks, factor_vectors(pool, only=names)
    return pool.tasks, load_flat(pool, only=names)


def read_references(
    pool: Pool, names: tuple[str, ...], weights: str = "memory"
) -> tuple[tuple[str, ...], dict[str, FlatVectors]]:
    """Read one block of the references that are no member of the pool; runs as a Ray task.

    Wherever task vectors are held (`weights`), references are in the object store.

    Raises:
        InputError: a reference is missing on this node, or is refused.
    """
    check_there((pool.base, *pool.references.values()))
    return tuple(pool.references), load_references(pool, only=names)


def check_there(members: Iterable[Checkpoint]) -> str:
    """Address of this node.

    Raises:
        InputError: it lacks a file of one of these models.
    """
    node: str = ray.util.get_node_ip_address()
    for member in members:
        for file in member.fused_files:
            if not file.exists():
                raise InputError(f"{member.name}: {file}: missing on node {node}")
    return node
