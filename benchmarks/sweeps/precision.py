"""Products of activations in bfloat16 against float32: top-1 agreement, and time.

    python -m benchmarks.sweeps.precision [--save] [--threads 1] [--device cpu]

Two pools: the embedded one (`sweeps quickstart` builds it), with merged models, experts and DaWin's
models of single samples on its select rows, and AdaMerging's gradients; and a ViT-B/32 of random
weights, of which a forward pass is timed. Precisions take turns, a time is the median of three.
On a GPU, TF32 is measured too.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from actors.artifacts.recipe import Recipe
from actors.data.task import Splits, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import LocalExperts, local_experts
from actors.experts.model_runner import Precisions
from actors.experts.prepare_data import prepare_data
from actors.files.cache_dir import cache_dir
from actors.files.fingerprint import fingerprint
from actors.pool.pool import open_pool
from actors.shards.resident_model import ResidentModel
from benchmarks.environment import Row, finish
from benchmarks.fusion.layers import medians
from benchmarks.pools import B32, write_base
from fusion.merged_layers.precision import Precision, products
from fusion.methods.learned.steps import MicroBatch
from fusion.task_vectors.sparsify import Trim
from sweeps.spec.sweep import load

SPEC = Path(__file__).parents[2] / "sweeps/configs/quickstart.yaml"
RECIPES = {
    "task arithmetic, λ 0.3": Recipe("task_arithmetic", {"scale": 0.3}),
    "TIES": Recipe("ties"),
    "experts": Recipe("experts"),
    "DaWin, a model a sample": Recipe("dawin", {"granularity": "sample"}),
}
IMAGES = 8
"""Of the pass through ViT-B/32."""


def option(name: str, default: str) -> str:
    """Value of a command-line option."""
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def embedded(precisions: tuple[Precision, ...], device: str) -> list[Row]:
    """Rows of the embedded pool."""
    spec = load(str(SPEC))
    pool = open_pool(spec.pool.base, spec.pool.experts)
    tasks = {name: open_task(task.source(name)) for name, task in spec.tasks.items()}
    data = prepare_data(pool.base, tasks, Splits(), ["fit", "select"], cache_dir())
    rows = []
    with tempfile.TemporaryDirectory() as scratch:

        def experts_in(precision: Precision) -> LocalExperts:
            names = {
                name: fingerprint("benchmark", precision, name)
                for name in (*pool.tasks, "pretrained")
            }
            cache = EmbeddingCache(Path(scratch), names)
            return local_experts(pool, data, cache, device=device, precisions=Precisions(precision))

        found = {precision: experts_in(precision) for precision in precisions}
        exact = found["fp32"]
        wanted = {name: exact.logits(recipe, "select") for name, recipe in RECIPES.items()}
        coding = torch.full((1, len(pool.tasks), len(exact.runner.pipeline.groups)), 0.3)
        for precision in precisions[1:]:
            for name, recipe in RECIPES.items():
                logits = found[precision].logits(recipe, "select")
                same, total, far = compared(logits, wanted[name])
                how = f"{total} select rows; logits at most {far:.2g} apart"
                rows.append(
                    Row(f"embedded, {name}: top-1 equal in {precision} (%)", same, "≥ 97", how)
                )
            apart = distance(gradient(found[precision], coding), gradient(exact, coding))
            rows.append(
                Row(
                    f"embedded, AdaMerging: ∂L/∂coding in {precision}, off by", apart, "≤ 0.03",
                    "relative L2, layer-wise, 8 tasks × 16 images",
                )
            )  # fmt: skip
        recipe = RECIPES["task arithmetic, λ 0.3"]
        works = {each: partial(experts.logits, recipe, "select") for each, experts in found.items()}
        rows += faster("embedded, evaluation on select", works, device)
    return rows


def compared(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[float, int, float]:
    """(share of rows with the same top class in %, rows, largest difference of logits)."""
    same = sum(int((found[task].argmax(1) == z.argmax(1)).sum()) for task, z in wanted.items())
    rows = sum(len(z) for z in wanted.values())
    far = max(float((found[task] - z).abs().max()) for task, z in wanted.items())
    return 100 * same / rows, rows, far


def gradient(experts: LocalExperts, coding: Tensor) -> Tensor:
    """∂L/∂coding of a step of AdaMerging."""
    rows = {task: torch.arange(16) for task in experts.runner.tasks}
    (found,) = experts.gradients([MicroBatch(rows, coding)], "fit", Trim())
    return found.coding


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative L2 difference."""
    return float((found - wanted).norm() / wanted.norm())


def faster(what: str, works: Mapping[Precision, Callable[[], object]], device: str) -> list[Row]:
    """How many times faster than float32 each precision is."""
    seconds = medians({str(name): work for name, work in works.items()}, 3, device)
    exact = seconds.pop("fp32")
    return [
        Row(f"{what}: fp32 ÷ {name}", exact / taken, "", f"{exact:.3g} s, {taken:.3g} s")
        for name, taken in seconds.items()
    ]


def large(precisions: tuple[Precision, ...], device: str) -> list[Row]:
    """Rows of ViT-B/32."""
    with tempfile.TemporaryDirectory() as scratch:
        model = ResidentModel(write_base(B32, Path(scratch) / "base"), device)
        draw = torch.Generator().manual_seed(0)
        shape = (IMAGES, 3, B32.image, B32.image)
        pixels = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
        inputs = model.inputs.collate([{"pixels": pixels}])

        def run(precision: Precision) -> Tensor:
            with products(precision, torch.device(device)):
                return model.outputs(inputs).float()

        exact, rows = run("fp32"), []
        for precision in precisions[1:]:
            how = f"relative L2 of {IMAGES} embeddings"
            rows.append(
                Row(f"b32, embeddings in {precision}, off by", distance(run(precision), exact),
                    "", how)
            )  # fmt: skip
        works = {each: partial(run, each) for each in precisions}
        return rows + faster(f"b32, forward pass of {IMAGES} images", works, device)


def main() -> None:
    """Print the table."""
    device, threads = option("--device", "cpu"), int(option("--threads", "1"))
    torch.set_num_threads(threads)
    every: tuple[Precision, ...] = ("fp32", "bf16")
    precisions = (*every, "tf32") if device == "cuda" else every
    rows = [*embedded(precisions, device), *large(precisions, device)]
    finish("precision", f"embedded pool and ViT-B/32, {threads} thread(s), {device}", rows)


if __name__ == "__main__":
    main()
