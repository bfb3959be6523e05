"""Pools, data and experts of the laws: small, with made-up features of every row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.artifacts.coding_file import dump_coding
from actors.artifacts.gate_file import Manifest, dump
from actors.artifacts.recipe import Recipe
from actors.data.row_file import open_labels
from actors.data.task import Splits, TaskSource, open_task
from actors.data.task_rows import TaskData
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import LocalExperts, local_experts
from actors.experts.prepare_data import prepare_data
from actors.experts.protocol import Trainer
from actors.files.matrix_file import write_matrix
from actors.gate_features.feature_cache import open_features
from actors.pool.pool import Pool, open_pool
from fusion.methods.learned.gate import Gate
from fusion.methods.learned.steps import Shape, learn_step, micro_batches
from fusion.registry import METHODS

EXTRACTOR = "made-up"
WIDTH = 8
NAMES = ("lines", "tones", "blobs")


@dataclass(frozen=True)
class Parts:
    """A pool, data of its tasks, and a folder for caches."""

    pool: Pool
    data: Mapping[str, TaskData]
    cache: Path

    def embeddings(self, name: str) -> EmbeddingCache:
        """A cache of its own, of embeddings and of statistics."""
        known = {key: key for key in (*self.data, "pretrained")}
        folder = self.cache / name
        folder.mkdir(parents=True, exist_ok=True)
        return EmbeddingCache(folder / "embeddings", known)

    @property
    def args(self) -> tuple[Pool, Mapping[str, TaskData], EmbeddingCache]:
        """What a fleet is built from."""
        return self.pool, self.data, self.embeddings("fleet")

    def local(self, name: str = "local", **options: Any) -> LocalExperts:
        """Experts in this process, on as many threads as a shard has: sums are then made in the
        same order."""
        torch.set_num_threads(1)
        return local_experts(self.pool, self.data, self.embeddings(name), **options)

    def sizes(self, role: str) -> dict[str, int]:
        """Task -> rows."""
        return {name: len(rows_of(task, role)) for name, task in self.data.items()}

    def features(self, role: str) -> dict[str, Tensor]:
        """Task -> features [N, WIDTH]."""
        return {
            name: open_features(task.rows[role].features[EXTRACTOR])[rows_of(task, role)]
            for name, task in self.data.items()
        }

    def train(
        self,
        experts: Trainer,
        role: str = "select",
        steps: int = 12,
        between: Any = lambda step: None,
        **params: Any,
    ) -> dict[str, Tensor]:
        """A gate after some steps of `dawe`: its tensors."""
        shape = Shape(self.pool.tasks, self.pool.groups, WIDTH)
        params = {"learning_rate": 1e-2, "batch_size": 8, **params}
        learning = METHODS["dawe"].plan(shape, **params)
        optimizer = torch.optim.Adam(learning.router.parameters(), lr=learning.learning_rate)
        sizes, features = self.sizes(role), self.features(role)
        for step in range(steps):
            given = micro_batches(learning, sizes, features, step, seed=5)
            between(step)
            learn_step(
                learning,
                optimizer,
                given,
                lambda given: experts.gradients(given, role, learning.trim),
                step,
            )
        return {name: tensor.clone() for name, tensor in learning.router.state_dict().items()}


def rows_of(task: TaskData, role: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Numbers of a role's rows in their file."""
    rows = task.rows[role]
    return np.arange(len(open_labels(rows.file))) if rows.indices is None else rows.indices


def with_features(
    data: Mapping[str, TaskData], folder: Path, width: int = WIDTH
) -> dict[str, TaskData]:
    """The same data, with random features of every row."""
    rng, found = np.random.default_rng(3), {}
    for name, task in data.items():
        rows = {}
        for role, each in task.rows.items():
            path = folder / f"{name}-{role}.arrow"
            count = len(open_labels(each.file))
            values = rng.normal(size=(count, width)).astype(np.float32)
            write_matrix(path, np.arange(count), width, [values])
            rows[role] = replace(each, features={EXTRACTOR: path})
        found[name] = replace(task, rows=rows)
    return found


def make_parts(root: Path, cache: Path) -> Parts:
    """The tiny pool, its data with random features of every split, and a folder for caches."""
    pool = open_pool(str(root / "base"), {task: str(root / "experts" / task) for task in NAMES})
    tasks = {task: open_task(TaskSource(task, str(root / "data" / task))) for task in NAMES}
    data = prepare_data(pool.base, tasks, Splits(), ["fit", "select", "report"], cache)
    return Parts(pool, with_features(data, cache), cache)


def random_gate(pool: Pool, grouping: str = "layer") -> Gate:
    """A gate whose codings differ from sample to sample."""
    groups = len(pool.groups) if grouping == "layer" else 1
    gate = Gate(WIDTH, len(pool.tasks), groups, seed=1)
    generator = torch.Generator().manual_seed(2)
    gate[-1].weight.data.normal_(0, 0.1, generator=generator)
    return gate


def gate_file(pool: Pool, gate: Gate, grouping: str = "layer") -> bytes:
    """The learned file of a gate."""
    keys = pool.groups if grouping == "layer" else ()
    manifest = Manifest(
        "dawe", "made-up", EXTRACTOR, "none", WIDTH, pool.tasks, grouping, keys,
        2, 0.3, False, False, 1,
    )  # fmt: skip
    return dump(gate, manifest)


def recipes(pool: Pool) -> dict[str, Recipe]:
    """One of most kinds."""
    generator = torch.Generator().manual_seed(0)
    coding = torch.rand(1, len(pool.tasks), len(pool.groups), generator=generator)
    learned = dump_coding(coding, pool.tasks, pool.groups)
    return {
        "pretrained": Recipe("pretrained"),
        "experts": Recipe("experts"),
        "ensemble": Recipe("ensemble"),
        "task_arithmetic": Recipe("task_arithmetic", {"scale": 0.4}),
        "ties": Recipe("ties", {"density": 0.3}),
        "dawin domain": Recipe("dawin", {"granularity": "domain"}),
        "adamerging++": Recipe("adamerging", {"density": 0.2}, learned),
        "dawe": Recipe("dawe", {"grouping": "layer"}, gate_file(pool, random_gate(pool))),
    }
