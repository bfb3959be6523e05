"""Actors of a fleet: shards, and replicas over them. `fleet.py` starts them."""

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
from actors.cluster.planner import Plan
from actors.data.task_rows import TaskData
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import LocalExperts
from actors.experts.model_runner import ModelRunner
from actors.experts.peak_memory import WATER
from actors.experts.recipe import results_dtype
from actors.experts.requests import Request, Result
from actors.files.cache_dir import cache_dir
from actors.fleet.file_transfer import Home, paths, settled
from actors.fleet.restarts import Living, Vitals, vitals
from actors.fleet.transport import GpuToGpu, Stored, choose, fetched, pack, unpack
from actors.pool.pool import FlatVectors, unflatten
from actors.pool.vectors_low_rank import FactoredVectors, opened_factors
from actors.pool.vectors_on_disk import FiledVectors, opened_vectors
from actors.shards.pipeline import Direct, Pipeline
from actors.shards.requests import ShardRequest
from actors.shards.resident_model import Blueprint
from actors.shards.shard import Shard
from fusion.errors import InputError
from fusion.task_vectors.task_vectors import TaskVectors

log = logging.getLogger(__name__)

SLOTS = 2
"""Calls that a coordinator takes at a time: one call's bubbles are another's work."""


@dataclass(frozen=True)
class Setup:
    """What an actor is built from, apart from the weights."""

    base: Blueprint
    """With the weights that are not fused; the others come with the task vectors."""
    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    plan: Plan
    dtype: str
    data: Mapping[str, TaskData]
    embeddings: EmbeddingCache
    transport: str = "store"
    """`store`, or `direct` where it can be had."""
    results: str = "base"
    """What merged models are rounded to: `base` or `float32`."""
    home: Home | None = None
    """Whose paths those of `data` and `embeddings` are; None: every node's."""

    def here(self) -> Setup:
        """The same with paths of this node, after what it lacks was fetched.

        Where it lacked nothing (a shared file system), expert embeddings are shared as well;
        elsewhere each node keeps its own.

        Raises:
            InputError: see `settled`.
        """
        data = settled(self.data, self.home)
        if paths(data) == paths(self.data):
            return self
        return replace(
            self, data=data, embeddings=replace(self.embeddings, root=cache_dir() / "embeddings")
        )


def opened(reference: bytes) -> Any:
    """What a pickled object reference stands for.

    The fleet keeps what it stands for alive. As an argument proper the reference would be the
    actor's own, and Ray warns of each that a restart may not find it.
    """
    return ray.get(ray.cloudpickle.loads(reference))


def vectors_of(weights: FlatVectors | FiledVectors | FactoredVectors, device: str) -> TaskVectors:
    """Views of the object store, of task vectors or their factors; or such as are made from files.

    Raises:
        InputError: files that this node does not see, or that are not what they were.
    """
    if isinstance(weights, FiledVectors):
        return opened_vectors(weights, device, ray.util.get_node_ip_address())
    if isinstance(weights, FactoredVectors):
        return opened_factors(weights, device)
    return unflatten(weights, device)


def once(call: Any) -> Any:
    """A shard's method; where the shard dies of it, whoever made the whole call counts that."""
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
    kinds = [kind for kind, read in (("pixels", index == 0), ("heads", last)) if read]
    data = settled(setup.data, setup.home, kinds)
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
    cache = setup.embeddings.root.parent  # the driver's; where this node has none, its own
    shard.statistics_root = cache if cache.is_dir() else None
    return shard


class ShardActor(Living):
    """`Shard` in a process of its own; carries come and go as its link sends them."""

    def __init__(self, setup: bytes, weights: bytes, index: int) -> None:
        """`setup`, `weights`: pickled references to a `Setup` and a block's weights.

        The first call loads them. If loading kills the process, that call fails and is counted. Ray
        would restart an actor that dies in its constructor again and again, without a message.
        """
        self.given = setup, weights, index
        self.results: dict[str, Any] = {}

    @cached_property
    def shard(self) -> Shard:
        """What does the work. (A call at a time: nobody else asks for it meanwhile.)"""
        setup, weights, index = self.given
        return build_shard(opened(setup), weights, index)

    def names(self) -> tuple[str, ...]:
        """See `Shard.names`."""
        return self.shard.names()

    def call(self, request: ShardRequest, *given: Any) -> Any:
        """The result of a request, packed for the object store."""
        return pack(request.run(self.shard, *unpack(given)))

    def keep(self, key: str, request: ShardRequest, *given: Any) -> Any:
        """A request whose carry stays on the device; its other results wait for `kept`."""
        found = request.run(self.shard, *given)
        if not isinstance(found, tuple):
            return found
        *small, carry = found
        self.results[key] = pack(tuple(small) if len(small) > 1 else small[0])
        return carry

    def kept(self, key: str) -> Any:
        """The small results of a `keep`, once."""
        return self.results.pop(key)

    def begin(self, learns: bool, first: bool) -> None:
        """See `HighWater.begin`: a call of the whole model begins."""
        WATER.begin(learns, self.shard.device, first=first)

    def told(self, method: str) -> int:
        """See `HighWater.told`."""
        return WATER.told(self.shard.device, method)

    def pid(self) -> int:
        """The process, once it holds its weights."""
        assert self.shard is not None
        return os.getpid()


