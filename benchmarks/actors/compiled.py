"""`torch.compile` of the resident forward on the CPU: its cost once, and its gain a batch.

    python -m benchmarks.actors.compiled [--save] [--threads 1] [--repeats 7]

A random CLIP of the embedded pool's size, batches of 256 images; the segments as they are and
compiled take turns. Seconds are of the process's CPU, for other programs may run; compilers that it
starts are counted too. The break-even point is the number of batches after which the time of
compiling is won back. The embedded pool has about five batches a trial.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from actors.data.task_rows import BATCH
from actors.families.protocol import OUTPUT, Activations
from actors.shards.resident_model import ResidentModel
from benchmarks.environment import Row, finish
from benchmarks.fusion.layers import arguments, difference
from benchmarks.pools import EMBEDDED, write_base


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of this process and of those that it started and waited for."""
    before = os.times()
    call()
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


def chained(modules: list[Any]) -> Callable[[Activations], Activations]:
    """Run segments one after the other."""

    def run(activations: Activations) -> Activations:
        for module in modules:
            activations = module(activations)
        return activations

    return run


@torch.inference_mode()
def measured(repeats: int, folder: Path) -> list[Row]:
    """Compile, then take turns."""
    model = ResidentModel(write_base(EMBEDDED, folder / "base"))
    draw, side = torch.Generator().manual_seed(0), EMBEDDED.image
    pixels = torch.randint(0, 256, (BATCH, 3, side, side), generator=draw).to(torch.uint8)
    given: Activations = {"pixels": pixels}
    plain = chained(model.modules)
    compiled = torch.compile(chained(model.modules))

    def outputs(run: Callable[[Activations], Activations]) -> Tensor:
        return run(given)[OUTPUT]

    wanted = outputs(plain)
    first = cpu_seconds(lambda: outputs(compiled))
    off = difference(outputs(compiled), wanted)
    times: dict[str, list[float]] = {"plain": [], "compiled": []}
    for _ in range(repeats):
        times["plain"].append(cpu_seconds(lambda: outputs(plain)))
        times["compiled"].append(cpu_seconds(lambda: outputs(compiled)))
    each = {name: median(found) for name, found in times.items()}
    gain = each["plain"] - each["compiled"]
    even = (first - each["compiled"]) / gain if gain > 0 else float("inf")
    return [
        Row("compile, s of CPU", first - each["compiled"], "", "first call − a later one"),
        Row("gain", each["plain"] / each["compiled"], "", "plain / compiled, a batch of 256"),
        Row("plain, s of CPU a batch", each["plain"]),
        Row("batches to break even", even, "", "compile / (plain − compiled)"),
        Row("difference", off, "", "relative L2 of the outputs"),
    ]


def main() -> None:
    """Measure, print, and keep with `--save`."""
    given = arguments(__doc__, 7).parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(given.repeats, Path(folder))
    finish("compiled", f"{EMBEDDED}, batches of {BATCH}, float32, {given.threads} threads", rows)


if __name__ == "__main__":
    main()
