"""A task with few real images and many drawn ones: what the filters of synthetic rows do.

    python -m benchmarks.vision.synthetic_rows [--save]

The task is `letters` of the embedded pool, the base that pool's. Real: 40 images. Synthetic: 700
images of another seed, of which every fourth has a wrong label. One fine-tuning for each line, by
`sweeps train`; nothing is chosen by the test images.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from actors.embedded import parquet
from actors.embedded.tasks import DRAWINGS, parts
from benchmarks.environment import RESULTS, command, machine
from benchmarks.sweeps.real8 import run

TASK, REAL, SYNTHETIC, WRONG = "letters", 40, 700, 4

NO_FILTER = {"clip_filter": False, "real_filter": False}

SETS: Mapping[str, Mapping[str, Any] | None] = {
    "real images alone": None,
    "and synthetic ones, no filter": NO_FILTER,
    "… `clip_filter`": {"real_filter": False},
    "… `real_filter`": {"clip_filter": False},
    "… both": {},
}

FINE_TUNE = {"epochs": 60, "batch_size": 32, "learning_rate": 1e-3}


def draw(root: Path) -> None:
    """The real and the synthetic data set."""
    words = DRAWINGS[TASK]
    real = parts(TASK, 1, REAL)
    made = {"train": parts(TASK, 2, SYNTHETIC)["train"]}
    labels, classes = made["train"].labels, len(words.classnames)
    labels[::WRONG] = (
        labels[::WRONG] + 1 + np.arange(len(labels[::WRONG])) % (classes - 1)
    ) % classes
    for name, split in (("real", real), ("synthetic", made)):
        (root / name).mkdir()
        parquet.write(root / name, split, words.classnames, words.templates)


def trained(root: Path, at: int, filters: Mapping[str, Any] | None) -> str:
    """One fine-tuning; a line of the table without its name."""
    out = root / f"pool{at}"
    task: dict[str, Any] = {"dataset": str(root / "real")}
    if filters is not None:
        task["synthetic"] = {"dataset": str(root / "synthetic"), **filters}
    spec = {
        "name": f"synthetic-{at}", "out": str(out), "base": "embedded:base",
        "tasks": {TASK: task}, "finetune": FINE_TUNE,
    }  # fmt: skip
    path = root / f"{at}.yaml"
    path.write_text(yaml.safe_dump(spec))
    run("train", str(path))
    (found,) = (json.loads(each.read_text()) for each in (out / "trained").glob("*.json"))
    kept = "–"
    if filters is not None:
        kept = f"{json.loads((out / 'synthetic.json').read_text())[TASK]['kept']} of {SYNTHETIC}"
    return f"{kept} | {100 * found['report']:.1f}"


def main() -> None:
    """Draw, train, print, and keep with `--save`."""
    with tempfile.TemporaryDirectory(prefix="synthetic-") as folder:
        root = Path(folder)
        draw(root)
        rows = [f"| {name} | {trained(root, at, filters)} |"
                for at, (name, filters) in enumerate(SETS.items())]  # fmt: skip
    text = "\n".join([
        "# Few real images and many synthetic ones", "",
        f"{datetime.now(UTC).date()}, `{command()}`: {machine()}.", "",
        (__doc__ or "").split("\n\n")[2].strip(), "",
        "| trained on | synthetic images kept | test accuracy, % |", "|---|---|---|", *rows, "",
    ])  # fmt: skip
    print(text)
    if "--save" in sys.argv:
        (RESULTS / f"synthetic_rows_{datetime.now(UTC).date()}.md").write_text(text)


if __name__ == "__main__":
    main()
