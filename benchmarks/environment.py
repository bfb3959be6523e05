"""What every benchmark prints: ratios and their machine; `--save` keeps a dated file."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One figure."""

    name: str
    value: float
    aim: str = ""
    """`≤ 1.3`, say; empty: none was set."""
    how: str = ""
    """What was divided by what."""


def machine() -> str:
    """Device, threads and versions, in a line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "transformers"))
    cores = len(os.sched_getaffinity(0))
    return f"{device}, {cores} cores, Python {platform.python_version()}, {packages}"


def cpu_name() -> str:
    """The processor as /proc knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((ln.split(":")[1].strip() for ln in lines if ln.startswith("model name")), "CPU")


def command() -> str:
    """How this benchmark was started, without `--save`."""
    spec = sys.modules["__main__"].__spec__
    module = Path(sys.argv[0]).name if spec is None else spec.name
    return " ".join(["python -m", module, *(word for word in sys.argv[1:] if word != "--save")])


def finish(name: str, sizes: str, rows: list[Row]) -> str:
    """Print a Markdown table; with `--save` on the command line keep it under results/."""
    lines = [
        f"# {name}",
        "",
        f"`{command()}`, {datetime.now(UTC).date()}: {machine()}.",
        f"Sizes: {sizes}.",
        "",
        "| figure | value | aim | from |",
        "|---|---|---|---|",
        *(f"| {row.name} | {row.value:.3g} | {row.aim} | {row.how} |" for row in rows),
        "",
    ]
    text = "\n".join(lines)
    print(text)
    if "--save" in sys.argv:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}_{datetime.now(UTC).date()}.md").write_text(text)
    return text
