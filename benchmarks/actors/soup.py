"""A uniform soup of many ingredients straight from their files, against a plain copy of memory.

    python -m benchmarks.actors.soup [--save] [--ingredients 32]

Ingredients of ViT-B/32's size are random float32 safetensors; the result is made tensor by tensor
(`actors.pool.streaming_merge`). Moved are (k + 2) tensors' bytes: k ingredients and the base read,
one result
written. The floor is that many bytes at the speed of a copy in memory that was touched before (a
read and a write a byte), on the same number of threads. The result's memory is fresh each time.

The page cache is warm: each soup is measured after one that is not counted. How fast it can be read
depends on the size of its pages. Reading a file makes large ones (up to 2 MiB) where the system
finds room for them; writing it makes mostly pages of 4 KiB, and so does reading where memory is
fragmented. The first figure is of files that were read again after they were written, as those of
an earlier day are; the second of files that were only written.

What bounds it is that the system copies every byte into a buffer first. Mapping files saves the
copy, and costs more. On 2 cores of a virtual machine (EPYC, Linux 6.18), 350 MB cost a thread

    10 ms to add up in mapped memory that was touched before: the speed of memory
    13 ms to copy from the page cache into a buffer in cache; 32 ms from pages of 4 KiB
    50 ms to map, add up and unmap, from pages of 4 KiB (4,800 faults)

beside some 15 ms to subtract the base and add to the sum. The aim leaves 30 ms.

Peak memory is that of the process above what it held before, the page cache of the files left out.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from actors.families.registry import inspect
from actors.pool.pool import Pool, open_pool
from actors.pool.streaming_merge import streamed
from benchmarks.environment import Row, finish
from benchmarks.fusion.layers import arguments
from benchmarks.pools import B32, write_base, write_expert


def anonymous() -> int:
    """Bytes of this process's own memory: resident, without mapped files."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def reread(file: Path) -> None:
    """The file's pages as reading leaves them in the page cache, not as writing did."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while handle.read(1 << 22):
            pass


def soups(pool: Pool, repeats: int) -> list[float]:
    """Seconds a uniform soup of all ingredients takes; the first, not counted, warms up."""
    shares, times = [1.0] * len(pool.tasks), []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        held = dict(streamed(pool, lambda name: shares, scale=1 / len(shares)))
        times.append(time.perf_counter() - start)
        del held
    return times[1:]


def peak_memory(pool: Pool) -> int:
    """Bytes of its own that one soup takes at most, its result held."""
    ctypes.CDLL(None).malloc_trim(0)  # else what is free, and counted, would be used first
    shares, held, peak, before = [1.0] * len(pool.tasks), {}, 0, anonymous()
    for name, tensor in streamed(pool, lambda name: shares, scale=1 / len(shares)):
        held[name] = tensor
        peak = max(peak, anonymous() - before)
    return peak


def copies(nbytes: int, repeats: int) -> list[float]:
    """Seconds a copy of so many bytes takes, from and to memory that was touched before."""
    source = torch.ones(nbytes // 4)
    target, times = torch.empty_like(source), []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return times[1:]


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
        peak = peak_memory(pool)
        as_written = median(soups(pool, given.repeats))
        for member in (pool.base, *pool.experts.values()):
            for file in member.files:
                reread(file)
        seconds = median(soups(pool, given.repeats))
        copy = 2 * model / median(copies(model, given.repeats))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    moved = (k + 2) * model
    rate, early = moved / seconds, moved / as_written
    widest = max(pool.base.tensors[name].nbytes for name in pool.names)
    rows = [
        Row("bytes moved a second ÷ those of a copy", rate / copy, "≥ 0.6",
            f"{rate / 1e9:.3g} ÷ {copy / 1e9:.3g} GB/s"),
        Row("… with pages as writing left them", early / copy, "",
            f"{early / 1e9:.3g} ÷ {copy / 1e9:.3g} GB/s"),
        Row("peak memory ÷ (2 models + a tensor an ingredient)", peak / (2 * model + k * widest),
            "≤ 1", f"{peak / 1e6:.0f} MB; a model is {model / 1e6:.0f} MB"),
        Row("seconds", seconds, "", f"{moved / 1e9:.3g} GB moved"),
    ]  # fmt: skip
    finish("soup", f"{k} ingredients of {model / 1e6:.0f} MB; {given.threads} threads", rows)


if __name__ == "__main__":
    main()
