"""A uniform soup of many ingredients straight from their files, against a plain copy of memory.

    python -m benchmarks.soup [--save] [--ingredients 32]

Ingredients of ViT-B/32's size are random float32 safetensors, written once, so that the page cache
is warm; the result is made tensor by tensor (`actors.streamed`). Moved are (k + 2) tensors' bytes:
k ingredients and the base read, one result written; the floor is that many bytes at the speed of a
copy in memory. Peak memory is that of the process above what it held before, the page cache of the
files left out.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from actors.checkpoints import inspect
from actors.pool import open_pool
from actors.streamed import streamed
from benchmarks.environment import Row, finish
from benchmarks.layers import arguments
from benchmarks.pools import B32, write_base, write_expert


def anonymous() -> int:
    """Bytes of this process's own memory: resident, without mapped files."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Measure, print, and keep with `--save`."""
    parser = arguments(__doc__, 3)
    parser.add_argument("--ingredients", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    k = given.ingredients
    root = Path(tempfile.mkdtemp(prefix="soup-"))
    try:
        folder = write_base(B32, root / "base")
        base = inspect(str(folder), "base")
        written = [write_expert(base, root / f"run{i}", i + 1) for i in range(k)]
        pool = open_pool(str(folder), {path.name: str(path) for path in written})
        model = sum(pool.base.tensors[name].nbytes for name in pool.names)
        shares = [1.0] * k
        times, peak, before = [], 0, anonymous()
        for _ in range(given.repeats + 1):  # the first warms the page cache
            start, held = time.perf_counter(), {}
            for name, tensor in streamed(pool, lambda name: shares, scale=1 / k):
                held[name] = tensor
                peak = max(peak, anonymous() - before)
            times.append(time.perf_counter() - start)
            held.clear()
        source = torch.empty(model // 4).fill_(1.0)
        target = torch.empty_like(source)
        copies = []
        for _ in range(given.repeats + 1):
            start = time.perf_counter()
            target.copy_(source)
            copies.append(time.perf_counter() - start)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    seconds, copy = median(times[1:]), 2 * model / median(copies[1:])
    moved = (k + 2) * model
    rate = moved / seconds
    widest = max(pool.base.tensors[name].nbytes for name in pool.names)
    rows = [
        Row("bytes moved a second ÷ those of a copy", rate / copy, "≥ 0.6",
            f"{rate / 1e9:.3g} ÷ {copy / 1e9:.3g} GB/s"),
        Row("peak memory ÷ (2 models + a tensor an ingredient)", peak / (2 * model + k * widest),
            "≤ 1", f"{peak / 1e6:.0f} MB; a model is {model / 1e6:.0f} MB"),
        Row("seconds", seconds, "", f"{moved / 1e9:.3g} GB moved; first run {times[0]:.3g} s"),
    ]  # fmt: skip
    finish("soup", f"{k} ingredients of {model / 1e6:.0f} MB; {given.threads} threads", rows)


if __name__ == "__main__":
    main()
