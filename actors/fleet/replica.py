"""What runs in a fleet's actors: shards, and replicas over them. Ray calls them; `fleet.py` starts
them."""

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
from torch import Tensor

from actors.artifacts.head_file import read_head
from actors.artifacts.recipe import Recipe
from actors.cluster.metrics import timed
from actors.cluster.planner import Plan
from actors.data.task_rows import TaskData
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.evaluation import Evaluation
from actors.experts.local import LocalExperts
from actors.experts.model_runner import ModelRunner
from actors.experts.peak_memory import WATER
from actors.experts.recipe import results_dtype
from actors.files.cache_dir import cache_dir
from actors.fleet.file_transfer import Home, paths, settled
from actors.fleet.restarts import Living, Vitals, vitals
from actors.fleet.transport import GpuToGpu, Stored, choose, fetched, pack, unpack
from actors.pool.pool import FlatVectors, unflatten
from actors.pool.vectors_low_rank import FactoredVectors, opened_factors
from actors.pool.vectors_on_disk import FiledVectors, opened_vectors
from actors.shards.pipeline import Direct, Pipeline
from actors.shards.resident_model import Blueprint
from actors.shards.shard import Batch, Shard, Weights
from fusion.errors import InputError
from fusion.methods.learned.steps import Gradient, Lesson
from fusion.task_vectors.gram import Gram
from fusion.task_vectors.sparsify import Trim
from fusion.task_vectors.task_vectors import TaskVectors

log = logging.getLogger(__name__)

LANES = 2
"""Calls that a conductor takes at a time: one call's bubbles are another's work."""


