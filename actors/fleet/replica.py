"""Actors of a fleet: shards, and replicas that coordinate them. `fleet.py` starts them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import ray
import torch

from actors.artifacts.head_file import open_head
from actors.cluster.metrics import timed
from actors.cluster.peak_memory import PEAK_MEMORY
from actors.cluster.planner import Plan
from actors.data.task_rows import TaskData
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import LocalExperts
from actors.experts.model_runner import ModelRunner
from actors.experts.recipe import results_dtype
from actors.experts.requests import Request, Result
from actors.files.cache_dir import cache_dir
from actors.fleet.file_transfer import Home, paths, with_local_files
from actors.fleet.restarts import ProcessState, StateReporter, own_state
from actors.fleet.transport import GpuLink, ObjectStoreLink, choose, fetched, pack, unpack
from actors.pool.pool import FlatVectors, unflatten
from actors.pool.vectors_low_rank import FactoredVectors, opened_factors
from actors.pool.vectors_on_disk import OnDiskVectors, opened_vectors
from actors.shards.pipeline import LocalLink, Pipeline
from actors.shards.requests import ShardRequest
from actors.shards.resident_model import Blueprint
from actors.shards.shard import Shard
from fusion.errors import InputError
from fusion.task_vectors.task_vectors import TaskVectors

log = logging.getLogger(__name__)

SLOTS = 2
"""Calls that a coordinator runs at the same time: one fills the pipeline bubbles of the other."""


@dataclass(frozen=True)
class Setup:
    """Everything that an actor is built from, except the weights."""

    base: Blueprint
    """Holds the weights that are not fused; the others come with the task vectors."""
    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    plan: Plan
    dtype: str
    data: Mapping[str, TaskData]
    embeddings: EmbeddingCache
    transport: str = "store"
    """`store`, or `direct` if it is available."""
    results: str = "base"
    """dtype that merged models are rounded to: `base` or `float32`."""
    home: Home | None = None
    """Node on which the paths of `data` and `embeddings` are valid; None: on every node."""

    def here(self) -> Setup:
        """The same with paths of this node; fetches the files that it lacks.

        If it lacks none (a shared file system), expert embeddings are shared too; otherwise each
        node keeps its own.

        Raises:
            InputError: see `with_local_files`.
        """
        data = with_local_files(self.data, self.home)
        if paths(data) == paths(self.data):
            return self
        return replace(
            self, data=data, embeddings=replace(self.embeddings, root=cache_dir() / "embeddings")
        )


def opened(reference: bytes) -> Any:
    """The object of a pickled reference.

    The fleet keeps the object alive. A plain reference as an argument would be owned by the actor,
    and Ray would warn that a restart may not find it.
    """
    return ray.get(ray.cloudpickle.loads(reference))


def vectors_of(weights: FlatVectors | OnDiskVectors | FactoredVectors, device: str) -> TaskVectors:
    """Task vectors as views of the object store (dense or factors), or computed from files.

    Raises:
        InputError: files that this node does not see, or that have changed.
    """
    if isinstance(weights, OnDiskVectors):
        return opened_vectors(weights, device, ray.util.get_node_ip_address())
    if isinstance(weights, FactoredVectors):
        return opened_factors(weights, device)
    return unflatten(weights, device)


def once(call: Any) -> Any:
    """A shard's method without Ray's retries: the dispatcher repeats the whole call instead."""
    return call.options(max_task_retries=0)


def build_shard(setup: Setup, weights: bytes, index: int) -> Shard:
    """One shard of the plan, from a pickled reference to its weights."""
    torch.set_num_threads(setup.plan.threads)
    vectors = replace(
        vectors_of(opened(weights), setup.plan.device),
        groups=setup.groups,
        results=results_dtype(setup.results),
    )
    last = index == setup.plan.shards - 1
    kinds = [kind for kind, read in (("rows", index == 0), ("heads", last)) if read]
    data = with_local_files(setup.data, setup.home, kinds)
    heads = {name: open_head(task.head) for name, task in data.items()} if last else {}
    shard = Shard(
        replace(setup.base, tensors={**vectors.base, **setup.base.tensors}),
        vectors,
        heads,
        setup.plan.device,
        getattr(torch, setup.dtype),
        setup.plan.blocks[index],
        contexts=SLOTS * (setup.plan.shards - index),
        places={path.name: path for path in paths(data)},
    )
    cache = setup.embeddings.root.parent  # the driver's; if this node lacks it, its own
    shard.statistics_root = cache if cache.is_dir() else None
    return shard


class ShardActor(StateReporter):
    """`Shard` in its own process; receives and returns activations in the form of its link."""

    def __init__(self, setup: bytes, weights: bytes, index: int) -> None:
        """`setup`, `weights`: pickled references to a `Setup` and a block's weights.

        The first call loads them. If loading kills the process, that call fails and is counted. Ray
        would restart an actor that dies in its constructor again and again, without a message.
        """
        self.given = setup, weights, index
        self.results: dict[str, Any] = {}

    @cached_property
    def shard(self) -> Shard:
        """The shard; built by the first call (the actor runs one call at a time)."""
        setup, weights, index = self.given
        return build_shard(opened(setup), weights, index)

    def names(self) -> tuple[str, ...]:
        """See `Shard.names`."""
        return self.shard.names()

    def call(self, request: ShardRequest, *given: Any) -> Any:
        """Run a request, and pack its result for the object store."""
        return pack(request.run(self.shard, *unpack(given)))

    def keep(self, key: str, request: ShardRequest, *given: Any) -> Any:
        """Run a request; its activations stay on the device, other results wait for `kept`."""
        found = request.run(self.shard, *given)
        if not isinstance(found, tuple):
            return found
        *small, activations = found
        self.results[key] = pack(tuple(small) if len(small) > 1 else small[0])
        return activations

    def kept(self, key: str) -> Any:
        """The other results of a `keep`, which are then dropped."""
        return self.results.pop(key)

    def begin(self, learns: bool, first: bool) -> None:
        """A call of the whole model begins; see `PeakMemory.begin`."""
        PEAK_MEMORY.begin(learns, self.shard.device, first=first)

    def peak(self, method: str) -> int:
        """See `PeakMemory.peak`."""
        return PEAK_MEMORY.peak(self.shard.device, method)

    def pid(self) -> int:
        """Process id, once it holds its weights."""
        assert self.shard is not None
        return os.getpid()


class ShardsPeakMemory:
    """Peak memory of calls to a sharded model: the largest peak of one of its shards.

    Only `peak` waits for the shards; they keep the peak of training calls until then.
    """

    def __init__(self, shards: Sequence[Any]) -> None:
        """`shards`: actors of the shards."""
        self.shards = list(shards)
        self.lock = threading.Lock()
        self.running = 0

    @contextmanager
    def call(self, learns: bool, device: torch.device) -> Iterator[None]:
        """See `MemoryMeter.call`."""
        with self.lock:
            for shard in self.shards:
                once(shard.begin).remote(learns, not self.running)
            self.running += 1
        try:
            yield
        finally:
            with self.lock:
                self.running -= 1

    def peak(self, device: torch.device, method: str) -> int:
        """See `MemoryMeter.peak`."""
        asked = [once(shard.peak).remote(method) for shard in self.shards]
        return max(int(each) for each in fetched(asked))


class Replica:
    """`LocalExperts` in its own process, with one shard inside or as the coordinator of several."""

    def __init__(self, given: bytes, weights: bytes | None, coordinated: bytes = b"") -> None:
        """Keep the arguments; the first call loads the weights, as in `ShardActor`.

        Args:
            given: pickled reference to a `Setup`.
            weights: pickled reference to the weights of the whole model; None: they are in the
                shards.
            coordinated: pickled actors of the shards.
        """
        self.given = given, weights, coordinated
        self.making = threading.Lock()

    @property
    def experts(self) -> LocalExperts:
        """The experts; built by the first of several concurrent calls."""
        with self.making:
            return self.made

    @cached_property
    def made(self) -> LocalExperts:
        """Built once; use `experts`, which holds the lock."""
        given, weights, coordinated = self.given
        known: Setup = opened(given)
        setup = known.here()
        if weights is not None:
            whole = build_shard(setup, weights, 0)
            pipeline = Pipeline([whole], [whole.names()], setup.groups, LocalLink())
            device, meter = setup.plan.device, None
        else:
            shards: list[Any] = ray.cloudpickle.loads(coordinated)
            names = ray.get([once(shard.names).remote() for shard in shards])
            link = choose(shards, setup.plan.device, setup.plan.gpus, setup.transport)
            pipeline = Pipeline(shards, names, setup.groups, link)
            device, meter = "cpu", ShardsPeakMemory(shards)
        runner = ModelRunner(pipeline, setup.tasks, setup.data, setup.embeddings, device)
        return LocalExperts(runner, meter or PEAK_MEMORY)

    def call(self, request: Request[Result]) -> Result:
        """Run a request; if the direct transport fails, run it again through the object store.

        A direct transport can fail in many ways (a shard lost its kept results, a peer closed the
        connection), so every error except `InputError` counts as such a failure.
        """
        experts = self.experts
        link = experts.runner.pipeline.link  # another call may change it meanwhile
        device = experts.runner.device
        try:
            with (
                timed(request.metric_name, request.method),
                experts.meter.call(request.learns, device),
            ):
                return request.run(experts)
        except InputError:
            raise
        except Exception as error:
            if not isinstance(link, GpuLink):
                raise
            log.warning("transport: object store from now on: %s", " ".join(str(error).split()))
            experts.runner.pipeline.link = ObjectStoreLink()
            return request.run(experts)

    def pid(self) -> int:
        """Process id, once this process or its shards hold the weights."""
        assert self.experts is not None
        return os.getpid()

    def states(self) -> list[ProcessState]:
        """States of this process and of its shards' processes; does not load the weights."""
        shards = ray.cloudpickle.loads(self.given[2]) if self.given[2] else []
        asked: list[list[ProcessState]] = ray.get([shard.states.remote() for shard in shards])
        return [own_state(), *(each for found in asked for each in found)]
