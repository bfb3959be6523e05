"""The real eight: a pool trained on real images, and every method swept on it.

    python -m benchmarks.sweeps.real8 DATA [--save]

DATA holds one folder a task (mnist, …), each with train.parquet and test.parquet. Runs
`sweeps train` (a small CLIP pretrained jointly for a short while, then one expert a task) and
`sweeps run`, as a user would, and writes spec, pool and comparison to results/real8_<date>.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks.environment import RESULTS, machine
from benchmarks.tables import compared

TASKS = (
    "mnist",
    "fashion_mnist",
    "quickdraw",
    "omniglot_alphabets",
    "clothing",
    "sign_digits",
    "blood_cells",
    "spoken_digits",
)

POOL = Path("outputs/real8-pool")

METHODS = {
    "simple_average": {},
    "weighted_average": {
        "weights": {task: {"uniform": [0.0, 1.0]} for task in TASKS},
        "trials": 24,
        "searcher": "cmaes",
    },
    "task_arithmetic": {"scale": {"grid": [round(0.1 * step, 1) for step in range(1, 11)]}},
    "ties": {
        "density": {"grid": [0.1, 0.2, 0.5]},
        "scale": {"uniform": [0.2, 2.0]},
        "trials": 6,
        "searcher": "tpe",
    },
    "wise_ft": {"expert": {"grid": list(TASKS)}, "alpha": {"grid": [0.25, 0.5, 0.75]}},
    "ensemble": {"average": {"grid": ["logits", "probabilities", "features"]}},
    "adamerging": {
        "grouping": {"grid": ["task", "layer"]},
        "scale": {"grid": [0.05, 0.3]},
        "learning_rate": 1e-3,
        "steps": 100,
    },
    # A gate as the original has it, and one whose codings stay on the simplex.
    "dawe": {
        "extractor": str(POOL / "base"),
        "grouping": {"grid": ["task", "layer"]},
        "softmax": {"grid": [False, True]},
        "rate": "per_norm",
        "learning_rate": {"grid": [1e-3, 1e-2]},
        "steps": 200,
    },
    "dawin": {"granularity": {"grid": ["domain", "cluster", "sample"]}},
}


def train_spec(data: Path) -> dict[str, Any]:
    """What `sweeps train` gets."""
    return {
        "name": "real8-pool",
        "out": str(POOL),
        "pretrain": {
            "patch": 4,
            "width": 96,
            "layers": 3,
            "heads": 4,
            "mlp": 192,
            "steps": 1500,
            "batch_size": 128,
        },
        "tasks": {task: {"dataset": str(data / task)} for task in TASKS},
        "finetune": {"epochs": 6, "batch_size": 64, "learning_rate": {"grid": [1.5e-4, 3.0e-4]}},
    }


def sweep_spec(data: Path) -> dict[str, Any]:
    """What `sweeps run` gets."""
    return {
        "name": "real8-methods",
        "pool": {
            "base": str(POOL / "base"),
            "experts": {task: str(POOL / "experts" / task) for task in TASKS},
        },
        "tasks": {task: {"dataset": str(data / task)} for task in TASKS},
        "methods": METHODS,
    }


def run(*words: str) -> float:
    """One command of ours; seconds. Ends this program where it fails."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sweeps", *words], check=True)
    return time.perf_counter() - start


def result(data: Path, seconds: dict[str, float]) -> str:
    """The Markdown page."""
    folder = Path("outputs/real8-methods")
    shown = json.loads(json.dumps(sweep_spec(Path("DATA"))))
    lines = [
        "# The real eight",
        "",
        f"{datetime.now(UTC).date()}, "
        f"`python -m benchmarks.sweeps.real8 DATA --save`: {machine()}.",
        "",
        *(f"- `{command}`: {value:.0f} s" for command, value in seconds.items()),
        "",
        *compared(folder, TASKS),
        "## Pool",
        "",
        "```yaml",
        yaml.safe_dump(train_spec(Path("DATA")), sort_keys=False).strip(),
        "```",
        "",
        "## Sweep",
        "",
        "```yaml",
        yaml.safe_dump(shown, sort_keys=False).strip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Train, sweep, write."""
    data = Path(sys.argv[1]).resolve()
    seconds = {}
    for name, words, spec in (
        ("real8-train.yaml", ("train",), train_spec(data)),
        ("real8.yaml", ("run",), sweep_spec(data)),
    ):
        path = Path("outputs") / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(spec, sort_keys=False))
        more = ("--fresh",) if words == ("run",) else ()
        seconds[f"sweeps {words[0]} {name}"] = run(*words, str(path), *more)
    text = result(data, seconds)
    print(text)
    if "--save" in sys.argv:
        (RESULTS / f"real8_{datetime.now(UTC).date()}.md").write_text(text)


if __name__ == "__main__":
    main()
