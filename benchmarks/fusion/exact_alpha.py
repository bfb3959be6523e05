"""The exact best α of logits linear in α, against a grid of 2001 points.

    python -m benchmarks.fusion.exact_alpha [--save] [--device cuda] [--repeats 3] [--small]

Two classifiers' logits z₀, z₁ of N samples and C classes; (1 − α)z₀ + αz₁ for α in [0, 1]. The grid
forms the logits of each point in a lent buffer, some rows at a time so that they stay in the cache,
and takes their argmax. At the larger size the grid is timed at fewer points, and its time per point
multiplied. The exact solver's time includes making A and B of z₀ and z₁.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.environment import Row, finish
from benchmarks.fusion.layers import arguments, medians
from fusion.logits.exact_alpha import exact_alpha, segment

POINTS = 2001
SIZES = {(10_000, 100): POINTS, (50_000, 1_000): 21}
"""(N, C) -> points of the grid that are timed."""
BLOCK = 1 << 18
"""Logits of a block of rows: 1 MB."""


def classifiers(n: int, classes: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of two classifiers that err on different samples, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (n,), generator=generator)
    first, second = torch.randn(2, n, classes, generator=generator)
    for logits, gain in ((first, 2.5), (second, 3.0)):
        logits[torch.arange(n), labels] += gain
    return first.to(device), second.to(device), labels.to(device)


def grid(first: Tensor, second: Tensor, labels: Tensor, points: int) -> float:
    """The best accuracy on a grid over [0, 1]."""
    slope = second - first
    alphas = torch.linspace(0, 1, points).tolist()
    counts = torch.zeros(points, dtype=torch.int64, device=labels.device)
    rows = max(1, BLOCK // first.shape[1])
    buffer = torch.empty_like(first[:rows])
    for at in range(0, len(first), rows):
        a, b, y = first[at : at + rows], slope[at : at + rows], labels[at : at + rows]
        z = buffer[: len(a)]
        for i, alpha in enumerate(alphas):
            torch.add(a, b, alpha=alpha, out=z)
            counts[i] += (z.argmax(1) == y).sum()
    return int(counts.max()) / len(labels)


def measure(n: int, classes: int, points: int, repeats: int, device: str) -> list[Row]:
    """Figures of one size."""
    first, second, labels = classifiers(n, classes, device)
    seconds = medians(
        {
            "exact": lambda: exact_alpha(*segment(first, second), labels),
            "grid": lambda: grid(first, second, labels, points),
        },
        repeats,
        device,
    )
    exact, whole = seconds["exact"], seconds["grid"] * POINTS / points
    best = exact_alpha(*segment(first, second), labels)
    found = grid(first, second, labels, points)
    assert best.accuracy >= found - 1e-9, (best, found)
    size = f"N = {n:,}, C = {classes:,}"
    timed = "" if points == POINTS else f"; {points} points timed, times {POINTS / points:.3g}"
    return [
        Row(f"{size}: grid's time ÷ exact", whole / exact, "≥ 30", f"{whole:.3g} ÷ {exact:.3g} s"),
        Row(f"{size}: seconds, exact", exact, "", f"A and B included; on {device}"),
        Row(f"{size}: seconds, grid", whole, "", f"{POINTS} points{timed}"),
        Row(f"{size}: samples more than the grid", (best.accuracy - found) * n, "≥ 0", ""),
        Row(f"{size}: width of the best plateau", best.high - best.low, "", ""),
    ]


def main() -> None:
    """Measure, print, and keep with `--save`."""
    parser = arguments(__doc__, 3)
    parser.add_argument("--small", action="store_true", help="the smaller size only")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sizes = dict(list(SIZES.items())[: 1 if given.small else None])
    rows = [
        row
        for (n, classes), points in sizes.items()
        for row in measure(n, classes, points, given.repeats, given.device)
    ]
    said = f"float32 logits, α in [0, 1]; medians of {given.repeats} in turns"
    finish("exact_alpha", f"{said}; {given.threads} threads", rows)


if __name__ == "__main__":
    main()
