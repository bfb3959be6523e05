"""TIES against its textbook form, at CLIP ViT-B/32's size: time, peak memory, equal results.

    python -m benchmarks.fusion.ties [--save]

The textbook (as the paper's own code and FusionBench) flattens all task vectors into one [T, d]
matrix, takes the k-th largest magnitude of each row with `kthvalue`, and trims, elects and merges
with whole matrices. Both start from the same task vectors, keep the same entries and use mean and
scale 1. Eight tasks where memory allows, else as many as fit the textbook.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import psutil
import torch
from torch import Tensor

from benchmarks.environment import Row, finish
from benchmarks.fusion.merging import alone, peak_bytes, random_vectors, reset_peak, timed
from fusion.methods.sparse.ties import ties
from fusion.task_vectors.task_vectors import TaskVectors

DENSITY = 0.2
MODEL = 87_456_000 * 4
REPEATS = {"ours": 3, "textbook": 1}


def textbook(vectors: TaskVectors) -> dict[str, Tensor]:
    """TIES over whole matrices."""
    names = list(vectors.base)
    flat = torch.cat([vectors.deltas[name].flatten(1) for name in names], dim=1)
    size = flat.shape[1]
    kept = math.floor(size * DENSITY + 1e-6)
    cuts = flat.abs().kthvalue(size - kept + 1, dim=1, keepdim=True).values
    trimmed = flat * (flat.abs() >= cuts)
    sign = trimmed.sum(0).sign()
    chosen = trimmed * (trimmed * sign > 0)
    merged = chosen.sum(0) / (chosen != 0).sum(0).clamp(min=1)
    parts = torch.split(merged, [vectors.base[name].numel() for name in names])
    return {
        name: vectors.base[name] + part.view_as(vectors.base[name])
        for name, part in zip(names, parts, strict=True)
    }


def measure(kind: str, tasks: int, path: Path) -> tuple[float, int, int]:
    """Seconds (best), peak bytes of the process, bytes of it before the merge; result to `path`."""
    vectors = random_vectors(tasks)

    def merge() -> None:
        rule = textbook if kind == "textbook" else lambda v: ties(v, density=DENSITY)
        result.clear()
        result.update(rule(vectors))

    result: dict[str, Tensor] = {}
    before = reset_peak()
    seconds = min(timed(merge) for _ in range(REPEATS[kind]))
    peak = peak_bytes()
    torch.save(result, path)
    return seconds, peak, before


def affordable(tasks: int = 8) -> int:
    """How many tasks leave the textbook, about seven matrices [T, d], a quarter of memory free."""
    budget = 0.75 * psutil.virtual_memory().available
    return max(2, min(tasks, int(budget / (7 * MODEL))))


def run() -> list[Row]:
    """All figures."""
    tasks = affordable()
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: Path(folder) / f"{kind}.pt" for kind in REPEATS}
        found = {kind: alone(measure, kind, tasks, path) for kind, path in paths.items()}
        ours, theirs = (torch.load(path, weights_only=True) for path in paths.values())
    different = sum(int((ours[name] != theirs[name]).sum()) for name in theirs)
    (seconds, peak, before), (slow, high, low) = found["ours"], found["textbook"]
    extra, more = (peak - before) / 1e9, (high - low) / 1e9
    return [
        Row("tasks", tasks, "8", "as memory allows"),
        Row("ours: seconds", seconds, "", f"best of {REPEATS['ours']}"),
        Row("textbook: seconds", slow, "", f"best of {REPEATS['textbook']}"),
        Row("textbook's time ÷ ours", slow / seconds, "≥ 3", ""),
        Row("ours: peak, GB", peak / 1e9, "", f"of it over inputs {extra:.2f}, result included"),
        Row("textbook: peak, GB", high / 1e9, "", f"of it over inputs {more:.2f}"),
        Row("textbook's peak ÷ ours", high / peak, "", "whole process"),
        Row("textbook's memory over inputs ÷ ours", more / extra, "≥ 4", "result included"),
        Row("entries that differ", different, "0", "of 87,456,000"),
    ]


def main() -> None:
    """Measure, print, and keep with `--save`."""
    sizes = f"199 tensors, 87,456,000 float32 a task vector; density {DENSITY}, mean, scale 1"
    finish("ties", f"{sizes}; {torch.get_num_threads()} threads", run())


if __name__ == "__main__":
    main()
