"""Experts in this process: what a replica is, without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from actors.data.task_rows import TaskData
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import LocalExperts
from actors.experts.recipe import results_dtype
from actors.families.clip.segments import clip_segments, segment_names
from actors.families.clip.zero_shot_heads import read_head
from actors.pool.pool import Pool, load_flat, unflatten
from actors.shards.pipeline import Direct, Pipeline
from actors.shards.shard import Shard
from fusion.task_vectors.task_vectors import TaskVectors


def local_experts(
    pool: Pool,
    data: Mapping[str, TaskData],
    embeddings: EmbeddingCache,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    blocks: Sequence[tuple[int, int] | None] = (None,),
    vectors: TaskVectors | None = None,
    results: str = "base",
) -> LocalExperts:
    """Load a pool and build its shards here.

    Args:
        pool: an opened pool.
        data: of each task.
        embeddings: cache of expert embeddings.
        device: where to compute.
        dtype: what to compute in.
        blocks: segments [start, stop) of each shard; None: one shard with all.
        vectors: the pool's task vectors, where they are loaded already: on `device`.
        results: `base` or `float32`: what merged models are rounded to.

    Raises:
        InputError: see `load_flat`.
    """
    vectors = unflatten(load_flat(pool), device) if vectors is None else vectors
    vectors = replace(vectors, results=results_dtype(results))
    chain = clip_segments(pool.base)
    heads = {name: read_head(task.head) for name, task in data.items()}
    shards = []
    for block in blocks:
        names = segment_names(chain, *(block or (0, len(chain))))
        part = vectors.restrict([name for name in vectors.base if name in names])
        shards.append(Shard(pool.base, part, heads, device, dtype, block, len(blocks)))
        shards[-1].statistics_root = embeddings.root.parent
    names_of = [shard.names() for shard in shards]
    return LocalExperts(
        Pipeline(shards, names_of, pool.groups, Direct()), pool.tasks, data, embeddings, device
    )
