"""Every method of the project on the hard eight, in one sweep: what each finds and what it costs.

    python -m benchmarks.sweeps.hard8 DATA [--save]

DATA is the folder of `benchmarks.sweeps.hard_pool`, which trains the pool unless it is there. Runs
`hard8_all.yaml` beside this file with `sweeps run`, as a user would (a sweep that is there already
is extended), and writes results/all_methods_hard8_<date>.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks.environment import RESULTS, machine
from benchmarks.sweeps.hard_pool import POOL, WHOLE, base_spec, experts_spec, train
from benchmarks.sweeps.real8 import TASKS, run
from benchmarks.tables import compared, costs, matrix

CONFIG = Path(__file__).with_name("hard8_all.yaml")
FOLDER = Path("outputs/hard8-all")


def pool_table() -> list[str]:
    """Classes, base and expert of each task."""
    found = json.loads((FOLDER / "experts.json").read_text())["scores"]
    lines = ["| task | classes | rate | base | expert |", "|---|---|---|---|---|"]
    for task in TASKS:
        recipe = yaml.safe_load((POOL / "experts" / task / "recipe.yaml").read_text())
        base, expert = (100 * found[model][task]["acc"] for model in ("pretrained", task))
        names = ", ".join(recipe["head"]["classnames"])
        rate = recipe["params"]["learning_rate"]
        lines.append(f"| {task} | {names} | {rate:g} | {base:.1f} | {expert:.1f} |")
    return lines


def shown(spec: Mapping[str, Any], data: Path) -> str:
    """A file's YAML, with DATA for the folder of the data."""
    text: str = yaml.safe_dump(spec, sort_keys=False, width=200)
    return text.replace(str(data), "DATA").strip()


def page(seconds: Mapping[str, float], data: Path) -> str:
    """The Markdown page."""
    return "\n".join([
        "# All methods on the hard eight", "",
        f"{datetime.now(UTC).date()}, "
        f"`python -m benchmarks.sweeps.hard8 DATA --save`: {machine()}.",
        "", *(f"- `{command}`: {value:.0f} s" for command, value in seconds.items()), "",
        "## Pool", "",
        "An expert's task has the classes of odd label of its data set; the base was pretrained on"
        " the others. Accuracy on test, in %.", "",
        *pool_table(), "",
        *compared(FOLDER, TASKS),
        "## Costs", "",
        "[The comparison](../../docs/report.md#what-a-row-costs) explains the columns. Further"
        " numbers and bits are stored on top of one model.", "",
        *costs(FOLDER), "",
        "## Every expert on every task", "", *matrix(FOLDER, TASKS), "",
        *(part for title, text in (
            ("The base", shown(base_spec(data), data)),
            ("The experts", shown(experts_spec(data), data)),
            ("Sweep", CONFIG.read_text().strip()),
        ) for part in (f"## {title}", "", "```yaml", text, "```", "")),
    ])  # fmt: skip


def main() -> None:
    """Train where needed, sweep, write."""
    data = Path(sys.argv[1]).resolve()
    seconds = {} if (POOL / "pool.yaml").exists() else train(data)
    spec = Path("outputs/hard8-all.yaml")
    settings = yaml.safe_load(CONFIG.read_text())
    settings["tasks"][WHOLE]["dataset"] = str(data / WHOLE)
    spec.write_text(yaml.safe_dump(settings, sort_keys=False))
    more = ("--extend",) if FOLDER.exists() else ()
    seconds[f"sweeps run benchmarks/sweeps/{CONFIG.name}"] = run("run", str(spec), *more)
    text = page(seconds, data)
    print(text)
    if "--save" in sys.argv:
        (RESULTS / f"all_methods_hard8_{datetime.now(UTC).date()}.md").write_text(text)


if __name__ == "__main__":
    main()
