"""What actors of a fleet are built from: settings, shards, experts in one process or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import torch

from actors.artifacts.head_file import open_head
from actors.cluster.peak_memory import PEAK_MEMORY, PeakMemory
from actors.cluster.planner import Plan
from actors.data.task_rows import TaskData
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import LocalExperts
from actors.experts.model_runner import EXACT, ModelRunner, Precisions
from actors.experts.recipe import results_dtype
from actors.files.cache_dir import cache_dir
from actors.fleet.file_transfer import Home, paths, with_local_files
from actors.fleet.transport import choose, fetched
from actors.pool.pool import FlatVectors, unflatten
from actors.pool.running import NO_BATCH_NORM, BatchNorm
from actors.pool.vectors_low_rank import FactoredVectors, opened_factors
from actors.pool.vectors_on_disk import OnDiskVectors, opened_vectors
from actors.shards.pipeline import LocalLink, Pipeline
from actors.shards.resident_model import Blueprint
from actors.shards.shard import Shard
from fusion.task_vectors.task_vectors import TaskVectors

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
    references: Mapping[str, str | None] = field(default_factory=dict)
    """Finished model -> the member of the pool that it is; None: of none."""
    loaded: tuple[bytes, ...] = ()
    """Block -> pickled reference to the weights of those models; empty: there are none."""
    precisions: Precisions = EXACT
    """Precision of products of activations."""
    stacked: int = 0
    """Most rows in one pass of several tasks' models, see `steps.stacked_rows`."""
    norms: BatchNorm = NO_BATCH_NORM
    """Running statistics of batch norm."""

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
        references={
            name: unflatten(flat).base
            for name, flat in (opened(setup.loaded[index]) if setup.loaded else {}).items()
        },
    )
    cache = setup.embeddings.root.parent  # the driver's; if this node lacks it, its own
    shard.statistics_root = cache if cache.is_dir() else None
    return shard


class ShardsPeakMemory(PeakMemory):
    """Peak memory of calls to a sharded model: the largest peak of one of its shards.

    Only `peak` waits for the shards; they keep the peak of training calls until then.
    """

    def __init__(self, shards: Sequence[Any]) -> None:
        """`shards`: actors of the shards."""
        super().__init__()
        self.shards = list(shards)

    def begin(self, learns: bool, device: torch.device, *, first: bool) -> None:
        """See `PeakMemory.begin`; each shard notes it."""
        for shard in self.shards:
            once(shard.begin).remote(learns, first)

    def peak(self, device: torch.device, method: str) -> int:
        """See `MemoryMeter.peak`."""
        asked = [once(shard.peak).remote(method) for shard in self.shards]
        return max(int(each) for each in fetched(asked))


def build_experts(given: bytes, weights: bytes | None, coordinated: bytes) -> LocalExperts:
    """The experts of a replica; the arguments are those of `Replica`."""
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
    runner = ModelRunner(
        pipeline,
        setup.tasks,
        setup.data,
        setup.embeddings,
        device,
        setup.references,
        setup.precisions,
        setup.stacked,
        setup.norms,
    )
    return LocalExperts(runner, meter or PEAK_MEMORY)
