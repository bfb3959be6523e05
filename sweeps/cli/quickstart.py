"""The command `sweeps quickstart`: build the embedded pool once, and its sweep file.

Imports are inside functions for start-up time, as in `main.py`.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

SPEC = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def ensure_pool(console: Console) -> None:
    """Build the embedded pool where it is absent, with a progress bar."""
    from actors.files.embedded_pool import locate

    pool = locate()
    if pool is not None and pool.extractor.exists():  # older pools lack it
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from actors.embedded.build import build

    columns = (TextColumn("{task.description:<34}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("embedded pool", total=1.0)
        build(progress=lambda step, done: bars.update(bar, description=step, completed=done))
