"""What a call costs on a GPU, counted without one: launches, waits, bytes, FLOPs, peak memory.

The product's own code runs on tensors of the tests' pretended GPU (`tests/pretend`, which needs
g++): a CLIP ViT-B/32, eight experts. Tensors have shapes and no values, so it takes seconds.
Surveys and spectral merges depend on values: they run on a thin CLIP of the same 199 tensors, whose
bytes and FLOPs say nothing and are left out. Attention counts as one fused launch, and as three
backward, as on a GPU. What the first call of its kind makes once is not counted.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.pretend import building

building.load()  # before PyTorch is imported

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from tests.pretend import device  # noqa: E402

device.install()

from actors.artifacts.recipe import Recipe  # noqa: E402
from actors.data.task_rows import Cuts  # noqa: E402
from actors.experts.in_model_training import TrainingCall, plan_of  # noqa: E402
from actors.experts.local import LocalExperts  # noqa: E402
from actors.families.registry import inspect  # noqa: E402
from actors.pool.vectors_in_memory import flatten, unflatten  # noqa: E402
from actors.shards.messages import Batch, Weights  # noqa: E402
from benchmarks.environment import RESULTS, command, machine  # noqa: E402
from benchmarks.pools import (  # noqa: E402
    B32,
    ROLE,
    TASKS,
    Size,
    experts,
    random_vectors,
    tower,
    write_base,
    write_data,
    write_zeros,
)
from fusion.kinds import MergeInputs  # noqa: E402
from fusion.methods.learned.steps import MicroBatch, stacks  # noqa: E402
from fusion.methods.spectral.batched import leading_directions, polar_factors  # noqa: E402
from fusion.registry import METHODS  # noqa: E402
from fusion.task_vectors.packed import packed  # noqa: E402
from fusion.task_vectors.sparsify import Trim  # noqa: E402
from fusion.task_vectors.task_vectors import TaskVectors  # noqa: E402

THIN = Size("thin", 48, B32.layers, 12, 96, 112, 224, 32)
"""A CLIP of as many tensors as B/32."""
ROWS = 16
"""Images of a task in a step, and those on disk."""
EVALUATED = 256
"""Images in an evaluation batch."""


@dataclass(frozen=True)
class Counts:
    """What one call costs."""

    name: str
    launches: int
    waits: int
    sent: int
    """Bytes from the host."""
    moved: int
    flops: int
    peak: int
    """Bytes of the device's memory beyond what was there before."""
    sized: bool
    """Whether the tensors have B/32's sizes."""
    where: str
    """The two places where the host waits most."""

    def cells(self) -> list[str]:
        """Of the table; the bound of launches and waits first."""
        most, waits = BOUNDS.get(self.name, ("", ""))
        sizes = [f"{self.moved / 1e9:.2f}", f"{self.flops / 1e12:.3f}", f"{self.peak / 1e9:.2f}"]
        counts = [str(self.launches), most, str(self.waits), waits, f"{self.sent / 1e6:.1f}"]
        return [self.name, *counts, *(sizes if self.sized else ["", "", ""]), self.where]


BOUNDS: dict[str, tuple[str, str]] = {
    "evaluation batch": ("", "≤ 1"),
    "AdaMerging step": ("", "≤ 2"),
    "DAWE step": ("≤ 1800", "≤ 2"),
    "WE-MoE step": ("≤ 1800", "≤ 2"),
    "task_arithmetic": ("≤ 3", "0"),
    "weighted_average": ("≤ 3", "0"),
    "wise_ft": ("≤ 3", "0"),
    "uniform_soup": ("≤ 3", "0"),
    "ties survey": ("", "≤ 2"),
}
"""Call -> most launches and most waits, where a bound was set."""


def fused_attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    """Attention as GPUs compute it: one launch forward, three backward. Shapes only."""
    found: Tensor = FusedAttention.apply(q, k, v)  # type: ignore[no-untyped-call]
    return found


