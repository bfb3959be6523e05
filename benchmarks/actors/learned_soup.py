"""One step of `learned_soup` whose ingredients stay in files: memory against their number.

    python -m benchmarks.actors.learned_soup [--save] [--ingredients 4 8 16 32]

A step is one micro-batch: merged layers, cross-entropy, backward pass, ∂L/∂coding of every tensor.
The ingredients are random float32 models of ViT-B/32's size. Up to `FILES` of them are different
files; more are the same files again under other names, for what is read and held is the same.
Each number of ingredients has a process of its own. Memory is the largest the process has of its
own (mapped files left out: the page cache may take them back) above what it had before the
pool was opened: base, resident model, activations, one gradient,
and one tensor's k task vectors. With files it must
grow by no more than that last one.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch

from actors.families.registry import inspect
from actors.pool.pool import Pool, open_pool, task_vectors
from actors.pool.vectors_on_disk import filed_vectors
from benchmarks.actors.soup import anonymous
from benchmarks.environment import Row, finish
from benchmarks.fusion.layers import arguments
from benchmarks.pools import B32, ROLE, Size, experts, write_base, write_data, write_expert
from fusion.methods.learned.steps import MicroBatch
from fusion.task_vectors.sparsify import Trim

FILES = 8
BATCH = 16
TIMED = 8
"""Ingredients with which files are timed against memory."""


class Peak:
    """The most memory of its own that this process has within the block; sampled by a thread."""

    def __init__(self) -> None:
        self.before = self.most = anonymous()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def watch(self) -> None:
        """Look a thousand times a second."""
        while not self.stopped.wait(0.001):
            self.most = max(self.most, anonymous())

    def __enter__(self) -> Peak:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()


def pool_of(root: Path, count: int) -> Pool:
    """`count` ingredients: the files that are there, in turn."""
    files = sorted(root.glob("run*"))
    chosen = {f"run{i}": str(files[i % len(files)]) for i in range(count)}
    return open_pool(str(root / "base"), chosen)


def measured(
    root: Path, size: Size, count: int, weights: str, threads: int, repeats: int
) -> tuple[int, float]:
    """(peak bytes above those before the pool is opened, median seconds of a step)."""
    torch.set_num_threads(threads)
    data = write_data(size, ("task",), BATCH, root / "data")
    warm_up()
    with Peak() as peak:
        pool = pool_of(root, count)
        vectors = filed_vectors(pool) if weights == "files" else task_vectors(pool)
        held = experts(pool.base, vectors, data, "cpu")
        coding = torch.full((1, count, len(pool.groups)), 1 / count)
        micro_batch = MicroBatch({"task": torch.arange(BATCH)}, coding, torch.tensor(1.0))
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            (found,) = held.gradients([micro_batch], ROLE, Trim())
            times.append(time.perf_counter() - start)
        assert bool(found.coding.any())
    return peak.most - peak.before, median(times[1:])


def warm_up() -> None:
    """What torch allocates once (threads' and kernels' scratch) is no part of a step."""
    x = torch.randn(64, 64, requires_grad=True)
    (x @ x).sum().backward()  # type: ignore[no-untyped-call]


def alone(*given: Any) -> tuple[int, float]:
    """`measured` in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(measured, *given).result()


def main() -> None:
    """Measure, print, and keep with `--save`."""
    parser = arguments(__doc__, 3)
    parser.add_argument("--ingredients", type=int, nargs="+", default=[4, 8, 16, 32])
    given = parser.parse_args()
    counts, last = sorted(given.ingredients), (given.threads, given.repeats)
    root = Path(tempfile.mkdtemp(prefix="learned-soup-"))
    try:
        base = inspect(str(write_base(B32, root / "base")), "base")
        for i in range(min(FILES, max(*counts, TIMED))):
            write_expert(base, root / f"run{i}", i + 1)
        pool = pool_of(root, 1)
        model = sum(pool.base.tensors[name].nbytes for name in pool.names)
        widest = max(pool.base.tensors[name].nbytes for name in pool.names)
        found = {k: alone(root, B32, k, "files", *last) for k in counts}
        files = found.get(TIMED) or alone(root, B32, TIMED, "files", *last)
        memory = alone(root, B32, TIMED, "memory", *last)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    low, high = counts[0], counts[-1]
    grown = found[high][0] - found[low][0]
    rows = [
        Row(f"growth of memory from {low} to {high} ingredients ÷ a tensor each",
            grown / max(1, (high - low) * widest), "≤ 1",
            f"{grown / 1e6:.0f} MB; the largest tensor is {widest / 1e6:.1f} MB"),
        *(Row(f"peak memory, {k} ingredients, ÷ one model", peak / model, "",
              f"{peak / 1e6:.0f} MB; a model is {model / 1e6:.0f} MB; {seconds:.3g} s a step")
          for k, (peak, seconds) in found.items()),
        Row(f"peak memory in files ÷ loaded, {TIMED} ingredients", files[0] / memory[0], "",
            f"{files[0] / 1e6:.0f} ÷ {memory[0] / 1e6:.0f} MB"),
        Row(f"seconds of a step in files ÷ loaded, {TIMED} ingredients", files[1] / memory[1], "",
            f"{files[1]:.3g} ÷ {memory[1]:.3g} s"),
    ]  # fmt: skip
    sizes = f"{B32}, float32, {BATCH} images a step; {given.threads} threads"
    finish("learned_soup", sizes, rows)


if __name__ == "__main__":
    main()
