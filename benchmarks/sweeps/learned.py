"""The embedded pool: AdaMerging, DAWE and DaWin beside static merges.

    python -m benchmarks.sweeps.learned [--save]

Runs `sweeps/configs/gates.yaml` as a user would (the pool is built where it is absent) and writes
spec and comparison to results/learned_<date>.md.
"""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import yaml
from rich.console import Console

from benchmarks.environment import RESULTS, machine
from benchmarks.tables import compared
from sweeps.cli.quickstart import ensure_pool

SPEC = Path(__file__).parents[2] / "sweeps" / "configs" / "gates.yaml"


def main() -> None:
    """Run and write."""
    ensure_pool("images", Console())
    start = time.perf_counter()
    command = [sys.executable, "-m", "sweeps", "run", str(SPEC), "--fresh"]
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    text = SPEC.read_text()
    lines = [
        "# Learned merges of the embedded pool",
        "",
        f"{datetime.now(UTC).date()}, `python -m benchmarks.sweeps.learned --save`: {machine()}.",
        "",
        f"- `sweeps run sweeps/configs/gates.yaml`: {seconds:.0f} s",
        "",
        *compared(Path("outputs/gates"), list(yaml.safe_load(text)["tasks"])),
        "## Sweep",
        "",
        "```yaml",
        text.strip(),
        "```",
        "",
    ]
    page = "\n".join(lines)
    print(page)
    if "--save" in sys.argv:
        (RESULTS / f"learned_{datetime.now(UTC).date()}.md").write_text(page)


if __name__ == "__main__":
    main()