class FusedAttention(torch.autograd.Function):
    """See `fused_attention`; q, k and v are [B, heads, n, d]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One launch."""
        ctx.save_for_backward(q, k, v)
        device.NOTED.kernel(4 * q.nbytes, 4 * q.numel() * k.shape[2])
        batch, heads, tokens, width = q.shape
        made = torch.empty(batch, tokens, heads, width, dtype=q.dtype, device=q.device)
        return made.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Three launches: the sums of rows, and the two halves of the gradients."""
        q, k, v = ctx.saved_tensors
        device.NOTED.kernel(2 * q.nbytes)
        device.NOTED.kernel(8 * q.nbytes, 10 * q.numel() * k.shape[2])
        device.NOTED.kernel(2 * q.nbytes)
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def counted(
    name: str, call: Callable[[], Any], before: Callable[[], Any] | None = None, sized: bool = True
) -> Counts:
    """Costs of a call, after one that makes what is made once; `before` is not counted."""
    for _ in range(2):
        if before is not None:
            before()
        noted = device.NOTED
        noted.clear()
        start = noted.live
        call()
        found = Counts(
            name, noted.launches, noted.syncs, noted.sent, noted.moved, noted.flops,
            noted.peak - start, sized,
            ", ".join(f"{count} at {place}" for place, count in noted.waits.most_common(2)),
        )  # fmt: skip
    return found


@contextmanager
def replica(size: Size, values: bool) -> Iterator[LocalExperts]:
    """Eight random experts of a size on the pretended device; without values: shapes only."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write = write_base if values else write_zeros
        base = inspect(str(write(size, folder / "base")), "pool.base")
        data = write_data(size, TASKS, ROWS, folder / "data")
        with device.pretending():
            if values:
                made = random_vectors(base, TASKS, "cpu")
                yield experts(base, unflatten(flatten(made), "cuda"), data, "cuda")
                return
            attention = patch("torch.nn.functional.scaled_dot_product_attention", fused_attention)
            with device.shapes_only(), attention:
                shapes = {name: base.tensors[name].shape for name in tower(base)}
                shaped = {name: (shape, torch.float32) for name, shape in shapes.items()}
                deltas = packed(shaped, "cuda", lead=(len(TASKS),))
                vectors = TaskVectors(TASKS, packed(shaped, "cuda"), deltas)
                yield experts(base, vectors, data, "cuda")


def batch_of(local: LocalExperts, size: int, tasks: tuple[str, ...] = TASKS[:1]) -> Batch:
    """Rows of tasks; rows on disk are few, so they repeat."""
    rows = torch.arange(size) % ROWS
    return Batch(tuple(local.runner.batch(task, ROLE, rows).parts[0] for task in tasks))


def passes(local: LocalExperts) -> Iterator[Counts]:
    """Evaluation and the steps of learning methods."""
    tasks, groups = len(TASKS), len(local.runner.pipeline.groups)
    pipeline, shard = local.runner.pipeline, local.runner.pipeline.shards[0]
    weights = pipeline.weights("task_arithmetic", {"scale": 0.3})
    batch, cuts = batch_of(local, EVALUATED), Cuts([slice(0, EVALUATED)])
    yield counted(
        "evaluation batch",
        lambda: local.runner.headed(TASKS[0], pipeline.embed(weights, [batch]), cuts),
    )
    coded = Weights("", coding=torch.full((64, tasks, 1), 0.3))
    yield counted(
        "evaluation batch, a model a sample (64)",
        lambda: list(pipeline.embed_coded([(batch_of(local, 64), coded)])),
    )

    def taught(together: list[list[str]], models: int, groups: int) -> Callable[[], Any]:
        rows = torch.arange(ROWS)
        asked = [
            MicroBatch(dict.fromkeys(names, rows), torch.full((models, tasks, groups), 0.3))
            for names in together
        ]
        return lambda: local.gradients(asked, ROLE, Trim())

    yield counted("AdaMerging step", taught([list(TASKS)], 1, groups))
    together = stacks(TASKS, ROWS, local.runner.stacked)
    for name, each in (("DAWE step", 1), ("DAWE step, a model a sample", ROWS)):
        yield counted(name, taught(together, each * len(together[0]), 1))
    for name, method in (("WE-MoE step", "wemoe"), ("Concrete step", "concrete_task_arithmetic")):
        recipe = Recipe(method, {"batch_size": ROWS})
        plan = plan_of(recipe, TASKS, pipeline.groups)
        steps = TrainingCall(local.runner, recipe, plan, 0)
        steps.begin(None, 0)
        yield counted(name, partial(next, map(steps.step, range(2))))
        shard.in_model.drop(steps.key)


def statistics(local: LocalExperts) -> Iterator[Counts]:
    """A batch of an expert's statistics."""
    collector = local.runner.pipeline.shards[0].collector
    batch, weights = batch_of(local, 32), Weights("expert", coding=torch.full((1, 8, 1), 0.3))
    numbers = iter(range(9))
    yield counted(
        "Gram matrices, batch of 32",
        lambda: collector.gram_forward(next(numbers), batch, weights),
    )
    collector.forget()
    numbers = iter(range(9))

    def fisher() -> None:
        collector.fisher_forward(next(numbers), "call", batch, weights)
        collector.fisher_finish("call", TASKS[0], "batch", 0)

    yield counted("Fisher information, batch of 32", fisher)
    collector.forget()


