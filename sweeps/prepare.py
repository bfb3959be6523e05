"""Everything that is checked before anything is started: headers, tasks, splits, memory, disk.

No weight and no image is read here; `sweeps plan` prints what this finds, `sweeps run` acts on it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from actors.checkpoints import content_hash
from actors.embeddings import EmbeddingCache
from actors.experts import BATCH
from actors.placement import Plan, Resources, gigabytes, plan
from actors.pool import Pool, open_pool
from actors.preprocess import Preprocess, read_preprocess
from actors.sources import cache_dir
from actors.tasks import Role, Splits, Task, TaskSource, assign, open_task
from fusion.errors import InputError
from fusion.registry import METHODS, LogitSpace
from fusion.state import TaskVectors
from sweeps.candidates import random_points
from sweeps.spec import SweepSpec

NUMBERS = 1
"""Raised when a change of this code changes results: finished trials are then not reused."""

REHEARSED = 64
"""Candidates of a method tried on stand-ins; more differ in numbers, seldom in names."""

ROLES: tuple[Role, ...] = ("select", "report")


@dataclass(frozen=True)
class Prepared:
    """A sweep that can start."""

    spec: SweepSpec
    pool: Pool
    tasks: Mapping[str, Task]
    splits: Splits
    preprocess: Preprocess
    plan: Plan
    role_rows: Mapping[Role, int]
    """Rows of all tasks in a role; of a carved part to within rounding by class."""
    images: int
    """Rows of all source splits that the sweep reads."""
    pixel_bytes: int
    """Disk that their prepared form takes."""

    def context(self) -> str:
        """What every trial's result depends on besides its recipe, as a hash."""
        facts = {
            "numbers": NUMBERS,
            "base": content_hash(self.pool.base),
            "experts": {name: content_hash(e) for name, e in self.pool.experts.items()},
            "tasks": {
                name: [task.fingerprint, list(task.classnames), list(task.templates)]
                for name, task in self.tasks.items()
            },
            "splits": vars(self.splits),
            "dtype": self.spec.placement.dtype,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def embeddings(self) -> EmbeddingCache:
        """Where this pool's expert embeddings are kept."""
        base = content_hash(self.pool.base)
        identity = {
            name: f"{base} {content_hash(expert)} {self.plan.device} {self.spec.placement.dtype}"
            for name, expert in self.pool.experts.items()
        }
        return EmbeddingCache(cache_dir() / "embeddings", identity)


def prepare(spec: SweepSpec, outputs: Path, resources: Resources) -> Prepared:
    """Check a validated spec against the world.

    Raises:
        InputError: a checkpoint, dataset, split, memory or disk that will not do.
    """
    pool = open_pool(spec.pool.base, spec.pool.experts)
    preprocess = read_preprocess(pool.base.folder)
    splits = Splits(**spec.splits.model_dump())
    tasks = {
        name: open_task(TaskSource(name, t.dataset, t.image, t.label, t.templates, t.classnames))
        for name, t in spec.tasks.items()
    }
    sources, role_rows = set(), dict.fromkeys(ROLES, 0)
    for name, task in tasks.items():
        places = assign(task, splits, select_spelled=spec.splits.select_spelled)
        for role in ROLES:
            place = places[role]
            sources.add((name, place.split))
            share = {"all": 1.0, "fit": 1 - splits.val_fraction, "val": splits.val_fraction}
            role_rows[role] += round(task.splits[place.split] * share[place.part])
    images = sum(tasks[name].splits[split] for name, split in sources)
    side = preprocess.size
    pixel_bytes = images * 3 * side * side
    for folder, needed in ((cache_dir(), pixel_bytes), (outputs, 10**7)):
        check_disk(folder, needed)
    rehearse(spec, pool)
    placement = plan(
        pool.parameters * 4,
        len(pool.experts),
        activation_bytes(pool.base.fields, side),
        resources,
        replicas=spec.placement.replicas,
        device=spec.placement.device,
    )
    return Prepared(
        spec, pool, tasks, splits, preprocess, placement, role_rows, images, pixel_bytes
    )


def rehearse(spec: SweepSpec, pool: Pool) -> None:
    """Run every method on stand-ins of one element a tensor: finds wrong names inside parameters.

    Raises:
        InputError: what the method itself refuses: an unknown expert, a weight too few.
    """
    zeros = {name: torch.zeros(1) for name in pool.names}
    vectors = TaskVectors.from_state_dicts(zeros, dict.fromkeys(pool.tasks, zeros))
    embeddings, head = torch.ones(len(pool.tasks), 1, 2), torch.ones(2, 2)
    for name, entry in spec.methods.items():
        method = METHODS[name]
        for params in islice(random_points(entry, name, spec.seed), REHEARSED):
            try:
                if isinstance(method, LogitSpace):
                    method.fuse(embeddings, head, **params)
                else:
                    method.merge(vectors, **params)
            except InputError as error:
                raise InputError(f"methods.{name}: {error}") from None


def activation_bytes(vision: Mapping[str, int], side: int) -> int:
    """Peak activations of one forward batch: tokens × the widest of a block's tensors, in float32.

    Counts, for one block at a time, the residual stream, q, k, v, the attention scores and the
    MLP's hidden layer.
    """
    tokens = (side // vision["patch_size"]) ** 2 + 1
    width, hidden = vision["hidden_size"], vision["intermediate_size"]
    heads = vision["num_attention_heads"]
    return 4 * BATCH * tokens * (5 * width + hidden + heads * tokens)


def check_disk(place: Path, needed: int) -> None:
    """Raise InputError where a folder's file system lacks the room."""
    there = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise InputError(f"{place}: {gigabytes(needed)} of disk needed, {gigabytes(free)} free")
