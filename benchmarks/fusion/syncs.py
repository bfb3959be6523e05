"""Where the host waits for a GPU: waits and launches a call, counted on the tests' pretended GPU.

Small CLIPs of random weights: what is counted depends on the numbers of tensors and tasks, which
are said, not on their sizes. The pretended device (`tests/pretend`) needs g++; no GPU is used.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.pretend import building

building.load()  # before PyTorch is imported

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from tests.pretend import device  # noqa: E402

device.install()

from actors.artifacts.recipe import Recipe  # noqa: E402
from actors.data.task import Splits, TaskSource, open_task  # noqa: E402
from actors.data.task_rows import Cuts  # noqa: E402
from actors.experts.embedding_cache import embedding_cache  # noqa: E402
from actors.experts.local import LocalExperts, local_experts  # noqa: E402
from actors.experts.predict import model_weights  # noqa: E402
from actors.experts.prepare_data import prepare_data  # noqa: E402
from actors.pool.pool import open_pool  # noqa: E402
from actors.shards.messages import Weights  # noqa: E402
from benchmarks.environment import Row, finish  # noqa: E402
from fusion.methods.learned.steps import MicroBatch  # noqa: E402
from fusion.task_vectors.sparsify import Trim  # noqa: E402
from tests.tiny_pool import TASKS, make_pool  # noqa: E402

BATCH = 8
"""Images of a task in a step."""


@contextmanager
def standing() -> Iterator[LocalExperts]:
    """A replica of the tests' tiny pool on the pretended device."""
    with tempfile.TemporaryDirectory() as place:
        os.environ["FUSION_SWEEPS_CACHE"] = place
        root = make_pool(Path(place) / "pool").root
        pool = open_pool(str(root / "base"), {t: str(root / "experts" / t) for t in TASKS})
        tasks = {t: open_task(TaskSource(t, str(root / "data" / t))) for t in TASKS}
        data = prepare_data(pool.base, tasks, Splits(), ["fit", "select"], Path(place))
        kept = embedding_cache(Path(place), pool, "cuda", {})
        with device.pretending():
            yield local_experts(pool, data, kept, device="cuda")


def counted(name: str, call: Callable[[], Any], per: int = 1, how: str = "") -> list[Row]:
    """Waits and launches of one call, and where the host waits most."""
    call()  # what is made once is there
    with device.pretending() as noted:
        call()
        often = ", ".join(f"{count} at {place}" for place, count in noted.waits.most_common(3))
        return [
            Row(f"{name}: waits", noted.syncs / per, "", often),
            Row(f"{name}: launches", noted.launches / per, "", how),
        ]


def micro_batches(tasks: tuple[tuple[str, ...], ...], coding: Tensor) -> list[MicroBatch]:
    """One for each group of tasks."""
    return [MicroBatch(dict.fromkeys(group, torch.arange(BATCH)), coding, None) for group in tasks]


def merged(experts: LocalExperts, name: str, params: dict[str, Any]) -> Callable[[], Any]:
    """A survey and a merge into the resident model."""

    def call() -> None:
        weights = model_weights(experts.runner, Recipe(name, params))
        for shard in experts.runner.pipeline.shards:
            shard.merge(weights, shard.resident.arena)
            shard.filled = ""

    return call


def trained(experts: LocalExperts, name: str) -> Callable[[], Any]:
    """A training of two steps: the start of a call and a step can be counted apart."""
    recipe = Recipe(name, {"batch_size": BATCH})
    return lambda: experts.train(recipe, None, 0, 2, 0)


def evaluated(experts: LocalExperts, weights: Weights) -> Callable[[], Any]:
    """One batch through the resident model, and its logits on the host."""
    task = next(iter(TASKS))
    batch = experts.runner.batch(task, "select", slice(0, BATCH))
    cuts = Cuts([slice(0, BATCH)])
    embed = experts.runner.pipeline.embed
    return lambda: experts.runner.headed(task, embed(weights, [batch]), cuts)


def run() -> tuple[int, list[Row]]:
    """How many tensors are fused, and all figures."""
    with standing() as experts:
        groups = len(experts.runner.pipeline.groups)
        count = len(TASKS)
        tasks = tuple(TASKS)
        each, layers = torch.full((1, count, 1), 0.3), torch.full((1, count, groups), 0.3)
        sampled = torch.full((BATCH, count, 1), 0.3)
        alone = tuple((task,) for task in tasks)
        weights = model_weights(experts.runner, Recipe("task_arithmetic"))

        def taught(given: list[MicroBatch]) -> Callable[[], Any]:
            return lambda: experts.gradients(given, "fit", Trim())

        return groups, [
            *counted("evaluation batch", evaluated(experts, weights), how=f"{BATCH} images"),
            *counted("DAWE step", taught(micro_batches(alone, each)), how=f"{count} micro-batches"),
            *counted("DAWE step, a model a sample", taught(micro_batches(alone, sampled))),
            *counted(
                "AdaMerging step", taught(micro_batches((tasks,), layers)), how="all tasks at once"
            ),
            *counted("WE-MoE step", trained(experts, "wemoe"), 2, "with a call's beginning"),
            *counted("Concrete step", trained(experts, "concrete_task_arithmetic"), 2, "the same"),
            *(
                row
                for name, params in MERGES.items()
                for row in counted(f"{name} merge", merged(experts, name, params))
            ),
        ]


MERGES: dict[str, dict[str, Any]] = {
    "task_arithmetic": {}, "ties": {}, "dare": {}, "breadcrumbs": {}, "slerp":
    {"experts": list(TASKS)[:2]}, "model_stock": {}, "uniform_soup": {}, "tsv_m": {}, "iso_c": {},
    "fisher": {"examples": 8}, "regmean": {"examples": 8},
}  # fmt: skip
"""Merges with their surveys; statistics are there already."""


def main() -> None:
    """Count, print, and keep with `--save`."""
    tensors, rows = run()
    about = f"a tiny CLIP of {tensors} fused tensors, {len(TASKS)} tasks; counts, not times"
    finish("syncs", about, rows)


if __name__ == "__main__":
    main()
