"""Peak memory of calls, as the allocator counts it, beside what the plan reserves for them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from actors.artifacts.recipe import Recipe
from actors.cluster.partition import GPU_CONTEXT_BYTES, needs
from actors.data.task_rows import BATCH, SAMPLES
from actors.experts.in_model_training import TrainingCall, plan_of
from actors.experts.local import LocalExperts
from actors.pool.pool import open_pool
from actors.shards.messages import Batch, Weights
from benchmarks.pools import ROLE, ROWS, TASKS, write_zeros
from fusion.methods.learned.steps import MicroBatch
from fusion.task_vectors.sparsify import Trim
from sweeps.planning.learning_needs import needs_of
from sweeps.planning.prepared import load_of
from sweeps.spec.sweep import SweepSpec
from tests.gpu.places import Place
from tests.gpu.report import Found, Part, Row
from tests.gpu.speed import SIZES, TAUGHT, Pool
from tests.sweeps.learning_pool import make_extractor


@dataclass
class Meter:
    """A replica, and the plan of sweeps over its pool."""

    place: Place
    size: str
    folder: Path

    @cached_property
    def replica(self) -> tuple[LocalExperts, int]:
        """The replica, and the bytes that others had on the device before it was built."""
        gc.collect()
        before = int(torch.cuda.memory_allocated())
        return Pool(SIZES[self.size], self.folder / "pool", self.place).experts(), before

    @property
    def local(self) -> LocalExperts:
        """The replica."""
        return self.replica[0]

    def planned(self, methods: dict[str, Any]) -> int:
        """Bytes that the plan of a sweep reserves on a GPU for a replica, without CUDA's own."""
        folder, size = self.folder / "headers", SIZES[self.size]
        if not folder.exists():
            for name in ("base", *TASKS):
                write_zeros(size, folder / name)
            make_extractor(folder / "extractor")
        for params in methods.values():
            if "extractor" in params:
                params["extractor"] = str(folder / "extractor")
        experts = {task: str(folder / task) for task in TASKS}
        spec = SweepSpec.model_validate(
            {
                "name": "memory",
                "pool": {"base": str(folder / "base"), "experts": experts},
                "tasks": {task: {"dataset": str(folder)} for task in TASKS},
                "methods": methods,
            }
        )
        pool = open_pool(spec.pool.base, spec.pool.experts)
        load = load_of(spec, pool, needs_of(spec, pool.tasks, pool.groups))
        [whole] = needs(load, 1, "cuda")
        return whole.device - GPU_CONTEXT_BYTES

    def measured(self, methods: dict[str, Any], call: Callable[[], object]) -> Found:
        """A call's peak beside the plan."""
        planned = self.planned(methods)
        _, before = self.replica
        call()
        gc.collect()
        peak = self.place.peak(call) - before
        cells = (f"{peak / 1e9:.3f}", f"{planned / 1e9:.3f}", f"{peak / planned:.2f}")
        return Found((*cells, ""), peak <= planned)

    def batch(self, size: int) -> Batch:
        """Rows of one task; those on disk are few, so they repeat."""
        return self.local.runner.batch(TASKS[0], ROLE, torch.arange(size) % ROWS)

    def evaluated(self) -> None:
        """A merge, and a batch through it."""
        pipeline = self.local.runner.pipeline
        weights = pipeline.weights("task_arithmetic", {"scale": 0.3})
        list(pipeline.embed(weights, [self.batch(BATCH)]))

    def sampled(self) -> None:
        """A batch of one model a sample."""
        weights = Weights("", coding=torch.full((SAMPLES, len(TASKS), 1), 0.3))
        list(self.local.runner.pipeline.embed_coded([(self.batch(SAMPLES), weights)]))

    def taught(self, tasks: tuple[tuple[str, ...], ...], models: int, groups: int) -> None:
        """Gradients of micro-batches."""
        rows, coding = torch.arange(TAUGHT), torch.full((models, len(TASKS), groups), 0.3)
        asked = [MicroBatch(dict.fromkeys(each, rows), coding, None) for each in tasks]
        self.local.gradients(asked, ROLE, Trim())

    def in_model(self, name: str) -> None:
        """A step of a method that learns in the model."""
        runner = self.local.runner
        recipe = Recipe(name, {"batch_size": TAUGHT})
        steps = TrainingCall(runner, recipe, plan_of(recipe, TASKS, runner.pipeline.groups), 0)
        steps.begin(None, 0)
        try:
            steps.step(0)
        finally:
            runner.pipeline.shards[0].in_model.drop(steps.key)

    def rows(self) -> Iterator[Row]:
        """Evaluation, and steps of methods that learn, each planned alone."""
        groups, each = len(self.local.runner.pipeline.groups), tuple((t,) for t in TASKS)
        learns = {"batch_size": TAUGHT}
        gate = {**learns, "extractor": ""}
        own = {**gate, "batch_mean": False}
        cases: tuple[tuple[str, dict[str, Any], Callable[[], object]], ...] = (
            ("evaluation", {"task_arithmetic": {}}, self.evaluated),
            ("evaluation, a model a sample", {"dawe": dict(gate)}, self.sampled),
            ("dawe, step", {"dawe": dict(gate)}, partial(self.taught, each, 1, 1)),
            (
                "dawe, step, a model a row",
                {"dawe": own},
                partial(self.taught, each, TAUGHT, 1),
            ),
            (
                "adamerging, step",
                {"adamerging": dict(learns)},
                partial(self.taught, (TASKS,), 1, groups),
            ),
            ("wemoe, step", {"wemoe": dict(learns)}, partial(self.in_model, "wemoe")),
            (
                "concrete_task_arithmetic, step",
                {"concrete_task_arithmetic": dict(learns)},
                partial(self.in_model, "concrete_task_arithmetic"),
            ),
        )
        for name, methods, call in cases:
            yield Row(name, partial(self.measured, methods, call))


def part(place: Place, size: str, folder: Path) -> Part:
    """`size`: of the models; `folder`: for their files."""
    meter = Meter(place, size, folder)

    def rows() -> Iterator[Row]:
        if place.kind == "cpu":
            said = "a CPU's allocator counts nothing"
            yield Row("not measured", lambda: Found((said,)))
        else:
            yield from meter.rows()

    columns = ("what", "peak, GB", "planned, GB", "peak of planned", "note")
    note = (
        f"{SIZES[size]}; a whole replica, without CUDA's context; right where the plan is enough."
    )
    return Part("memory", columns, 40, rows, note)
