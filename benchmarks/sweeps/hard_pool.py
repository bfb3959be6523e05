"""A pool whose base has not seen the tasks' classes: half of each real data set is for the base.

    python -m benchmarks.sweeps.hard_pool DATA

DATA holds a folder a data set, each with train.parquet and test.parquet: the real eight, and
pneumonia. Makes outputs/hard8-sets and trains outputs/hard8-pool with `sweeps train`:

* `tasks/NAME`: the classes with odd labels. An expert is fine-tuned on each.
* `others/NAME`: the classes with even labels. The base is pretrained on these, on the eight
  embedded image tasks and on pneumonia.

Nothing else decides which half a class is in. blood_cells has three classes: all are in its task,
and the base sees none of them. Odd rather than even: four of fashion_mnist's five even classes are
garments for the upper body, which 32x32 images hardly tell apart.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from actors.embedded.tasks import DRAWINGS, SCANNED
from benchmarks.sweeps.real8 import TASKS, run

SETS = Path("outputs/hard8-sets")
BASE = Path("outputs/hard8-base")
POOL = Path("outputs/hard8-pool")

WHOLE = "blood_cells"
EXTRA = "pneumonia"


def half(source: Path, out: Path, odd: bool) -> None:
    """The rows of `source` whose label is odd (or even), with labels 0, 1, … and their names."""
    import datasets

    out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        rows = datasets.Dataset.from_parquet(str(source / f"{split}.parquet"), keep_in_memory=True)
        labels = rows["label"]
        names = datasets.ClassLabel(names=rows.features["label"].names[odd::2])
        kept = [row for row, label in enumerate(labels) if label % 2 == odd]
        renumbered = [labels[row] // 2 for row in kept]
        part = rows.select(kept, keep_in_memory=True).remove_columns("label")
        part.add_column("label", renumbered, feature=names).to_parquet(
            str(out / f"{split}.parquet")
        )


def make(data: Path) -> None:
    """The halves of all data sets, as far as they are missing."""
    for task in TASKS:
        for name, odd in (("tasks", True), ("others", False)):
            out = SETS / name / task
            if task != WHOLE and not (out / "test.parquet").exists():
                half(data / task, out, odd)


def entry(folder: Path) -> dict[str, Any]:
    """A task of a file, with its class names: those built in for `mnist`, say, are of all ten."""
    import datasets
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(folder / "train.parquet")
    names = datasets.Features.from_arrow_schema(schema)["label"].names
    return {"dataset": str(folder), "classnames": list(names)}


def task_sets(data: Path) -> dict[str, Any]:
    """`tasks` of the experts and of sweeps over them."""
    return {task: entry(data / task if task == WHOLE else SETS / "tasks" / task) for task in TASKS}


def base_spec(data: Path) -> dict[str, Any]:
    """What `sweeps train` gets for the base. The fine-tunings of this file are not used."""
    others = {task: entry(SETS / "others" / task) for task in TASKS if task != WHOLE}
    return {
        "name": "hard8-base",
        "out": str(BASE),
        "pretrain": {
            "patch": 8,
            "width": 160,
            "layers": 3,
            "heads": 4,
            "mlp": 320,
            "steps": 3000,
            "batch_size": 128,
        },
        "tasks": {
            **{task: {"dataset": f"embedded:{task}"} for task in (SCANNED, *DRAWINGS)},
            **others,
            EXTRA: {"dataset": str(data / EXTRA)},
        },
        "finetune": {"epochs": 0.01},
    }


def experts_spec(data: Path) -> dict[str, Any]:
    """What `sweeps train` gets for the experts."""
    return {
        "name": "hard8-pool",
        "out": str(POOL),
        "base": str(BASE / "base"),
        "tasks": task_sets(data),
        "finetune": {
            "epochs": 20,
            "batch_size": 64,
            "augmentation": "crop",
            "learning_rate": {"grid": [2.0e-4, 6.0e-4]},
        },
    }


def train(data: Path) -> dict[str, float]:
    """Sets, base and experts, as far as they are missing; command -> seconds."""
    make(data)
    seconds = {}
    for name, spec in (
        ("hard8-base.yaml", base_spec(data)),
        ("hard8-pool.yaml", experts_spec(data)),
    ):
        path = Path("outputs") / name
        path.write_text(yaml.safe_dump(spec, sort_keys=False))
        seconds[f"sweeps train {name}"] = run("train", str(path))
    return seconds


if __name__ == "__main__":
    for command, took in train(Path(sys.argv[1]).resolve()).items():
        print(f"{command}: {took:.0f} s")
