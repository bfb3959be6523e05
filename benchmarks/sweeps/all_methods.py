"""Every method of the project on the real eight, in one sweep: what each finds, takes and holds.

    python -m benchmarks.sweeps.all_methods DATA [--save]

DATA is the folder of the real eight. Runs `sweeps/configs/real8_all.yaml` with `sweeps run`, as a
user would, on the pool that `benchmarks.sweeps.real8` trained (or trains it), then each row's
method once more, alone in a process (`benchmarks.sweeps.alone`), and writes
results/all_methods_real8_<date>.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import yaml

import sweeps
from benchmarks.environment import RESULTS, machine
from benchmarks.sweeps.real8 import POOL, TASKS, run, train_spec
from benchmarks.tables import compared

CONFIG = Path(sweeps.__file__).parent / "configs" / "real8_all.yaml"
FOLDER = Path("outputs/real8-all")


def trained(data: Path) -> None:
    """The pool, unless it is there."""
    if (POOL / "pool.yaml").exists():
        return
    path = Path("outputs/real8-train.yaml")
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(train_spec(data), sort_keys=False))
    run("train", str(path))


def memory(spec: Path) -> list[str]:
    """What each row's method holds alone, and its time a trial, as Markdown."""
    lines = ["| method | s a trial | trials | MB beside the loaded pool |", "|---|---|---|---|"]
    for row in json.loads((FOLDER / "comparison.json").read_text())["rows"]:
        words = [str(spec), row["method"], json.dumps(row["params"])]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.sweeps.alone", *words],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # as Ray's actors have it
            stdout=subprocess.PIPE,
            text=True,
        )
        time = f"{row['cost']['trial_s']:.2f} | {row['trials']}"
        lines.append(f"| {row['method']} | {time} | {done.stdout.split()[-1]} |")
        print(lines[-1], flush=True)
    return lines


def page(seconds: float, held: list[str]) -> str:
    """The Markdown page."""
    lines = [
        "# All methods on the real eight",
        "",
        f"{datetime.now(UTC).date()}, "
        f"`python -m benchmarks.sweeps.all_methods DATA --save`: {machine()}.",
        "",
        f"- `sweeps run sweeps/configs/{CONFIG.name}`: {seconds:.0f} s, two calls at a time",
        "",
        "With the task known: `experts`, `emr`, `tall_mask`, `oracle_single`, and what is fitted"
        " task by task.",
        "",
        *compared(FOLDER, TASKS),
        "## Time and memory",
        "",
        "Seconds of a trial of the sweep, two at a time on two cores. Memory: the peak of an"
        " evaluation on the select split above what the process held with the pool loaded, alone in"
        " a process; of a method that learns, of three steps and an evaluation. The model is small"
        " (width 96): most of it is activations.",
        "",
        *held,
        "",
        "## Sweep",
        "",
        "```yaml",
        CONFIG.read_text().strip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Train where needed, sweep, write."""
    data = Path(sys.argv[1]).resolve()
    trained(data)
    spec = Path("outputs/real8-all.yaml")
    settings = yaml.safe_load(CONFIG.read_text())
    for task in TASKS:
        settings["tasks"][task]["dataset"] = str(data / task)
    spec.write_text(yaml.safe_dump(settings, sort_keys=False))
    seconds = run("run", str(spec), "--fresh")
    text = page(seconds, memory(spec))
    print(text)
    if "--save" in sys.argv:
        (RESULTS / f"all_methods_real8_{datetime.now(UTC).date()}.md").write_text(text)


if __name__ == "__main__":
    main()
