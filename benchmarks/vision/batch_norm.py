"""Merged ResNets whose running statistics are measured again, against averaged ones.

    python -m benchmarks.vision.batch_norm [--save]

A small ResNet learns a drawn task of the embedded pool from random weights. Six fine-tunings of it,
with other rates, orders, augmentations and mixup, are the pool: once with batch norm that follows
the rows, once with `frozen_batchnorm`. Every row is accuracy on the test images; the statistics are
measured on unlabelled rows of `fit`, and no rate or scale is chosen by any of them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import torch

from actors.artifacts.recipe import BASE, Recipe
from actors.data.task import Splits, Task, TaskSource, open_task
from actors.data.task_rows import TaskData
from actors.embedded import parquet
from actors.embedded.tasks import DRAWINGS, parts
from actors.experts.embedding_cache import embedding_cache
from actors.experts.local import local_experts
from actors.experts.prepare_data import ROLES, prepare_data
from actors.families.registry import inspect, training_at
from actors.pool.pool import open_pool
from actors.pool.running import Policy
from benchmarks.environment import RESULTS, command, machine
from fusion.analysis.significance import wilson

TASK = "land"

TRAIN = 400
"""Training images: few, so that the models differ."""

FIRST: Mapping[str, Any] = {"epochs": 20, "batch_size": 32, "learning_rate": 3e-3, "seed": 0}
"""Of the base, from random weights."""

RUNS: Mapping[str, Mapping[str, Any]] = {
    "run_1": {"learning_rate": 1e-3, "seed": 1},
    "run_2": {"learning_rate": 1e-3, "seed": 2, "augmentation": "flip"},
    "run_3": {"learning_rate": 2e-3, "seed": 3, "mixup": 0.2},
    "run_4": {"learning_rate": 2e-3, "seed": 4, "augmentation": "crop_flip"},
    "run_5": {"learning_rate": 4e-3, "seed": 5},
    "run_6": {"learning_rate": 4e-3, "seed": 6, "mixup": 0.2, "augmentation": "flip"},
}
"""Fine-tunings, 12 epochs each."""

MERGES: Mapping[str, Recipe] = {
    "uniform_soup": Recipe("uniform_soup", {}),
    "wise_ft, run_5, α 0.5": Recipe("wise_ft", {"expert": "run_5", "alpha": 0.5}),
    "task_arithmetic, λ 0.3": Recipe("task_arithmetic", {"scale": 0.3}),
    "ties, λ 1": Recipe("ties", {"scale": 1.0}),
    "dare, λ 0.3": Recipe("dare", {"scale": 0.3}),
    "tsv_m": Recipe("tsv_m", {}),
    "iso_c": Recipe("iso_c", {}),
}


def write_random(folder: Path, classes: tuple[str, ...]) -> Path:
    """A ResNet of 0.7 million random weights, for images of 32 pixels."""
    from transformers import ResNetConfig, ResNetForImageClassification

    names = dict(enumerate(classes))
    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128],
        depths=[2, 2, 2],
        layer_type="basic",
        id2label=names,
        label2id={name: at for at, name in names.items()},
    )
    torch.manual_seed(0)
    ResNetForImageClassification(config).save_pretrained(folder)
    edge = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps({**edge, "crop_pct": 1.0}))
    return folder


def opened(root: Path) -> tuple[Task, Path]:
    """The drawn task, and the random model of its classes."""
    (root / TASK).mkdir()
    drawing = DRAWINGS[TASK]
    parquet.write(root / TASK, parts(TASK, 0, TRAIN), drawing.classnames, drawing.templates)
    task = open_task(TaskSource(TASK, str(root / TASK)), "image")
    return task, write_random(root / "random", task.classnames)


def accuracies(
    root: Path, runs: Mapping[str, Path], data: TaskData, policy: Policy
) -> dict[str, float]:
    """Row -> accuracy on the test images."""
    pool = open_pool(str(root / BASE), {name: str(folder) for name, folder in runs.items()})
    cache = embedding_cache(root / "cache", pool, "cpu", {})
    experts = local_experts(pool, {TASK: data}, cache, policy=policy)
    found = {}
    for name, recipe in {"base": Recipe(BASE), **MERGES}.items():
        found[name] = experts.evaluate(recipe, "report").metrics()["acc/mean"]
    for name in runs:
        alone = Recipe("wise_ft", {"expert": name, "alpha": 1.0})
        found[name] = experts.evaluate(alone, "report").metrics()["acc/mean"]
    return found


def measured(root: Path) -> tuple[dict[tuple[bool, Policy], dict[str, float]], int]:
    """(frozen, policy) -> accuracies; and the number of test images."""
    task, start = opened(root)
    data = prepare_data(inspect(str(start), BASE), {TASK: task}, Splits(), ROLES, root)[TASK]
    training = training_at(start)
    training.fine_tune(start, data, root / BASE, training.options(**FIRST), threads=2)
    found = {}
    for frozen in (False, True):
        runs = {}
        for name, given in RUNS.items():
            options = training.options(
                **{"epochs": 12, "batch_size": 32, "frozen_batchnorm": frozen, **given}
            )
            runs[name] = root / f"{name}-{frozen}"
            training.fine_tune(root / BASE, data, runs[name], options, threads=2)
        for policy in get_args(Policy):
            found[frozen, policy] = accuracies(root, runs, data, policy)
    return found, task.splits["test"]


def main() -> None:
    """Print the table; with `--save` keep it under results/."""
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        found, count = measured(Path(scratch))
    half = [wilson(round(0.9 * count), count)[side] for side in (0, 1)]
    columns = [(frozen, policy) for frozen in (False, True) for policy in get_args(Policy)]
    heads = [f"{'frozen' if frozen else 'trained'}, {policy}" for frozen, policy in columns]
    lines = [
        "# Batch norm of merged ResNets",
        "",
        f"`{command()}`, {datetime.now(UTC).date()}: {machine()}.",
        f"Accuracy in % on {count} test images of `{TASK}` (95 % interval at 90 %: "
        f"{100 * half[0]:.1f}–{100 * half[1]:.1f}). Columns: batch norm in fine-tuning, and the"
        " statistics of merged models.",
        "",
        f"| model | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
    ]
    for name in found[columns[0]]:
        values = " | ".join(f"{100 * found[column][name]:.1f}" for column in columns)
        lines.append(f"| {name} | {values} |")
    text = "\n".join([*lines, ""])
    print(text)
    if "--save" in sys.argv:
        (RESULTS / f"batch_norm_{datetime.now(UTC).date()}.md").write_text(text)


if __name__ == "__main__":
    main()
