"""The command `sweeps quickstart`: build an embedded pool once, and its sweep file.

Imports are inside functions for start-up time, as in `main.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from actors.files.embedded_pool import Kind

CONFIGS = Path(__file__).parents[1] / "configs"

QUICKSTARTS: Mapping[Kind, Path] = {
    "images": CONFIGS / "quickstart.yaml",
    "text": CONFIGS / "quickstart_text.yaml",
}
"""Kind of the embedded pool -> the sweep file over it."""


def ensure_pool(kind: Kind, console: Console) -> None:
    """Build the embedded pool of a kind where it is absent, with a progress bar."""
    from actors.files.embedded_pool import locate

    pool = locate(kind=kind)
    if pool is not None and pool.extractor.exists():  # older pools of images lack it
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from actors.embedded.build import build as build_images
    from actors.embedded.text.build import build as build_texts

    build = build_images if kind == "images" else build_texts
    name = "embedded pool" if kind == "images" else "embedded text pool"
    columns = (TextColumn("{task.description:<38}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task(name, total=1.0)
        build(progress=lambda step, done: bars.update(bar, description=step, completed=done))
