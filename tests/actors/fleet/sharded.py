"""What the tests of sharded fleets share: a tiny pool with made-up features, plans, a training."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import ray
import torch
from torch import Tensor

from actors.artifacts.coding_file import dump_coding
from actors.artifacts.gate_file import Manifest, dump
from actors.artifacts.recipe import Recipe
from actors.cluster.planner import Plan
from actors.data.images.pixel_cache import open_pixels
from actors.data.task import Splits, TaskSource, open_task
from actors.data.task_rows import TaskData
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.files.matrix_file import write_matrix
from actors.gate_features.feature_cache import open_features
from actors.pool.pool import Pool, open_pool
from fusion.methods.learned.gate import Gate
from fusion.methods.learned.steps import Shape, learn_step, micro_batches
from fusion.registry import METHODS

EXTRACTOR = "made-up"
WIDTH = 8
SPLIT = {1: ((0, 4),), 2: ((0, 2), (2, 4)), 3: ((0, 1), (1, 3), (3, 4))}
"""Shards -> which of the tiny pool's four segments each has."""


def plan_of(replicas: int, shards: int = 1, gpus: float = 0.0) -> Plan:
    return Plan(replicas, shards, SPLIT[shards], "cpu", 1, gpus, 0, (0,) * shards, 0)


@dataclass(frozen=True)
class Parts:
    pool: Pool
    data: Mapping[str, TaskData]
    cache: Path

    def embeddings(self, name: str) -> EmbeddingCache:
        return EmbeddingCache(self.cache / name, {key: key for key in (*self.data, "pretrained")})

    @property
    def args(self) -> tuple:
        """What a fleet is built from."""
        return self.pool, self.data, self.embeddings("fleet")

    def local(self):
        torch.set_num_threads(1)  # as many as a shard has: sums are then made in the same order
        return local_experts(self.pool, self.data, self.embeddings("local"))

    def sizes(self, role: str) -> dict[str, int]:
        return {name: len(rows_of(task, role)) for name, task in self.data.items()}

    def features(self, role: str) -> dict[str, Tensor]:
        return {
            name: open_features(task.rows[role].features[EXTRACTOR])[rows_of(task, role)]
            for name, task in self.data.items()
        }

    def train(self, client, role="select", steps=12, between=lambda step: None, **params):
        """A gate after some steps of `dawe`: its tensors."""
        shape = Shape(self.pool.tasks, self.pool.groups, WIDTH)
        params = {"learning_rate": 1e-2, "batch_size": 8, **params}
        learning = METHODS["dawe"].learning(shape, **params)
        optimizer = torch.optim.Adam(learning.router.parameters(), lr=learning.learning_rate)
        sizes, features = self.sizes(role), self.features(role)
        for step in range(steps):
            given = micro_batches(learning, sizes, features, step, seed=5)
            between(step)
            learn_step(
                learning,
                optimizer,
                given,
                lambda given: client.gradients(given, role, learning.trim),
                step,
            )
        return {name: tensor.clone() for name, tensor in learning.router.state_dict().items()}


def rows_of(task: TaskData, role: str) -> np.ndarray:
    rows = task.rows[role]
    return np.arange(len(open_pixels(rows.file).labels)) if rows.indices is None else rows.indices


def make_parts(root: Path, cache: Path) -> Parts:
    """A pool, data with random features of both splits, and a folder for caches."""
    names = ("lines", "tones", "blobs")
    pool = open_pool(str(root / "base"), {task: str(root / "experts" / task) for task in names})
    tasks = {task: open_task(TaskSource(task, str(root / "data" / task))) for task in names}
    found = prepare_data(pool.base, tasks, Splits(), ["select", "report"], cache)
    rng, data = np.random.default_rng(3), {}
    for name, task in found.items():
        rows = {}
        for role, each in task.rows.items():
            path = cache / f"{name}-{role}.arrow"
            count = len(open_pixels(each.file).labels)
            values = rng.normal(size=(count, WIDTH)).astype(np.float32)
            write_matrix(path, np.arange(count), WIDTH, [values])
            rows[role] = replace(each, features={EXTRACTOR: path})
        data[name] = replace(task, rows=rows)
    return Parts(pool, data, cache)


def random_gate(pool: Pool, grouping: str = "layer") -> Gate:
    """A gate whose codings differ from sample to sample."""
    groups = len(pool.groups) if grouping == "layer" else 1
    gate = Gate(WIDTH, len(pool.tasks), groups, seed=1)
    generator = torch.Generator().manual_seed(2)
    gate[-1].weight.data.normal_(0, 0.1, generator=generator)
    return gate


def recipes(pool: Pool) -> dict[str, Recipe]:
    generator = torch.Generator().manual_seed(0)
    coding = torch.rand(1, len(pool.tasks), len(pool.groups), generator=generator)
    gate = random_gate(pool)
    manifest = Manifest(
        "dawe", "made-up", EXTRACTOR, "none", WIDTH, pool.tasks, "layer", pool.groups,
        2, 0.3, False, False, 1,
    )  # fmt: skip
    return {
        "pretrained": Recipe("pretrained"),
        "experts": Recipe("experts"),
        "ensemble": Recipe("ensemble"),
        "task_arithmetic": Recipe("task_arithmetic", {"scale": 0.4}),
        "ties": Recipe("ties", {"density": 0.3}),
        "ties by name": Recipe("ties", {"density": 0.5, "scale": 0.7}),
        "dawin domain": Recipe("dawin", {"granularity": "domain"}),
        "dawin sample": Recipe("dawin", {"granularity": "sample"}),
        "dawin cluster": Recipe("dawin", {"granularity": "cluster", "expert": "tones"}),
        "adamerging": Recipe("adamerging", {}, dump_coding(coding, pool.tasks, pool.groups)),
        "adamerging++": Recipe(
            "adamerging", {"density": 0.2}, dump_coding(coding, pool.tasks, pool.groups)
        ),
        "dawe": Recipe("dawe", {"grouping": "layer"}, dump(gate, manifest)),
    }


def ours(*names: str) -> list[str]:
    """Titles of this driver's Ray workers that run one of these."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and any(name in title for name in names):
            found.append(title)
    return found


def standing() -> list[str]:
    """Placement groups that hold a place, or want one."""
    table = ray.util.placement_group_table()
    return [key for key, each in table.items() if each["state"] != "REMOVED"]


def wait_until(what, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")
