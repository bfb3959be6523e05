"""Sweeps over the embedded pools, as a user runs them.

    python -m benchmarks.sweeps.learned [gates] [quickstart] [quickstart_text] [--save]

`gates`, the default: AdaMerging, DAWE and DaWin beside static merges of images; `quickstart`: what
`make demo` runs; `quickstart_text`: what `sweeps quickstart --text` runs. A pool is built where it
is absent. Spec and comparison go to results/learned_<date>.md, or results/<name>_<date>.md.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import yaml
from rich.console import Console

from actors.files.embedded_pool import IMAGES, TEXT, Kind
from benchmarks.environment import RESULTS, machine
from benchmarks.tables import compared
from sweeps.cli.quickstart import ensure_pool

CONFIGS = Path(__file__).parents[2] / "sweeps" / "configs"

TITLES: Mapping[str, tuple[Kind, str]] = {
    "gates": (IMAGES, "Learned merges of the embedded pool"),
    "quickstart": (IMAGES, "The sweep of `make demo`"),
    "quickstart_text": (TEXT, "The sweep of `sweeps quickstart --text`"),
}
"""Sweep file -> kind of its pool, title of the page."""


def main() -> None:
    """Run and write."""
    for name in [word for word in sys.argv[1:] if word in TITLES] or ["gates"]:
        page = measured(name)
        print(page)
        if "--save" in sys.argv:
            file = f"{'learned' if name == 'gates' else name}_{datetime.now(UTC).date()}.md"
            (RESULTS / file).write_text(page)


def measured(name: str) -> str:
    """Run one sweep; its page."""
    kind, title = TITLES[name]
    ensure_pool(kind, Console())
    spec = CONFIGS / f"{name}.yaml"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sweeps", "run", str(spec), "--fresh"], check=True)
    seconds = time.perf_counter() - start
    text = spec.read_text()
    content = yaml.safe_load(text)
    words = "" if name == "gates" else f" {name}"
    lines = [
        f"# {title}",
        "",
        f"{datetime.now(UTC).date()}, `python -m benchmarks.sweeps.learned{words} --save`:"
        f" {machine()}.",
        "",
        f"- `sweeps run sweeps/configs/{name}.yaml`: {seconds:.0f} s",
        "",
        *compared(Path("outputs") / content["name"], list(content["tasks"])),
        "## Sweep",
        "",
        "```yaml",
        text.strip(),
        "```",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
