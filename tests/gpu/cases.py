"""Every method of the table in a replica: parameters to try, and a few rows to try them on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actors.artifacts.coding_file import dump_coding
from actors.artifacts.gate_file import Manifest, dump
from actors.artifacts.recipe import Recipe
from actors.data.images.pixel_cache import open_pixels
from actors.data.task import Splits, TaskSource, open_task
from actors.data.task_rows import TaskData
from actors.experts.local import LocalExperts
from actors.experts.prepare_data import prepare_data
from actors.files.matrix_file import write_matrix
from actors.pool.pool import Pool, open_pool
from fusion.methods.learned.gate import Gate
from fusion.methods.learned.steps import MicroBatch, Shape, TrainingPlan, micro_batches
from fusion.registry import (
    METHODS,
    Adaptive,
    Fitted,
    Gated,
    LogitSpace,
    Routed,
    Selected,
    Static,
)

NAMES = ("lines", "tones", "blobs")
ROWS, WIDTH, EXTRACTOR = 8, 6, "made-up"

ROUGH = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-1}
"""dtype -> how far logits may be from the CPU's, absolutely."""

GIVEN: dict[str, list[dict[str, Any]]] = {
    "fisher": [{"examples": 4}, {"examples": 4, "estimate": "exact"}, {"estimate": "batch"}],
    "regmean": [{"examples": 8}],
    "regmean_plusplus": [{"examples": 8}],
    "lot": [{"examples": 8}],
    "wise_ft": [{"expert": "tones"}],
    "slerp": [{"experts": ["lines", "tones"]}],
    "della": [{}, {"compat": "mergekit"}],
    "sce": [{"density": 0.4}, {"density": 0.4, "compat": "mergekit"}],
    "ram": [{}, {"plus": True}, {"plus": True, "granularity": "tensor"}],
    "arcee_fusion": [{"expert": "tones"}],
    "nuslerp": [
        {"experts": ["lines", "tones"]}, {"experts": ["lines", "tones"], "granularity": "row"},
        {"experts": ["lines"], "granularity": "column"},
    ],
    "karcher": [{}, {"of": "task_vectors"}],
    "multislerp": [{}, {"of": "task_vectors"}],
    "nearswap": [{"expert": "tones"}],
    "wudi": [{"steps": 3}],
    "ties": [{}, {"compat": "fusionbench", "density": 0.3}, {"granularity": "tensor"}],
    "dare": [{}, {"merge": "ties"}],
    "dawin": [
        {}, {"granularity": "sample"}, {"granularity": "cluster", "clusters": 2},
        {"combine": "outputs"},
    ],
}  # fmt: skip
"""method -> parameters; of all others the defaults."""

PLAIN: list[tuple[str, dict[str, Any]]] = [
    (name, params)
    for name, row in METHODS.items()
    if isinstance(row, Static | LogitSpace | Routed)
    for params in GIVEN.get(name, [{}])
]

TAUGHT: list[tuple[str, dict[str, Any]]] = [
    ("adamerging", {}), ("adamerging", {"grouping": "task", "density": 0.3}),
    ("adamerging", {"tasks_at_once": 1}), ("learned_soup", {}),
    ("dawe", {}), ("dawe", {"grouping": "layer", "batch_mean": False}), ("dawe", {"density": 0.5}),
    ("dawe", {"delta_dtype": "bfloat16"}), ("frank_wolfe", {}),
]  # fmt: skip

IN_MODEL: list[tuple[str, dict[str, Any]]] = [
    ("wemoe", {}), ("wemoe", {"depth": 1, "batch_mean": False}), ("ewemoe", {"prune": 0.6}),
    ("concrete_task_arithmetic", {}),
    ("concrete_task_arithmetic", {"tasks_at_once": 2, "mask": "discrete"}),
    ("concrete_adamerging", {"steps": 1, "coefficient_steps": 2}),
]  # fmt: skip

FITTED = [name for name, row in METHODS.items() if isinstance(row, Fitted)]

SELECTED = [name for name, row in METHODS.items() if isinstance(row, Selected)]


def few_rows(root: Path, cache: Path) -> tuple[Pool, dict[str, TaskData], Path]:
    """The tiny pool, a few rows of each task with made-up features, and the folder of both."""
    pool = open_pool(str(root / "base"), {name: str(root / "experts" / name) for name in NAMES})
    tasks = {name: open_task(TaskSource(name, str(root / "data" / name))) for name in NAMES}
    found = prepare_data(pool.base, tasks, Splits(), ["fit", "select"], cache)
    draw, data = np.random.default_rng(3), {}
    for name, task in found.items():
        rows = {}
        for role, each in task.rows.items():
            count = len(open_pixels(each.file).labels)
            path = cache / f"{name}-{role}.arrow"
            write_matrix(
                path, np.arange(count), WIDTH, [draw.normal(size=(count, WIDTH)).astype(np.float32)]
            )
            at = np.arange(count) if each.indices is None else each.indices
            few = of_every_class(open_pixels(each.file).labels.numpy(), at)
            rows[role] = replace(each, indices=few, features={EXTRACTOR: path})
        data[name] = replace(task, rows=rows)
    return pool, data, cache


def of_every_class(labels: NDArray[np.int64], at: NDArray[np.int64]) -> NDArray[np.int64]:
    """`ROWS` of these rows, in turn of each class."""
    turns = [at[labels[at] == label] for label in np.unique(labels)]
    mixed = [rows[i] for i in range(ROWS) for rows in turns if i < len(rows)]
    return np.sort(np.array(mixed[:ROWS]))


def detached(micro_batch: MicroBatch) -> MicroBatch:
    """The same without the graph behind its coding."""
    beta = None if micro_batch.beta is None else micro_batch.beta.detach()
    return MicroBatch(micro_batch.rows, micro_batch.coding.detach(), beta)


def plan_and_batches(
    name: str, params: dict[str, Any], experts: LocalExperts
) -> tuple[TrainingPlan, list[MicroBatch]]:
    """A learning method's plan, and the micro-batches of its first step."""
    row = METHODS[name]
    assert isinstance(row, Adaptive | Gated)
    shape = Shape(experts.runner.tasks, experts.runner.pipeline.groups, WIDTH)
    learning = row.plan(shape, **{**params, "batch_size": 4})
    role = learning.adapt_on
    features = {task: experts.runner.features(task, role, EXTRACTOR) for task in NAMES}
    given = micro_batches(learning, dict.fromkeys(NAMES, ROWS), features, 0, 3)
    return learning, [detached(micro_batch) for micro_batch in given]


def taught_recipe(
    name: str, params: dict[str, Any], experts: LocalExperts, step: tuple[TrainingPlan, Any]
) -> Recipe:
    """A recipe with the gate, or the coding, of a step."""
    learning, given = step
    if isinstance(METHODS[name], Gated):
        return Recipe(name, params, gate_of(experts, name, learning.router))
    tasks, groups = experts.runner.tasks, experts.runner.pipeline.groups
    return Recipe(name, params, dump_coding(given[0].coding, tasks, groups, 1.0))


def gate_of(experts: LocalExperts, name: str, gate: Gate) -> bytes:
    """The file of a gate that tells samples apart."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=draw)
    layer = gate.groups > 1
    about = Manifest(
        method=name, extractor="made-up", extractor_hash=EXTRACTOR, preprocessing="none",
        width=WIDTH, tasks=experts.runner.tasks, grouping="layer" if layer else "task",
        keys=experts.runner.pipeline.groups if layer else (), steps=1, **gate.options,
    )  # fmt: skip
    return dump(gate, about)
