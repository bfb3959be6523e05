"""The command `sweeps quickstart`: build an embedded pool once, and its sweep file.

Imports are inside functions for start-up time, as in `main.py`.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from actors.files.embedded_pool import Kind
    from sweeps.results.comparison import Row
    from sweeps.results.folder import SweepFolder

CONFIGS = Path(__file__).parents[1] / "configs"

QUICKSTARTS: Mapping[Kind, Path] = {
    "images": CONFIGS / "quickstart.yaml",
    "text": CONFIGS / "quickstart_text.yaml",
}
"""Kind of the embedded pool -> the sweep file over it."""


def ensure_pool(kind: Kind, console: Console) -> None:
    """Build the embedded pool of a kind where it is absent, with a progress bar or lines."""
    from actors.files.embedded_pool import locate

    pool = locate(kind=kind)
    if pool is not None and pool.extractor.exists():  # older pools of images lack it
        return
    console.print("loading torch …")
    from actors.embedded.build import build as build_images
    from actors.embedded.text.build import build as build_texts
    from actors.files.cache_dir import cache_dir
    from sweeps.console.progress import Progress
    from sweeps.planning.rates import Rates

    build = build_images if kind == "images" else build_texts
    rates, began = Rates(cache_dir(), "cpu"), time.monotonic()
    console.print(f"a pool of {kind} is made once: {rates.span('pool', kind)}", soft_wrap=True)
    with Progress(console) as progress:
        build(progress=lambda step, done: progress.set("pool, %", round(100 * done), 100, step))
    rates.keep("pool", time.monotonic() - began, 1, kind)


OWN = """\
name: mine
pool:
  base: openai/clip-vit-base-patch32           # a hub id, or a Hugging Face folder
  experts: {a: path/to/expert_a, b: path/to/expert_b}
tasks:
  a: {dataset: path/to/data_a}                 # parquet files, folders of files, a hub id
  b: {dataset: path/to/data_b}
methods:
  task_arithmetic: {scale: {grid: [0.1, 0.3, 0.5, 0.7]}}
  ties: {scale: {uniform: [0.2, 1.0]}, trials: 16, searcher: tpe}
"""
"""A sweep file of one's own, in ten lines."""


def next_steps(folder: SweepFolder, best: Row | None) -> list[str]:
    """Lines after the quickstart: open the report, export the winner, sweep over own models."""
    program = "sweeps" if which("sweeps") else sys.argv[0]
    report = (folder.path / "report.html").resolve()
    steps = [f"open the report: {report.as_uri()}"]
    if best is not None and best.recipe:
        recipe, out = folder.path / best.recipe, folder.path / "winner"
        command = shlex.join([program, "export", str(recipe), str(out), "--check"])
        steps.append(f"export the winner: {command}")
    own = f"{program} run mine.yaml"
    steps.append(f"now with your models: save these lines as mine.yaml, then {own}")
    lines = ["", "next:", *(f"{number}. {step}" for number, step in enumerate(steps, 1))]
    return [*lines, *(f"   {line}" for line in OWN.splitlines())]
