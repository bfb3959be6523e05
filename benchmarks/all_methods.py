"""Every method of the project on the real eight, in one sweep: what each finds, takes and holds.

    python -m benchmarks.all_methods DATA [--save]

DATA is the folder of the real eight. Runs `sweeps/configs/real8_all.yaml` with `sweeps run`, as a
user would, on the pool that `benchmarks.real8` trained (or trains it), and writes
results/all_methods_real8_<date>.md. Without --fresh, a sweep that was interrupted goes on.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import yaml

import sweeps
from benchmarks.environment import RESULTS, machine
from benchmarks.real8 import POOL, TASKS, run, train_spec
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


def page(seconds: float) -> str:
    """The Markdown page."""
    comparison = json.loads((FOLDER / "comparison.json").read_text())
    lines = [
        "# All methods on the real eight",
        "",
        f"{datetime.now(UTC).date()}, `python -m benchmarks.all_methods DATA --save`: {machine()}.",
        "",
        f"- `sweeps run sweeps/configs/{CONFIG.name}`: {seconds:.0f} s,"
        f" {len(comparison['rows'])} rows, two calls at a time on one replica",
        "",
        "Peak: the most that the replica's process held, resident, while any trial of the method"
        " ran (calls side by side share it); what it holds with the pool loaded, and the libraries,"
        " is in it. With the task known: `experts`, `emr`, `tall_mask`, `oracle_single`, and what"
        " is fitted task by task.",
        "",
        *compared(FOLDER, TASKS),
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
    found = (f"tasks.{task}.dataset={data / task}" for task in TASKS)
    words = [word for each in found for word in ("--set", each)]
    how = "--fresh" if "--fresh" in sys.argv else "--resume"
    seconds = run("run", str(CONFIG), *words, *([how] if FOLDER.exists() else []))
    text = page(seconds)
    print(text)
    if "--save" in sys.argv:
        (RESULTS / f"all_methods_real8_{datetime.now(UTC).date()}.md").write_text(text)


if __name__ == "__main__":
    main()
