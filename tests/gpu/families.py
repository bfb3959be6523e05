"""Small pools of every family on disk, opened on the CPU in float64 and on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from actors.data.task import Splits, TaskSource, open_task
from actors.data.task_rows import TaskData
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import LocalExperts, local_experts
from actors.experts.prepare_data import prepare_data
from actors.pool.pool import Pool, open_pool, task_vectors
from fusion.methods.learned.steps import MicroBatch
from tests import tiny_bert
from tests.actors.families.t5 import models as tiny_t5
from tests.gpu.places import Place, doubled

ROLE = "report"
ROWS = 6
"""Rows of a task in a pass."""


@dataclass(frozen=True)
class World:
    """A pool and its data."""

    pool: Pool
    data: Mapping[str, TaskData]
    root: Path

    def experts(
        self, place: Place, dtype: torch.dtype = torch.float32, **given: Any
    ) -> LocalExperts:
        """Its models on a device; `given`: see `local_experts`."""
        vectors = task_vectors(self.pool)
        vectors = doubled(vectors) if dtype == torch.float64 else place.vectors(vectors)
        names = {name: name for name in (*self.pool.tasks, "pretrained")}
        cut = len(given.get("blocks", (None,)))
        kept = EmbeddingCache(self.root / f"{place.kind} {dtype} {cut}", names)
        return local_experts(
            self.pool, self.data, kept, device=place.device, dtype=dtype, vectors=vectors, **given
        )

    @cached_property
    def exact(self) -> LocalExperts:
        """In float64 on the CPU."""
        return self.experts(Place("cpu"), torch.float64)

    def micro_batch(self, models: int) -> MicroBatch:
        """Some rows of each task; one model of them all, or one a row."""
        draw = torch.Generator().manual_seed(models)
        groups = len(self.pool.groups) if models == 1 else 1
        rows = dict.fromkeys(self.data, torch.arange(ROWS))
        count = 1 if models == 1 else ROWS * len(self.data)
        shape = (count, len(self.pool.tasks), groups)
        return MicroBatch(rows, 0.3 + 0.1 * torch.randn(shape, generator=draw))


def opened(pool: Pool, sources: Mapping[str, TaskSource], root: Path, kind: str) -> World:
    """The rows of these tasks prepared."""
    tasks = {name: open_task(source, kind) for name, source in sources.items()}
    roles = ("fit", "select", "report")
    return World(pool, prepare_data(pool.base, tasks, Splits(), roles, root / "cache"), root)


def clip(root: Path, pool: Path) -> World:
    """The tests' tiny CLIP, from its folder."""
    found = open_pool(
        str(pool / "base"), {e.name: str(e) for e in sorted((pool / "experts").iterdir())}
    )
    sources = {name: TaskSource(name, str(pool / "data" / name)) for name in found.tasks}
    return opened(found, sources, root, "image")


def t5(root: Path) -> World:
    """A T5 of two experts."""
    tiny_t5.write_pool(root)
    pool = open_pool(str(root / "base"), {task: str(root / task) for task in tiny_t5.CLASSES})
    sources = {task: TaskSource(task, str(root / "data" / task)) for task in pool.tasks}
    return opened(pool, sources, root, "text")


def bert(root: Path) -> World:
    """A BERT encoder, of two experts with heads of their own."""
    root.mkdir(parents=True, exist_ok=True)
    models = tiny_bert.make_models(root)["bert"]
    classes = {"film": ("good", "bad", "fine"), "play": ("good", "bad")}
    base = models.write(root / "base", encoder=True)
    members = {
        name: str(models.write(root / name, at + 5, classes=len(each)))
        for at, (name, each) in enumerate(classes.items())
    }
    pool = open_pool(str(base), members)
    heads = pool.family.own_heads(pool.base, pool.experts)
    sources = {}
    for seed, (name, each) in enumerate(classes.items()):
        folder = tiny_bert.write_texts(root / "data" / name, each, seed)
        sources[name] = TaskSource(name, str(folder), head=heads.get(name))
    return opened(pool, sources, root, "text")
