"""Memory of every data-free merge of eight CLIP ViT-L/14 experts: at most base + 2 GB from files.

    python -m benchmarks.actors.memory_l14 FOLDER [--save] [--methods ties dare …]

FOLDER gets 12 GB of random float32 models, written once; remove it afterwards. Every method runs
in a process of its own, on task vectors that stay in files (`placement.weights: files`), and builds
one merged model in fresh memory. Memory is the most the process has of its own (`RssAnon`, looked
at a thousand times a second: mapped files are left out, for the page cache may take them back), of
which Python and its libraries are a part. The largest resident size that the kernel saw (`VmHWM`),
mapped files included, stands beside it.

Methods that decompose matrices, and WUDI, take long on a small machine: they run on such a tower of
one layer, of the same widths. They look at one tensor at a time, so that what they need above base
and merged model is the same; the sizes of the whole are put in.

Figures are kept in FOLDER/figures as they come, so that a run that was stopped goes on.

Not a part of `make bench`: it needs the disk, and half an hour for files and merges.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from actors.families.registry import inspect
from actors.files.atomic import replacing
from actors.pool.pool import Pool, open_pool, task_vectors
from actors.pool.vectors_on_disk import filed_vectors
from benchmarks.actors.learned_soup import Peak
from benchmarks.environment import Row, finish
from benchmarks.fusion.layers import arguments
from benchmarks.pools import Size, write_base, write_expert
from fusion.kinds import MergeInputs
from fusion.registry import METHODS, Static, StatisticsBased

L14 = Size("l14", 1024, 24, 16, 4096, 14, 224, 768)
CUT = replace(L14, name="l14-cut", layers=1)
TASKS = tuple(f"task{t}" for t in range(8))
ROOM = 2e9
"""Bytes above base (and, where they are loaded, experts)."""

SPECTRAL = ("tsv_m", "iso_c", "iso_cts", "wudi")
"""What runs on the cut."""

PARAMS: Mapping[str, Mapping[str, Any]] = {
    "slerp": {"experts": TASKS[:2]},
    "nuslerp": {"experts": TASKS[:2]},
    "wise_ft": {"expert": TASKS[0]},
    "nearswap": {"expert": TASKS[0]},
    "arcee_fusion": {"expert": TASKS[0]},
    "wudi": {"steps": 4},
}
"""Where defaults do not do for eight experts; WUDI's memory is the same after its first step."""

MORE: Mapping[str, Mapping[str, Any]] = {
    "ties, by tensor": {"granularity": "tensor"},
    "dare, ties": {"merge": "ties"},
    "breadcrumbs, by row": {"granularity": "row"},
    "ram, plus": {"plus": True},
    "nuslerp, by row": {"experts": TASKS[:2], "granularity": "row"},
}
"""Options that take another way."""


def data_free() -> dict[str, tuple[str, dict[str, Any]]]:
    """What is measured -> method and parameters."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, method in METHODS.items():
        if isinstance(method, Static) and not isinstance(method, StatisticsBased):
            found[name] = name, dict(PARAMS.get(name, {}))
    return found | {said: (said.split(",")[0], dict(params)) for said, params in MORE.items()}


def written(root: Path, size: Size) -> Path:
    """The folder of base and experts; what is there already stays."""
    folder = root / size.name
    if not (folder / "base" / "model.safetensors").exists():
        write_base(size, folder / "base")
    base = inspect(str(folder / "base"), "base")
    for seed, task in enumerate(TASKS, 1):
        if not (folder / task).exists():
            write_expert(base, folder / task, seed)
    return folder


def pool_of(folder: Path) -> Pool:
    """Base and experts, by their headers."""
    return open_pool(str(folder / "base"), {task: str(folder / task) for task in TASKS})


def highest() -> int:
    """The largest resident size this process ever had, mapped files included (`VmHWM`)."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measured(
    folder: Path, method: str, params: dict[str, Any], weights: str, threads: int
) -> tuple[int, int, float]:
    """(peak of own memory, `VmHWM`, seconds of the merge alone)."""
    torch.set_num_threads(threads)
    row = METHODS[method]
    inputs = MergeInputs(task=TASKS[0] if row.output == "model_per_task" else None)
    with Peak() as peak:
        pool = pool_of(folder)
        vectors = filed_vectors(pool) if weights == "files" else task_vectors(pool)
        start = time.perf_counter()
        merged = row.merge(vectors, inputs, **params)
        seconds = time.perf_counter() - start
        assert len(merged) == len(pool.names)
    return peak.most, highest(), seconds


def alone(kept: Path, *given: Any) -> tuple[int, int, float]:
    """`measured` in a process of its own; what is in the file `kept` is not measured again."""
    if not kept.exists():
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            found = pool.submit(measured, *given).result()
        kept.parent.mkdir(exist_ok=True)
        with replacing(kept) as part:
            part.write_text(json.dumps(found))
    peak, high, seconds = json.loads(kept.read_text())
    return peak, high, seconds


def figure(name: str, found: tuple[int, int, float], held: int, missing: int, said: str) -> Row:
    """One line: own memory above `held`, in GB.

    Args:
        name: of the method.
        found: what `measured` returned.
        held: bytes of what may be held: the base, or base and experts.
        missing: bytes of base and merged model that the run had less than a whole model has.
        said: what was run.
    """
    peak, high, seconds = found
    peak += missing
    verdict = "held" if peak <= held + ROOM else "missed"
    return Row(
        name,
        (peak - held) / 1e9,
        f"≤ {ROOM / 1e9:g} ({verdict})",
        f"{peak / 1e9:.2f} − {held / 1e9:.2f} GB; VmHWM {high / 1e9:.1f} GB; {seconds:.1f} s{said}",
    )


def main() -> None:
    """Measure, print, and keep with `--save`."""
    parser = arguments(__doc__, 1)
    parser.add_argument("folder", type=Path, help="where random models lie, or are written")
    parser.add_argument("--methods", nargs="*", help="these alone")
    given = parser.parse_args()
    folders = {size: written(given.folder, size) for size in (L14, CUT)}
    whole, short = (pool_of(folder).base_bytes for folder in folders.values())
    rows = []
    for name, (method, params) in data_free().items():
        if given.methods and method not in given.methods:
            continue
        cut = method in SPECTRAL
        kept = given.folder / "figures" / f"{name}.json"
        folder = folders[CUT if cut else L14]
        found = alone(kept, folder, method, params, "files", given.threads)
        said = f", {CUT.layers} layer" if cut else ""
        rows.append(figure(name, found, whole, 2 * (whole - short) if cut else 0, said))
        print(rows[-1].name, f"{rows[-1].value:.2f}", rows[-1].aim, rows[-1].how, flush=True)
    if not given.methods or "task_arithmetic" in given.methods:
        kept = given.folder / "figures" / "memory.json"
        found = alone(kept, folders[L14], "task_arithmetic", {}, "memory", given.threads)
        rows.append(figure("task_arithmetic, experts in memory", found, 9 * whole, 0, ""))
    sizes = (
        f"{L14}, {len(TASKS)} experts, float32, {whole / 1e9:.2f} GB a model; values: GB of the"
        " process's own memory (Python, libraries and merged model included) above the base, and"
        " in the last line above base and experts; seconds are of the merge alone, taken while"
        f" other programs ran; {given.threads} threads"
    )
    finish("memory_l14", sizes, rows)


if __name__ == "__main__":
    main()