class OfShards:
    """Peak memory of calls to a model that is cut: the most that one of its shards held.

    No answer is awaited but that of `told`: a shard keeps what teaching held until then.
    """

    def __init__(self, shards: Sequence[Any]) -> None:
        """`shards`: their actors."""
        self.shards = list(shards)
        self.lock = threading.Lock()
        self.running = 0

    @contextmanager
    def call(self, learns: bool, device: torch.device) -> Iterator[None]:
        """See `Water.call`."""
        with self.lock:
            for shard in self.shards:
                once(shard.begin).remote(learns, not self.running)
            self.running += 1
        try:
            yield
        finally:
            with self.lock:
                self.running -= 1

    def told(self, device: torch.device, method: str) -> int:
        """See `Water.told`."""
        asked = [once(shard.told).remote(method) for shard in self.shards]
        return max(int(each) for each in fetched(asked))


class Replica:
    """`LocalExperts` in a process of its own: over a shard of its own, or as their coordinator."""

    def __init__(self, given: bytes, weights: bytes | None, coordinated: bytes = b"") -> None:
        """`given`: a pickled reference to a `Setup`; `weights`: to those of the whole model;
        None: the pickled shards `coordinated` have them. Taken up by the first call, as a
        `ShardActor`'s."""
        self.given = given, weights, coordinated
        self.making = threading.Lock()

    @property
    def experts(self) -> LocalExperts:
        """What does the work; of calls side by side, the first makes it."""
        with self.making:
            return self.made

    @cached_property
    def made(self) -> LocalExperts:
        """See `experts`."""
        given, weights, coordinated = self.given
        known: Setup = opened(given)
        setup = known.here()
        if weights is not None:
            whole = build_shard(setup, weights, 0)
            pipeline = Pipeline([whole], [whole.names()], setup.groups, Direct())
            device, water = setup.plan.device, None
        else:
            shards: list[Any] = ray.cloudpickle.loads(coordinated)
            names = ray.get([once(shard.names).remote() for shard in shards])
            link = choose(shards, setup.plan.device, setup.plan.gpus, setup.transport)
            pipeline = Pipeline(shards, names, setup.groups, link)
            device, water = "cpu", OfShards(shards)
        runner = ModelRunner(pipeline, setup.tasks, setup.data, setup.embeddings, device)
        return LocalExperts(runner, water or WATER)

    def call(self, request: Request[Result]) -> Result:
        """Run a request; where a direct transport fails with a shard, again through the store.

        A direct transport fails in many ways (what a shard kept is gone, a peer hangs up): every
        error but an `InputError` counts as one.
        """
        experts = self.experts
        link = experts.runner.pipeline.link  # another call may change it meanwhile
        device = experts.runner.device
        try:
            with (
                timed(request.metric_name, request.method),
                experts.water.call(request.learns, device),
            ):
                return request.run(experts)
        except InputError:
            raise
        except Exception as error:
            if not isinstance(link, GpuToGpu):
                raise
            log.warning("transport: object store from now on: %s", " ".join(str(error).split()))
            experts.runner.pipeline.link = Stored()
            return request.run(experts)

    def pid(self) -> int:
        """The process, once it holds its weights, or its shards do."""
        assert self.experts is not None
        return os.getpid()

    def vitals(self) -> list[Vitals]:
        """Of this process and of its shards'; nothing is loaded for it."""
        shards = ray.cloudpickle.loads(self.given[2]) if self.given[2] else []
        asked: list[list[Vitals]] = ray.get([shard.vitals.remote() for shard in shards])
        return [vitals(), *(each for found in asked for each in found)]
