"""Speed: ours, a straightforward implementation, and the least time that the device's rates allow.

The floor of a merge is its bytes by the rate of a copy; that of a pass its FLOPs by the rate of a
product in the same precision; both were measured on this device. The straightforward implementation
sums state dicts in Python and calls the model of `transformers` (`benchmarks.pools.Textbook`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from actors.artifacts.recipe import Recipe
from actors.experts.in_model_training import TrainingCall, plan_of
from actors.experts.local import LocalExperts
from actors.shards.cuda_graph import VARIABLE
from actors.shards.messages import Weights
from benchmarks.fusion.layers import medians
from benchmarks.pools import (
    B32,
    EMBEDDED,
    ROLE,
    ROWS,
    TASKS,
    RandomPool,
    Size,
    Textbook,
    experts,
    write_base,
)
from fusion.merged_layers import functional
from fusion.methods.learned.steps import MicroBatch
from fusion.task_vectors.sparsify import Trim
from fusion.task_vectors.task_vectors import TaskVectors
from tests.gpu.machine import DTYPES, Rates, tf32
from tests.gpu.places import Place
from tests.gpu.report import Found, Part, Row

SIZES = {
    "b32": B32,
    "embedded": EMBEDDED,
    "tiny": Size("tiny", 32, 1, 2, 64, 16, 32, 16),
}
SCALE = 0.3
SAMPLES = 64
"""Models in a pass of one model a sample."""
TAUGHT = 16
"""Rows of a task in a step of learning."""
CARRY = 16_800_000
"""Bytes of the activations of 16 images between two shards of a ViT-L/14."""


class Pool(RandomPool):
    """Eight random experts on the device."""

    def __init__(self, size: Size, folder: Path, place: Place) -> None:
        """Write the base; draw the rest, on a GPU there, else on the CPU."""
        write_base(size, folder / "base")
        super().__init__(size, folder, "cpu" if place.kind == "pretend" else place.device)
        self.device, self.vectors = place.device, place.vectors(self.vectors)


@dataclass
class Bench:
    """The pool, both ways with it, and how they are timed."""

    place: Place
    rates: Rates
    size: Size
    folder: Path

    @property
    def batch(self) -> int:
        """Images of an evaluation batch."""
        return 16 if self.size.name == "tiny" else 256

    @cached_property
    def pool(self) -> Pool:
        """Drawn once."""
        return Pool(self.size, self.folder, self.place)

    @cached_property
    def ours(self) -> LocalExperts:
        """In float32."""
        return self.pool.experts()

    @cached_property
    def half(self) -> LocalExperts:
        """In bfloat16."""
        pool = self.pool
        return experts(pool.base, pool.vectors, pool.data, pool.device, torch.bfloat16)

    @cached_property
    def graphed(self) -> LocalExperts:
        """In float32, by CUDA graphs where they give the same bits."""
        with patch.dict(os.environ, {VARIABLE: "1"}):
            return self.pool.experts()

    @cached_property
    def textbook(self) -> Textbook:
        """The straightforward way."""
        return Textbook(self.pool)

    def timed(
        self,
        ours: Callable[[], object],
        theirs: Callable[[], object] | None,
        floor: float | None,
        note: str = "",
    ) -> Found:
        """Milliseconds of both, and of the floor; ratios."""
        works = {"ours": ours} | ({} if theirs is None else {"theirs": theirs})
        found = medians(works, 1 if self.size.name == "tiny" else 5, self.place.device)
        cells = [f"{1e3 * found['ours']:.3f}"]
        cells += ["", ""] if theirs is None else [
            f"{1e3 * found['theirs']:.3f}", f"{found['theirs'] / found['ours']:.2f}",
        ]  # fmt: skip
        cells += ["", ""] if floor is None else [
            f"{1e3 * floor:.3f}", f"{found['ours'] / floor:.2f}",
        ]  # fmt: skip
        return Found((*cells, note))

    # --------------------------------------------------------------------------------- floors

    @property
    def elements(self) -> int:
        """Of one model."""
        return sum(tensor.numel() for tensor in self.pool.vectors.base.values())

    def copied(self, tensors: float) -> float:
        """Seconds of reading and writing so many models in float32."""
        return 4 * tensors * self.elements / self.rates.copy

    def multiplied(self, images: int, precision: str = "fp32", passes: int = 1) -> float:
        """Seconds of the products of forward passes, and attention's."""
        size, tokens = self.size, self.size.tokens
        layers = size.weights + 2 * size.layers * tokens * size.width
        patches = 3 * size.patch**2 * size.width
        flops = 2 * images * (tokens * layers + (tokens - 1) * patches)
        return passes * flops / self.rates.flops(precision)

    # ------------------------------------------------------------------------------------ rows

    def merging(self) -> Iterator[Row]:
        """Merges into the resident model."""
        shard, pipeline = self.ours.runner.pipeline.shards[0], self.ours.runner.pipeline
        arena, vectors = shard.resident.arena, self.pool.vectors
        scaled = pipeline.weights("task_arithmetic", {"scale": SCALE})
        coding = torch.full((len(TASKS), 1), SCALE)
        floor = self.copied(len(TASKS) + 2)
        yield Row(
            "task_arithmetic, merge",
            lambda: self.timed(
                lambda: shard.merge(scaled, arena), lambda: self.textbook.merged(coding), floor
            ),
        )
        layers = Weights("", coding=torch.full((1, len(TASKS), len(vectors.groups)), SCALE))
        yield Row(
            "coding by tensor, merge",
            lambda: self.timed(
                lambda: shard.merge(layers, arena), lambda: self.textbook.merged(layers.coding[0]),
                floor,
            ),
        )  # fmt: skip
        params = {"density": 0.2, "scale": SCALE}

        def surveyed() -> dict[str, Tensor]:
            return shard.merge(pipeline.weights("ties", params), arena)

        yield Row(
            "ties, survey and merge",
            lambda: self.timed(
                surveyed, lambda: ties(vectors, 0.2, SCALE), self.copied(2 * len(TASKS) + 2)
            ),
        )

    def evaluation(self) -> Iterator[Row]:
        """A batch, from its file to its embeddings, by precision."""
        for precision, dtype in DTYPES.items():
            yield Row(
                f"evaluation, {self.batch} images, {precision}",
                partial(self.evaluated, precision, dtype),
            )
        yield Row(f"evaluation, {self.batch} images, fp32, by CUDA graph", self.by_graph)

    def by_graph(self) -> Found:
        """An evaluation by CUDA graphs; its last cell says whether they are used, or the reason."""
        found = self.evaluated("fp32", torch.float32, self.graphed)
        graphs = self.graphed.runner.pipeline.shards[0].resident.graphs
        said = "none on a CPU" if graphs is None else graphs.refused or "same bits"
        return Found((*found.cells[:-1], said))

    def evaluated(
        self, precision: str, dtype: torch.dtype, given: LocalExperts | None = None
    ) -> Found:
        """See `evaluation`; the straightforward way has the images read."""
        local = given or (self.half if dtype == torch.bfloat16 else self.ours)
        pipeline, rows = local.runner.pipeline, torch.arange(self.batch) % ROWS
        weights = pipeline.weights("task_arithmetic", {"scale": SCALE})
        batch = local.runner.batch(TASKS[0], ROLE, rows)
        theirs = None
        if dtype == torch.float32:
            images = self.textbook.pixels(TASKS[0], rows)
            state = self.textbook.merged(torch.full((len(TASKS), 1), SCALE))
            theirs = torch.no_grad()(lambda: self.textbook.embed(state, images))
        floor = self.multiplied(self.batch, precision)
        with tf32(precision == "tf32"):
            return self.timed(lambda: list(pipeline.embed(weights, [batch])), theirs, floor)

    def sampled(self) -> Iterator[Row]:
        """One model a sample, by either form of a product, and by the one that is chosen."""
        models = 8 if self.size.name == "tiny" else SAMPLES
        draw = torch.Generator().manual_seed(0)
        coding = SCALE + 0.1 * torch.randn(models, len(TASKS), 1, generator=draw)
        local, rows = self.ours, torch.arange(models) % ROWS
        batch = local.runner.batch(TASKS[0], ROLE, rows)
        weights = Weights("", coding=coding)

        def ours() -> None:
            list(local.runner.pipeline.embed_coded([(batch, weights)]))

        def found(form: str | None) -> Found:
            theirs = None if form else lambda: self.textbook.code(TASKS[0], rows, coding)
            floor, note = self.copied(models * (len(TASKS) + 2)), "floor: a merge a model"
            if form is None:
                return self.timed(ours, theirs, floor, note)
            with patch.object(functional, "form_for", lambda *_, **__: form):
                return self.timed(ours, theirs, floor, note)

        for form, said in (("A", "form A"), ("B", "form B"), (None, "as chosen")):
            yield Row(f"a model a sample, {models} images, {said}", partial(found, form))

    def taught(self) -> Iterator[Row]:
        """Steps of methods that learn."""
        groups, rows = len(self.pool.vectors.groups), torch.arange(TAUGHT)
        steps = (
            ("adamerging, step", (TASKS,), groups), ("dawe, step", tuple((t,) for t in TASKS), 1),
        )  # fmt: skip
        for name, given, width in steps:
            coding = torch.full((1, len(TASKS), width), SCALE)
            asked = [MicroBatch(dict.fromkeys(each, rows), coding, None) for each in given]
            floor = self.multiplied(TAUGHT * len(TASKS), passes=3)
            yield Row(
                name,
                lambda asked=asked, coding=coding, given=given, floor=floor: self.timed(
                    lambda: self.ours.gradients(asked, ROLE, Trim()),
                    lambda: [
                        self.textbook.static(dict.fromkeys(each, rows), coding) for each in given
                    ],
                    floor,
                ),
            )
        for name in ("wemoe", "concrete_task_arithmetic"):
            yield Row(f"{name}, step", partial(self.in_model, name))

    def in_model(self, name: str) -> Found:
        """A step of a method that learns in the model."""
        runner = self.ours.runner
        recipe = Recipe(name, {"batch_size": TAUGHT})
        steps = TrainingCall(runner, recipe, plan_of(recipe, TASKS, runner.pipeline.groups), 0)
        steps.begin(None, 0)
        numbers: Iterator[int] = iter(range(99))
        try:
            return self.timed(
                lambda: steps.step(next(numbers)), None,
                self.multiplied(TAUGHT * len(TASKS), passes=3),
            )  # fmt: skip
        finally:
            runner.pipeline.shards[0].in_model.drop(steps.key)

    def carried(self) -> Iterator[Row]:
        """Activations between shards, from the host."""
        carry = torch.zeros((CARRY if self.size.name == "b32" else CARRY // 100) // 4)
        device = self.place.device
        yield Row(
            "16.8 MB to the device, pageable",
            lambda: self.timed(lambda: carry.to(device), None, None),
        )
        if self.place.kind == "cuda":
            pinned = carry.pin_memory()
            yield Row(
                "16.8 MB to the device, pinned",
                lambda: self.timed(lambda: pinned.to(device, non_blocking=True), None, None),
            )


def ties(vectors: TaskVectors, density: float, scale: float) -> dict[str, Tensor]:
    """TIES as its paper has it, on vectors of all weights: trim, elect signs, mean of those."""
    deltas = torch.cat([delta.flatten(1) for delta in vectors.deltas.values()], dim=1)
    dropped = max(deltas.shape[1] - round(density * deltas.shape[1]), 1)
    kept = torch.stack(
        [each * (each.abs() > each.abs().kthvalue(dropped).values) for each in deltas]
    )
    agreeing = kept * (kept.sign() == kept.sum(0).sign())
    mean = agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)
    flat = torch.cat([base.flatten() for base in vectors.base.values()]) + scale * mean
    sizes = [base.numel() for base in vectors.base.values()]
    parts = zip(vectors.base.items(), torch.split(flat, sizes), strict=True)
    return {name: part.view(base.shape) for (name, base), part in parts}


COLUMNS = ("what", "ours, ms", "straightforward, ms", "of ours", "floor, ms", "ours of it", "note")


def part(place: Place, rates: Rates, size: str, folder: Path) -> Part:
    """`size`: of the models; `folder`: for base and images."""
    bench = Bench(place, rates, SIZES[size], folder)

    def rows() -> Iterator[Row]:
        for group in (bench.merging, bench.evaluation, bench.sampled, bench.taught, bench.carried):
            yield from group()

    what = f"{bench.size}, {len(TASKS)} experts."
    kinds: dict[str, str] = {
        "pretend": " Times are those of the CPU behind the pretended GPU: they say nothing.",
        "cpu": " Times of a CPU.",
    }
    return Part("speed", COLUMNS, 150, rows, what + kinds.get(place.kind, ""))
