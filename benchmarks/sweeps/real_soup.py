"""Soups on real images: ingredients of one task, every soup, ensemble and classifier of embeddings.

    python -m benchmarks.sweeps.real_soup DATA [--save]

DATA is the folder of the real eight. The base is theirs (`benchmarks.sweeps.real8` made it, or it
is made
here). Twelve fine-tunings of fashion_mnist, drawn from the search space of model soups' 72 runs,
and their averages by SWA, are the ingredients; shift sets are corruptions of the test images. Runs
`sweeps train`, `sweeps run` and `sweeps analyse`, as a user would.
"""

from __future__ import annotations

import json
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks.environment import RESULTS, machine
from benchmarks.sweeps.real8 import POOL, run, train_spec
from benchmarks.tables import compared

TASK = "fashion_mnist"
OUT = Path("outputs/real-soup-pool")
NAME = "real-soup"
SHIFTS = {
    name: {"corruption": name, "severity": 3}
    for name in ("gaussian_noise", "motion_blur", "contrast", "pixelate")
}
METHODS = {
    "greedy_soup": {
        "order": {"grid": ["validation", "random", "angle"]}, "tie": {"grid": ["ge", "gt"]},
    },
    "learned_soup": {
        "granularity": {"grid": ["global", "block", "tensor"]}, "steps": 100, "batch_size": 128,
    },
    "ensemble": {"average": {"grid": ["logits", "probabilities"]}},
    "greedy_ensemble": {"calibrated": {"grid": [False, True]}, "tie": {"grid": ["ge", "gt"]}},
    "linear_probe": {"C": {"loguniform": [0.01, 100.0]}, "trials": 4},
    "wise_ft_linear": {"C": {"grid": [1.0, 10.0, 100.0]}},
    "tip_adapter": {"shots": {"grid": [4, 16, 64]}},
    "tip_adapter_f": {"shots": {"grid": [16, 64]}},
    "clip_adapter": {"shots": {"grid": [16, 64]}},
    "cafo": {"shots": 16},
}  # fmt: skip


def ingredients_spec(data: Path) -> dict[str, Any]:
    """What `sweeps train` gets."""
    return {
        "name": "real-soup-pool",
        "out": str(OUT),
        "base": str(POOL / "base"),
        "tasks": {TASK: {"dataset": str(data / TASK)}},
        "finetune": {
            "learning_rate": {"loguniform": [3.0e-5, 1.0e-3]},
            "weight_decay": {"loguniform": [1.0e-4, 0.5]},
            "epochs": {"choice": [4, 8, 12]},
            "label_smoothing": {"choice": [0.0, 0.1]},
            "mixup": {"choice": [0.0, 0.4]},
            "augmentation": {"choice": ["none", "crop", "randaugment"]},
            "swa": 0.25,
            "trials": 12,
        },
        "keep": "all",
        "shifts": SHIFTS,
    }


def sweep_spec(data: Path) -> dict[str, Any]:
    """What `sweeps run` gets: the pool as it was written, and the best single run by WiSE-FT."""
    pool = yaml.safe_load((OUT / "pool.yaml").read_text())["pool"]
    select = {name: json.loads((Path(at) / "scores.json").read_text())["select"]
              for name, at in pool["experts"].items()}  # fmt: skip
    best = max(sorted(select), key=lambda name: select[name])
    alphas = [round(0.1 * step, 1) for step in range(11)]
    return {
        "name": NAME,
        "pool": pool,
        "tasks": {TASK: {"dataset": str(data / TASK)}},
        "methods": {**METHODS, "wise_ft": {"expert": best, "alpha": {"grid": alphas}}},
        "shifts": SHIFTS,
    }


def shifted(folder: Path) -> list[str]:
    """Accuracies on the shift sets."""
    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    lines = ["| method | test | " + " | ".join(SHIFTS) + " | mean of shifts |"]
    lines += ["|---" * (len(SHIFTS) + 3) + "|"]
    for row in rows:
        found = [row["shifts"][name]["acc/mean"] for name in SHIFTS]
        cells = [row["test"]["acc/mean"], *found, sum(found) / len(found)]
        lines.append(f"| {row['method']} | " + " | ".join(f"{100 * v:.1f}" for v in cells) + " |")
    return lines


def main() -> None:
    """Train, sweep, analyse, write."""
    data = Path(sys.argv[1]).resolve()
    seconds: dict[str, float] = {}
    if not (POOL / "base").is_dir():
        seconds["sweeps train (the base)"] = command("real8-train.yaml", train_spec(data), "train")
    seconds["sweeps train"] = command("real-soup-train.yaml", ingredients_spec(data), "train")
    spec = sweep_spec(data)
    seconds["sweeps run"] = command("real-soup.yaml", spec, "run", "--fresh")
    seconds["sweeps analyse"] = command("real-soup.yaml", spec, "analyse")
    folder = Path("outputs") / NAME
    said = [
        f"{part.stem}: {line}"
        for part in sorted((folder / "analysis").glob("*.json"))
        for line in json.loads(part.read_text()).get("lines", [])
    ]
    text = "\n".join([
        "# Soups on real images", "",
        f"{datetime.now(UTC).date()}, "
        f"`python -m benchmarks.sweeps.real_soup DATA --save`: {machine()}.",
        "", *(f"- `{name}`: {value:.0f} s" for name, value in seconds.items()), "",
        *compared(folder, [TASK]), "## Shift sets", "", *shifted(folder), "",
        "## Geometry", "", *(f"- {line}" for line in said), "",
        "## Ingredients", "", "```yaml",
        yaml.safe_dump(ingredients_spec(Path("DATA")), sort_keys=False).strip(), "```", "",
        "## Sweep", "", "```yaml", yaml.safe_dump(METHODS, sort_keys=False).strip(), "```", "",
    ])  # fmt: skip
    print(text)
    if "--save" in sys.argv:
        day = datetime.now(UTC).date()
        (RESULTS / f"real_soup_{day}.md").write_text(text)
        for plot in sorted((folder / "analysis" / "plots").glob("*.png")):
            shutil.copy(plot, RESULTS / f"real_soup_{plot.name}")


def command(file: str, spec: dict[str, Any], word: str, *more: str) -> float:
    """One command of ours on a spec; seconds."""
    path = Path("outputs") / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return run(word, str(path), *more)


if __name__ == "__main__":
    main()