@dataclass(frozen=True)
class Setup:
    """What an actor is built from, beside the weights."""

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
    heads = {name: read_head(task.head) for name, task in data.items()} if last else {}
    shard = Shard(
        replace(setup.base, tensors={**vectors.base, **setup.base.tensors}),
        vectors,
        heads,
        setup.plan.device,
        getattr(torch, setup.dtype),
        setup.plan.blocks[index],
        contexts=LANES * (setup.plan.shards - index),
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

    def survey(self, weights: Weights, answers: list[Tensor]) -> tuple[bool, Any]:
        """See `Shard.survey`."""
        return self.shard.survey(weights, answers)

    def merge(self, weights: Weights) -> dict[str, Tensor]:
        """See `Shard.merge`."""
        return {name: tensor.cpu() for name, tensor in self.shard.merge(weights).items()}

    def gram(self) -> Gram:
        """See `Shard.gram`."""
        return self.shard.gram()

    def run(self, carry: Any, weights: Weights) -> Any:
        """See `Shard.run`."""
        return pack(self.shard.run(unpack(carry), weights))

    def code(self, carry: Any, weights: Weights) -> Any:
        """See `Shard.code`."""
        return pack(self.shard.code(unpack(carry), weights))

    def forward(self, key: str, carry: Any, weights: Weights) -> Any:
        """See `Shard.forward`."""
        return pack(self.shard.forward(key, unpack(carry), weights))

    def backward(self, key: str, carry: Any, weights: Weights, gradient: Any) -> Any:
        """See `Shard.backward`."""
        return pack(self.shard.backward(key, unpack(carry), weights, unpack(gradient)))

    def finish(self, carry: Any, weights: Weights, batch: Batch) -> Any:
        """See `Shard.finish`."""
        return pack(self.shard.finish(unpack(carry), weights, batch))

    def gather(self, what: str, *args: Any) -> Any:
        """See `Shard.gather`."""
        return pack(self.shard.gather(what, *unpack(args)))

    def reside(self, what: str, *args: Any) -> Any:
        """See `Shard.reside`."""
        return pack(self.shard.reside(what, *unpack(args)))

    def keep(self, key: str, method: str, *args: Any) -> Any:
        """A call whose carry stays on the device; its other results wait for `kept`."""
        found = getattr(self.shard, method)(*args)
        if not isinstance(found, tuple):
            return found
        *small, carry = found
        self.results[key] = pack(tuple(small) if len(small) > 1 else small[0])
        return carry

    def kept(self, key: str) -> Any:
        """The small results of a `keep`, once."""
        return self.results.pop(key)

    def begin(self, name: str, first: bool) -> None:
        """See `HighWater.begin`: a call of the whole model begins."""
        WATER.begin(name, self.shard.device, first=first)

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
    def call(self, name: str, device: torch.device) -> Iterator[None]:
        """See `Water.call`."""
        with self.lock:
            for shard in self.shards:
                once(shard.begin).remote(name, not self.running)
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
    """`LocalExperts` in a process of its own: over a shard of its own, or as their conductor."""

    def __init__(self, given: bytes, weights: bytes | None, conducted: bytes = b"") -> None:
        """`given`: a pickled reference to a `Setup`; `weights`: to those of the whole model;
        None: the pickled shards `conducted` have them. Taken up by the first call, as a
        `ShardActor`'s."""
        self.given = given, weights, conducted
        self.making = threading.Lock()

    @property
    def experts(self) -> LocalExperts:
        """What does the work; of calls side by side, the first makes it."""
        with self.making:
            return self.made

    @cached_property
    def made(self) -> LocalExperts:
        """See `experts`."""
        given, weights, conducted = self.given
        known: Setup = opened(given)
        setup = known.here()
        if weights is not None:
            whole = build_shard(setup, weights, 0)
            pipeline = Pipeline([whole], [whole.names()], setup.groups, Direct())
            device, water = setup.plan.device, None
        else:
            shards: list[Any] = ray.cloudpickle.loads(conducted)
            names = ray.get([once(shard.names).remote() for shard in shards])
            link = choose(shards, setup.plan.device, setup.plan.gpus, setup.transport)
            pipeline = Pipeline(shards, names, setup.groups, link)
            device, water = "cpu", OfShards(shards)
        runner = ModelRunner(pipeline, setup.tasks, setup.data, setup.embeddings, device)
        return LocalExperts(runner, water or WATER)

    def evaluate(self, recipe: Recipe, role: str) -> Evaluation:
        """See `LocalExperts.evaluate`."""
        found: Evaluation = self.guarded(self.experts.evaluate, recipe, role)
        return found

    def measure(self, method: str, params: dict[str, Any], role: str) -> dict[str, Any]:
        """`evaluate` in plain types, for callers that do without torch."""
        return self.evaluate(Recipe(method, params), role).plain()

    def logits(self, recipe: Recipe, role: str) -> dict[str, Tensor]:
        """See `LocalExperts.logits`."""
        found: dict[str, Tensor] = self.guarded(self.experts.logits, recipe, role)
        return found

    def merge(self, recipe: Recipe) -> dict[str, Tensor]:
        """See `LocalExperts.merge`."""
        found: dict[str, Tensor] = self.guarded(self.experts.merge, recipe)
        return found

    def gradients(self, lessons: Sequence[Lesson], role: str, trim: Trim) -> list[Gradient]:
        """See `LocalExperts.gradients`."""
        found: list[Gradient] = self.guarded(self.experts.gradients, lessons, role, trim)
        return found

    def statistics(self, recipe: Recipe) -> tuple[str, ...]:
        """See `LocalExperts.statistics`."""
        found: tuple[str, ...] = self.guarded(self.experts.statistics, recipe)
        return found

    def train(
        self, recipe: Recipe, state: bytes | None, first: int, last: int, seed: int
    ) -> tuple[bytes, list[dict[str, float]]]:
        """See `LocalExperts.train`."""
        args = recipe, state, first, last, seed
        found: tuple[bytes, list[dict[str, float]]] = self.guarded(self.experts.train, *args)
        return found

    def gram(self) -> Gram:
        """See `LocalExperts.gram`."""
        found: Gram = self.guarded(self.experts.gram)
        return found

    def fit(self, recipe: Recipe) -> tuple[bytes, dict[str, float]]:
        """See `LocalExperts.fit`."""
        found: tuple[bytes, dict[str, float]] = self.guarded(self.experts.fit, recipe)
        return found

    def embed(self, expert: str, role: str) -> None:
        """See `LocalExperts.embed`."""
        self.guarded(self.experts.embed, expert, role)

    def guarded(self, call: Any, *args: Any) -> Any:
        """A call; where a direct transport broke down with a shard, again through the store.

        It breaks down in many ways (what a shard kept is gone, a peer hangs up), all but refusals.
        """
        link = self.experts.runner.pipeline.link  # another lane may change it meanwhile
        name, method = call.__name__, getattr(args[0] if args else None, "method", "")
        device = self.experts.runner.device
        try:
            with timed(name, method), self.experts.water.call(name, device):
                return call(*args)
        except InputError:
            raise
        except Exception as error:
            if not isinstance(link, GpuToGpu):
                raise
            log.warning("transport: object store from now on: %s", " ".join(str(error).split()))
            self.experts.runner.pipeline.link = Stored()
            return call(*args)

    def pid(self) -> int:
        """The process, once it holds its weights, or its shards do."""
        assert self.experts is not None
        return os.getpid()

    def vitals(self) -> list[Vitals]:
        """Of this process and of its shards'; nothing is loaded for it."""
        shards = ray.cloudpickle.loads(self.given[2]) if self.given[2] else []
        asked: list[list[Vitals]] = ray.get([shard.vitals.remote() for shard in shards])
        return [vitals(), *(each for found in asked for each in found)]
