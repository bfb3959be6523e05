"""Merging eight experts of CLIP ViT-B/32's size against a plain memory copy and the textbook loops.

    python -m benchmarks.fusion.merging [--save]

A linear merge must read T task vectors and the base and write one model: (T + 2)·d values. The
figure is those bytes a second over the bytes a second of a plain copy, timed in the same process
just before and after. The textbook loops add up state dicts, one model after the other. Each
measurement has a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.environment import Row, finish
from fusion.registry import METHODS, Static
from fusion.task_vectors.task_vectors import TaskVectors

TASKS = 8
REPEATS = 5
SEED = 0

PARAMS: Mapping[str, dict[str, Any]] = {
    "simple_average": {},
    "task_arithmetic": {"scale": 0.3},
    "weighted_average": {"weights": [float(t + 1) for t in range(TASKS)]},
    "ties": {"density": 0.2, "scale": 1.0},
}

Result = TypeVar("Result")


@dataclass(frozen=True)
class Measurement:
    """One way of merging: best of some repeats."""

    seconds: float
    copy_rate: float
    """Bytes a second, read and written, of a plain copy of one model."""
    extra_bytes: int
    """Peak resident memory over that of base, experts and result."""


def vision_shapes(
    width: int = 768, layers: int = 12, patch: int = 32, image: int = 224
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all tensors of a `CLIPVisionModel`; the defaults are ViT-B/32's.

    >>> shapes = vision_shapes()
    >>> import math
    >>> len(shapes), sum(math.prod(shape) for shape in shapes.values())
    (199, 87456000)
    """
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.position_embedding.weight": ((image // patch) ** 2 + 1, width),
    }

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns), (rows,)

    norm("pre_layrnorm")  # sic
    for layer in range(layers):
        block = f"encoder.layers.{layer}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            linear(f"{block}.self_attn.{part}", width, width)
        norm(f"{block}.layer_norm1")
        linear(f"{block}.mlp.fc1", 4 * width, width)
        linear(f"{block}.mlp.fc2", width, 4 * width)
        norm(f"{block}.layer_norm2")
    norm("post_layernorm")
    return shapes


def random_vectors(tasks: int = TASKS) -> TaskVectors:
    """Base and task vectors of ViT-B/32's shapes with random weights; the same every time."""
    generator = torch.Generator().manual_seed(SEED)
    base, deltas = {}, {}
    for name, shape in vision_shapes().items():
        base[name] = torch.empty(shape).normal_(0, 0.02, generator=generator)
        deltas[name] = torch.empty(tasks, *shape).normal_(0, 0.002, generator=generator)
    return TaskVectors(tuple(f"task{t}" for t in range(tasks)), base, deltas)


def random_experts(tasks: int = TASKS) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The same, as state dicts: what a textbook loop starts from."""
    vectors = random_vectors(tasks)
    deltas = dict(vectors.deltas)
    experts: list[dict[str, Tensor]] = [{} for _ in range(tasks)]
    for name, origin in vectors.base.items():
        for expert, delta in zip(experts, deltas.pop(name), strict=True):
            expert[name] = origin + delta
    return dict(vectors.base), experts


def textbook_average(experts: list[dict[str, Tensor]], weights: list[float]) -> dict[str, Tensor]:
    """Σ w_t θ_t / Σ w_t, one model after the other."""
    total = {name: torch.zeros_like(tensor) for name, tensor in experts[0].items()}
    for expert, weight in zip(experts, weights, strict=True):
        total = {name: total[name] + expert[name] * weight for name in total}
    return {name: tensor / sum(weights) for name, tensor in total.items()}


def textbook_arithmetic(
    base: dict[str, Tensor], experts: list[dict[str, Tensor]], scale: float
) -> dict[str, Tensor]:
    """θ₀ + λ·Σ_t (θ_t − θ₀), one model after the other."""
    total = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    for expert in experts:
        vector = {name: expert[name] - base[name] for name in base}
        total = {name: total[name] + vector[name] for name in base}
    total = {name: tensor * scale for name, tensor in total.items()}
    return {name: base[name] + total[name] for name in base}


def measure_ours(name: str) -> Measurement:
    """A row of the table, merged into a resident model."""
    method = METHODS[name]
    assert isinstance(method, Static)
    vectors = random_vectors()
    arena = {key: torch.zeros_like(tensor) for key, tensor in vectors.base.items()}
    return measure(lambda: method.merge(vectors.into(arena), **PARAMS[name]), resident=0)


def measure_textbook(name: str) -> Measurement:
    """The loop over state dicts that does the same."""
    base, experts = random_experts()
    size = sum(tensor.nbytes for tensor in base.values())
    if name == "task_arithmetic":
        scale = PARAMS[name]["scale"]
        return measure(lambda: textbook_arithmetic(base, experts, scale), resident=size)
    weights = PARAMS[name].get("weights", [1.0] * TASKS)
    return measure(lambda: textbook_average(experts, weights), resident=size)


def measure(merge: Callable[[], object], resident: int) -> Measurement:
    """Time `merge` between plain copies; `resident` bytes of its peak are its result."""
    before = reset_peak()
    merge()
    extra = peak_bytes() - before - resident
    rates, seconds = [copy_rate()], []
    for _ in range(REPEATS):
        seconds.append(timed(merge))
        rates.append(copy_rate())
    return Measurement(min(seconds), max(rates), max(0, extra))


def copy_rate() -> float:
    """Bytes a second, read and written, of copying one model's worth of floats; best of three."""
    source = torch.ones(87_456_000)
    target = torch.zeros_like(source)
    return 2 * source.nbytes / min(timed(lambda: target.copy_(source)) for _ in range(3))


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def reset_peak() -> int:
    """Forget the process's peak memory so far, where the kernel allows it; the peak from here."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def alone(work: Callable[..., Result], *args: object) -> Result:
    """`work(*args)` in a fresh process, so that peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def run() -> list[Row]:
    """All figures."""
    model = 4 * sum(torch.Size(shape).numel() for shape in vision_shapes().values())
    rows: list[Row] = []
    for name in PARAMS:
        ours = alone(measure_ours, name)
        reads = 3 if name == "ties" else 1  # two passes find the cut, one merges
        moved = (reads * TASKS + 2) * model
        rate = moved / ours.seconds
        if not rows:
            rows.append(Row("plain copy, GB/s", ours.copy_rate / 1e9, "", "read + written"))
        rows.append(Row(f"{name}: seconds", ours.seconds, "", "merged into a resident model"))
        rows.append(
            Row(
                f"{name}: bytes/s ÷ plain copy's",
                rate / ours.copy_rate,
                "" if name == "ties" else "≥ 0.7",
                f"({reads * TASKS} + 2)·d·4 B",
            )
        )
        rows.append(
            Row(
                f"{name}: extra memory, GB", ours.extra_bytes / 1e9, "≤ 2", "peak − inputs − result"
            )
        )
        if name != "ties":  # benchmarks.fusion.ties has its textbook
            textbook = alone(measure_textbook, name)
            ratio = textbook.seconds / ours.seconds
            rows.append(Row(f"{name}: textbook's time ÷ ours", ratio, "", "state dicts, added up"))
            extra = textbook.extra_bytes / 1e9
            rows.append(Row(f"{name}: textbook's extra memory, GB", extra, "", ""))
    return rows


def main() -> None:
    """Measure, print, and keep with `--save`."""
    sizes = f"{TASKS} experts, 199 tensors, 87,456,000 float32 each; best of {REPEATS}"
    finish("merging", f"{sizes}; {torch.get_num_threads()} threads", run())


if __name__ == "__main__":
    main()