MERGES: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"scale": 0.3},
    "weighted_average": {"weights": [0.5, 1, 1, 1, 1, 1, 1, 1.5]},
    "simple_average": {},
    "wise_ft": {"expert": TASKS[0]},
    "uniform_soup": {},
    "magmax": {},
    "dare": {"density": 0.5},
}
"""Merges that read no values on the host."""

SURVEYED: dict[str, dict[str, Any]] = {
    "ties": {"density": 0.2},
    "breadcrumbs": {},
    "slerp": {"experts": list(TASKS[:2])},
    "model_stock": {},
    "tsv_m": {},
    "iso_c": {},
    "iso_cts": {},
}
"""Merges that read values on the host: counted on the thin model."""


def merges(
    local: LocalExperts, methods: dict[str, dict[str, Any]], sized: bool
) -> Iterator[Counts]:
    """Merges into the resident model, their surveys apart."""
    pipeline, shard = local.runner.pipeline, local.runner.pipeline.shards[0]
    for name, params in methods.items():
        if METHODS[name].surveyed:
            forget = pipeline.surveys.clear
            call = partial(pipeline.weights, name, params)
            yield counted(f"{name} survey", call, forget, sized)
        weights = pipeline.weights(name, params)
        yield counted(name, partial(shard.merge, weights, shard.resident.arena), sized=sized)


def with_statistics(local: LocalExperts) -> Iterator[Counts]:
    """Merges that read statistics, which are on the device here."""
    shard = local.runner.pipeline.shards[0]
    vectors = shard.vectors.into(shard.resident.arena)
    squares = {name: torch.empty_like(delta) for name, delta in shard.vectors.deltas.items()}
    inputs = MergeInputs(survey=(1.0,) * len(TASKS), statistics=squares)
    yield counted("fisher", lambda: METHODS["fisher"].merge(vectors, inputs))
    yield counted("inner products of task vectors", lambda: shard.gram())


def coded(local: LocalExperts) -> Iterator[Counts]:
    """Merges of learned codings."""
    shard, tasks = local.runner.pipeline.shards[0], len(TASKS)
    for name, groups in (("coding by task", 1), ("coding by tensor", len(shard.vectors.groups))):
        weights = Weights("", coding=torch.rand(1, tasks, groups))
        yield counted(name, partial(shard.merge, weights, shard.resident.arena))


def decompositions() -> Iterator[Counts]:
    """Batched polar factors and leading directions of matrices as large as B/32's, of decaying
    singular values, and none that must be decomposed."""
    width, draw = B32.width, torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(4, width, width, generator=draw).double()).Q for _ in range(2)
    )
    values = torch.logspace(0, -3, width, dtype=torch.float64)
    with device.pretending():
        stack = (left * values @ right).float().to("cuda")
        yield counted(
            f"polar factors, 4 of [{width}, {width}]",
            lambda: polar_factors(stack, stack.dtype),
        )
        count = width // len(TASKS)
        yield counted(
            f"{count} leading directions, 4 of [{width}, {width}]",
            lambda: leading_directions(stack, count, stack.dtype),
        )


def run() -> list[Counts]:
    """All counts."""
    with replica(B32, False) as local:
        found = [*passes(local), *statistics(local), *merges(local, MERGES, True)]
        found += [*coded(local), *with_statistics(local)]
    with replica(THIN, True) as local:
        found += merges(local, SURVEYED, False)
    return [*found, *decompositions()]


def page(found: list[Counts]) -> str:
    """The counts as Markdown."""
    head = ["call", "launches", "bound", "waits", "bound", "MB sent", "GB moved", "TFLOP"]
    head += ["peak GB", "waits most"]
    lines = [
        "# counts",
        "",
        f"`{command()}`, {datetime.now(UTC).date()}: {machine()}.",
        f"CLIP ViT-B/32, {len(TASKS)} experts, {ROWS} images of each task in a step, {EVALUATED} in"
        " an evaluation batch; counts, not times. Peak: beyond what was there before the call.",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *("| " + " | ".join(each.cells()) + " |" for each in found),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Count, print, and keep with `--save`."""
    text = page(run())
    print(text)
    if "--save" in sys.argv:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"counts_{datetime.now(UTC).date()}.md").write_text(text)


if __name__ == "__main__":
    main()
