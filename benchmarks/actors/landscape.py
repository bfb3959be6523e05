"""The error landscape over a plane through three models: 21 × 21 points, and no model written.

    python -m benchmarks.actors.landscape [--save] [--points 6]

A point is a coding: a few bytes, which a replica merges into its one resident model and measures
(`sweeps.analysis.core.evaluated_points`, `fusion.analysis.landscape`). At the embedded size all 441
points are walked, and what was
written is counted twice: the files that are there afterwards, and all bytes that the process handed
to `write` (the file of points is written anew as points come in). At ViT-B/32's size some points
are walked. Beside that stands what the usual way adds to each point: its model written as
safetensors and read again.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from actors.artifacts.coding_file import dump_shares
from actors.artifacts.recipe import BASE, Recipe
from actors.experts.local import LocalExperts
from actors.families.registry import inspect
from benchmarks.environment import Row, finish
from benchmarks.fusion.layers import arguments
from benchmarks.pools import B32, EMBEDDED, ROLE, Size, random_vectors, write_base, write_data
from benchmarks.pools import experts as experts_of
from fusion.analysis.landscape import grid, plane
from sweeps.analysis.core.evaluated_points import METHOD, PROBE, Points
from sweeps.console.progress import Progress

SIDE = 21
POINTS = "plane.json"
ROWS = 64
"""Images a point is measured on."""


def written() -> int:
    """Bytes that this process has handed to `write` so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("wchar")).split()[1])


def opened(size: Size, folder: Path) -> LocalExperts:
    """Two random ingredients of one task, of this size."""
    base = inspect(str(write_base(size, folder / "base")), "base")
    data = write_data(size, ("task",), ROWS, folder / "data")
    data = {name: replace(task, rows={PROBE: task.rows[ROLE]}) for name, task in data.items()}
    return experts_of(base, random_vectors(base, ("one", "two"), "cpu"), data, "cpu")


def codings(local: LocalExperts) -> list[Tensor]:
    """The points of the plane, row by row, as coefficients [T]."""
    where = plane(local.gram(), "one", "two")
    xs, ys = grid(where, SIDE)
    return [where.to_coding(x, y).flatten() for y in ys for x in xs]


def walk(local: LocalExperts, points: Sequence[Tensor], file: Path) -> float:
    """Seconds of measuring points."""
    progress = Progress(Console(quiet=True))
    measured = Points(local, local.runner.tasks, PROBE, file, progress)
    start = time.perf_counter()
    measured(points, "plane")
    return time.perf_counter() - start


def by_file(local: LocalExperts, point: Tensor, folder: Path) -> float:
    """Seconds of writing one point's model and reading it again."""
    model = local.merge(Recipe(METHOD, {}, dump_shares(point.tolist(), local.runner.tasks)))
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    save_file(model, folder / "model.safetensors")
    sum(float(tensor.flatten()[0]) for tensor in load_file(folder / "model.safetensors").values())
    return time.perf_counter() - start


def figures(size: Size, many: int, folder: Path) -> list[Row]:
    """Figures of one size, of so many points."""
    local = opened(size, folder)
    model = sum(tensor.nbytes for tensor in local.merge(Recipe(BASE)).values())
    points = codings(local)
    step = max(1, len(points) // many)
    chosen = points[step // 2 :: step][:many]
    walk(local, [torch.tensor([0.5, 0.25], dtype=torch.float64)], folder / "warm.json")
    there, before = set(folder.rglob("*")), written()
    seconds = walk(local, chosen, folder / "points" / POINTS) / len(chosen)
    handed = written() - before
    new = {path.name for path in set(folder.rglob("*")) - there if path.is_file()}
    left, models = (folder / "points" / POINTS).stat().st_size, len(chosen) * model
    usual = by_file(local, chosen[0], folder / "model")
    about, how = f"{size.name}, {len(chosen)} points", f"a model is {model / 1e6:.3g} MB"
    return [
        Row(f"{about}: seconds a point", seconds, "", f"{ROWS} images"),
        Row(f"{about}: files written beside the one of points", len(new - {POINTS}), "0",
            f"{left:,} bytes in {POINTS}"),
        Row(f"{about}: bytes written ÷ those of the points' models", handed / models, "",
            f"{handed:,} bytes in all, the file anew every few points; {how}"),
        Row(f"{about}: time with each model written and read ÷ without", 1 + usual / seconds, "",
            f"{usual:.3g} s more"),
    ]  # fmt: skip


def main() -> None:
    """Measure, print, and keep with `--save`."""
    parser = arguments(__doc__, 1)
    parser.add_argument("--points", type=int, default=6, help="at ViT-B/32's size; 0: none")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    for size, many in ((EMBEDDED, SIDE * SIDE), (B32, given.points)):
        root = Path(tempfile.mkdtemp(prefix="landscape-"))
        try:
            rows += figures(size, many, root) if many else []
        finally:
            shutil.rmtree(root, ignore_errors=True)
    finish("landscape", f"{SIDE} × {SIDE} over two ingredients; {given.threads} threads", rows)


if __name__ == "__main__":
    main()
