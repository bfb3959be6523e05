"""RegMean's merge against explicit inverses; what gathering Fisher's information keeps in memory.

    python -m benchmarks.actors.informed [--save]

RegMean: one layer of ViT-B/32 (q, k, v and out 768 × 768, fc1 3072 × 768, fc2 768 × 3072), eight
tasks, random Gram matrices. The textbook inverts ΣĜ for each matrix, with a dense mask for what is
off the diagonal; ours factorises once an input, q, k and v together. Each does the same sums.
The floor of both are the products Σ_t Ĝ_t τ_tᵀ, 2·T·d²·out a matrix: 174 GFLOP a layer, of which
116 are fc2's. To them ours adds factors and solves (d³/3 and 2·d²·out: 33), the textbook inverses
and products with them (2·d³ and 2·d²·out: 86). So 3×, the issue's aim, is not to be had here while
both multiply at one rate: (174 + 86) ÷ (174 + 33) is 1.26, and passes over memory are the rest.

Fisher: a ViT-B/32, one image a backward pass: the process's own memory above what it held after
the model was there, after a few passes and after ten times as many.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from actors.artifacts.recipe import Recipe
from actors.families.registry import inspect
from benchmarks.actors.soup import anonymous
from benchmarks.environment import Row, finish
from benchmarks.fusion.layers import arguments
from benchmarks.pools import B32, ROWS, experts, random_vectors, write_base, write_data
from fusion.methods.statistics.collect import Statistics
from fusion.methods.statistics.regmean import regmean
from fusion.task_vectors.task_vectors import TaskVectors

TASKS = 8
ALPHA = 0.95
MATRICES = {"q": (768, 768), "k": (768, 768), "v": (768, 768), "out": (768, 768),
            "fc1": (3072, 768), "fc2": (768, 3072)}  # fmt: skip
SOURCE = {"q": "q", "k": "q", "v": "q", "out": "out", "fc1": "fc1", "fc2": "fc2"}
PASSES = (4, 40)
ONE = ("a",)


def layer() -> tuple[TaskVectors, Statistics]:
    """A random layer, and Gram matrices of random inputs."""
    generator = torch.Generator().manual_seed(0)
    base = {n: torch.randn(shape, generator=generator) * 0.02 for n, shape in MATRICES.items()}
    experts = {
        str(t): {n: w + 0.002 * torch.randn(w.shape, generator=generator) for n, w in base.items()}
        for t in range(TASKS)
    }
    grams = {}
    for name in set(SOURCE.values()):
        width = MATRICES[name][1]
        x = torch.randn(TASKS, 2 * width, width, generator=generator)
        grams[name] = x.transpose(1, 2) @ x / (2 * width)
    return TaskVectors.from_state_dicts(base, experts), Statistics(grams, SOURCE)


def textbook(vectors: TaskVectors, grams: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The formula as it stands, matrix by matrix."""
    merged = {}
    for name, deltas in vectors.deltas.items():
        width, rows = deltas.shape[2], deltas.shape[1]
        total, right = torch.zeros(width, width), torch.zeros(width, rows)
        for gram, delta in zip(grams[name], deltas, strict=True):
            off = ALPHA * gram * (1 - torch.eye(width))
            hat = off + torch.diag(gram.diagonal())
            right = right + hat @ (vectors.base[name] + delta).T
            total = total + hat
        merged[name] = (torch.inverse(total) @ right).T
    return merged


def best(run: Callable[[], object], repeats: int) -> float:
    """The shortest of some runs, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def fisher_memory() -> dict[int, int]:
    """Passes -> bytes above the standing model, after so many."""
    folder = Path(tempfile.mkdtemp(prefix="fisher-"))
    try:
        os.environ["FUSION_SWEEPS_CACHE"] = str(folder / "cache")
        base = inspect(str(write_base(B32, folder / "base")), "pool.base")
        data = write_data(B32, ONE, ROWS, folder / "data")
        standing = experts(base, random_vectors(base, ONE, "cpu"), data, "cpu")
        found = {}
        peak, before = 0, anonymous()
        for passes in PASSES:
            shard = standing.runner.pipeline.shards[0]
            real = shard.collector.squared

            def watched(*given: object, real: Callable[..., object] = real) -> object:
                nonlocal peak
                done = real(*given)
                peak = max(peak, anonymous() - before)
                return done

            shard.collector.squared = watched
            standing.statistics(Recipe("fisher", {"examples": passes, "seed": passes}))
            shard.collector.squared = real
            found[passes] = peak
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Measure, print, and keep with `--save`."""
    given = arguments(__doc__, 3).parse_args()
    torch.set_num_threads(given.threads)
    vectors, grams = layer()
    ours = best(lambda: regmean(vectors, statistics=grams, ridge=0.0), given.repeats)
    theirs = best(lambda: textbook(vectors, grams), given.repeats)
    wanted = textbook(vectors, grams)
    found = regmean(vectors, statistics=grams, ridge=0.0)
    apart = max(float((found[n] - w).abs().max() / w.abs().max()) for n, w in wanted.items())
    few, many = fisher_memory().values()
    rows = [
        Row("RegMean: explicit inverses ÷ ours", theirs / ours, "≥ 3",
            f"{theirs:.3g} ÷ {ours:.3g} s a layer of {TASKS} tasks"),
        Row("largest relative difference of the two", apart, "", "float32"),
        Row(f"Fisher: memory after {PASSES[1]} passes ÷ after {PASSES[0]}", many / few, "≤ 1.1",
            f"{many / 1e6:.0f} ÷ {few / 1e6:.0f} MB above the standing model of"
            f" {4 * 87.8:.0f} MB"),
    ]  # fmt: skip
    finish("informed", f"ViT-B/32 shapes, {TASKS} tasks; {given.threads} threads", rows)


if __name__ == "__main__":
    main()
