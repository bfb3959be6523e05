"""Figures of the comparison as PNG files, for MLflow and other pages that show files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from actors.files.atomic import replacing
from sweeps.results.comparison import Comparison, Row, split

BEST, OTHER, REFERENCE = "#1a7f4b", "#3465a4", "#888888"
WIDTH, LINE = 8.0, 0.32
"""Inches: of a picture, and of a line in it."""


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """Write `comparison.png` and, for several tasks, `tasks.png`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    # Lines are drawn from below: the best row is the last.
    rows = [row for row in reversed(comparison.ranked) if comparison.score(row) is not None]
    if not rows:
        return []
    paths = [save(means(comparison, rows), folder / "comparison.png")]
    if len(comparison.tasks) > 1:
        paths.append(save(tasks(comparison, rows), folder / "tasks.png"))
    return paths


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG atomically."""
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=110)
    return path


def canvas(lines: int) -> tuple[Figure, Axes]:
    """A figure with one line for each row."""
    figure = Figure(figsize=(WIDTH, 1.2 + LINE * lines), layout="constrained")
    return figure, figure.add_subplot()


def means(comparison: Comparison, rows: list[Row]) -> Figure:
    """Mean score with its interval, one line for each row."""
    figure, axes = canvas(len(rows))
    for at, row in enumerate(rows):
        color = colour(comparison, row)
        mean = comparison.score(row)
        low, high = row.test_ci95.get(comparison.headline, (mean, mean))
        axes.plot([100 * (low or 0), 100 * (high or 0)], [at, at], color=color, linewidth=2)
        axes.plot([100 * (mean or 0)], [at], "o", color=color)
    named(axes, rows)
    seen = " over seen tasks" if comparison.unseen else ""
    axes.set_xlabel(
        f"mean {comparison.ranked_by.title}{seen} on {split(comparison)}, %, 95 % interval"
    )
    axes.set_title(comparison.sweep, loc="left")
    axes.grid(axis="x", alpha=0.3)
    return figure


def tasks(comparison: Comparison, rows: list[Row]) -> Figure:
    """Score of every row on every task, as a table of colours."""
    figure, axes = canvas(len(rows))
    cells = [[score(comparison, row, task) for task in comparison.tasks] for row in rows]
    shown = [[float("nan") if cell is None else 100 * cell for cell in line] for line in cells]
    axes.imshow(shown, cmap="viridis", aspect="auto", origin="lower", vmin=0, vmax=100)
    for y, line in enumerate(shown):
        for x, cell in enumerate(line):
            ink = "white" if cell < 65 else "black"
            axes.text(x, y, f"{cell:.0f}", ha="center", va="center", fontsize=8, color=ink)
    named(axes, rows)
    names = [f"{task} (unseen)" if task in comparison.unseen else task for task in comparison.tasks]
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_title(
        f"{comparison.sweep}: {comparison.ranked_by.title} on {split(comparison)}, %", loc="left"
    )
    return figure


def named(axes: Axes, rows: list[Row]) -> None:
    """Label the lines with the methods' names."""
    axes.set_yticks(
        range(len(rows)),
        [f"{row.method} (reference)" if row.reference else row.method for row in rows],
    )


def colour(comparison: Comparison, row: Row) -> str:
    """Colour of a row: the best, a reference, or other."""
    if row is comparison.best:
        return BEST
    return REFERENCE if row.reference else OTHER


def score(comparison: Comparison, row: Row, task: str) -> float | None:
    """Score of a row on a task."""
    return (row.test if row.test else row.val).get(comparison.value(task))
