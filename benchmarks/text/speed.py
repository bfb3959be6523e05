"""Speed of text models: evaluation, a gate's step, cuts into shards, tokenising.

    python -m benchmarks.text.speed [--save] [--parts rank buckets step code cuts tokenise] …

What is compared: see `evaluation.py`, `gates.py`, `cuts.py`, `tokenising.py` in this folder. Ratios
are of medians of CPU seconds, of works that take turns in one run; wall seconds are beside them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.environment import Row, finish
from benchmarks.fusion.layers import arguments
from benchmarks.text.cuts import cuts
from benchmarks.text.evaluation import bucketed, drawn_lengths, lengths_of, rank
from benchmarks.text.gates import code, step
from benchmarks.text.pool import Library, TextPool
from benchmarks.text.tokenising import tokenising


class Bench:
    """The pool and the textbook, made when first needed."""

    def __init__(self, scratch: Path, rows: int) -> None:
        self.scratch, self.size = scratch, rows

    @cached_property
    def pool(self) -> TextPool:
        """Ours."""
        return TextPool(self.scratch, self.size)

    @cached_property
    def library(self) -> Library:
        """The textbook's."""
        return Library(self.pool)


def main() -> None:
    """Measure, print, and keep with `--save`."""
    parser = arguments(__doc__, 3)
    parser.add_argument("--rows", type=int, default=200, help="of each task, of `rank`")
    parser.add_argument("--lengths", type=int, default=1500, help="rows of `buckets`")
    parser.add_argument("--texts", type=Path, help="parquet files of texts, more rows of `buckets`")
    parser.add_argument("--scale", type=int, default=8, help="large's width over that of `cuts`")
    parser.add_argument("--tokenised", type=int, default=100_000, help="rows of `tokenise`")

    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), 0)
        parts: dict[str, Callable[[], list[Row]]] = {
            "rank": lambda: rank(bench.pool, bench.library, given.repeats),
            "buckets": lambda: buckets(bench.pool, given.lengths, given.texts, given.repeats),
            "step": lambda: step(bench.pool, bench.library, given.repeats),
            "code": lambda: code(bench.pool, bench.library, given.repeats),
            "cuts": lambda: both_cuts(bench.scratch, given.scale, given.repeats),
            "tokenise": lambda: tokenising(bench.scratch, given.tokenised, given.repeats),
        }
        parser.add_argument("--parts", nargs="+", default=list(parts), choices=list(parts))
        given = parser.parse_args()
        bench.size = given.rows
        torch.set_num_threads(given.threads)
        rows: list[Row] = []
        for part in given.parts:
            found = parts[part]()
            rows += found
            lines = [f"{row.name}: {row.value:.3g} ({row.how})" for row in found]
            print(f"{part}:", *lines, sep="\n  ", file=sys.stderr, flush=True)
    sizes = (
        f"embedded text pool (T5, width 96, 2 + 1 blocks, 6 experts), {given.rows} rows a task;"
        f" cuts: 24 + 24 blocks, width {1024 // given.scale}, a thread a"
        f" shard; float32 on the CPU; medians of {given.repeats} in turns; {given.threads} threads"
    )
    finish("text_speed", sizes, rows)


def both_cuts(scratch: Path, scale: int, repeats: int) -> list[Row]:
    """Where rows are most of the work, and with the published 8 rows a task and 8 experts."""
    return cuts(scratch, scale, 2, 32, repeats) + cuts(scratch, scale, 8, 8, repeats)


def buckets(pool: TextPool, count: int, texts: Path | None, repeats: int) -> list[Row]:
    """Drawn lengths, and those of a data set."""
    rows = bucketed(pool, "drawn lengths", drawn_lengths(count), repeats)
    if texts is not None:
        rows += bucketed(pool, texts.name, lengths_of(texts)[:count], repeats)
    return rows


if __name__ == "__main__":
    main()
