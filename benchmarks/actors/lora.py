"""Adapters kept as factors (form C) against the same multiplied out when loaded (forms A and B).

    python -m benchmarks.actors.lora [--save] [--size b32] [--threads 2] [--repeats 5]

Random weights of CLIP ViT-B/32's size, T = 8 experts, LoRA of rank r = 16 on q and v of each layer:
what `placement.weights: factored` holds and does, and `memory`.

Floors. Held: the base, and T·r·(in + out) float32 a weight: 24 weights of [768, 768], 18.9 MB
beside 350 MB (dense: T models, 2.8 GB). Forward of one coding: the plain model's products and, of
q and v, R = T·r = 128 factors, 2n·R(in + out) FLOPs for n tokens: a third of such a layer, 5.6 % of
a block's 12·768² weights. One model a sample costs the same (forms A and B: 2T·in·out more a sample
and layer, or T times the products). A merge by a coding: 2·R·out·in FLOPs a weight, 3.6 GFLOP, and
the base read and written, 700 MB; dense: (T + 2) models moved, 3.5 GB.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from actors.checkpoints.checkpoint import Checkpoint, read
from actors.families.registry import inspect
from actors.shards.shard import Weights
from benchmarks.environment import Row, finish
from benchmarks.fusion.layers import arguments, difference, medians
from benchmarks.pools import (
    B32,
    EMBEDDED,
    ROLE,
    ROWS,
    SEED,
    TASKS,
    experts,
    tower,
    write_base,
    write_data,
)
from fusion.methods.learned.steps import MicroBatch
from fusion.registry import METHODS, Static
from fusion.task_vectors.coding import mix
from fusion.task_vectors.lazy import LowRankTaskVectors
from fusion.task_vectors.low_rank import LowRank, Zeros
from fusion.task_vectors.sparsify import Trim
from fusion.task_vectors.task_vectors import TaskVectors

RANK = 16
IMAGES = 16
SIZES = {"embedded": EMBEDDED, "b32": B32}
ADAPTED = ("q_proj.weight", "v_proj.weight")
TOLERANCE = 1e-4
"""Of relative L2 differences, in float32."""


def low_rank_vectors(base: Checkpoint) -> TaskVectors:
    """The base's tensors and random factors of q and v; the same every time."""
    draw = torch.Generator().manual_seed(SEED)
    origin = {name: tensor.clone() for name, tensor in read(base, tower(base))}
    held: dict[str, LowRank | Zeros | Tensor] = {}
    for name, tensor in origin.items():
        held[name] = Zeros(torch.Size((len(TASKS), *tensor.shape)), tensor.dtype, tensor.device)
        if name.endswith(ADAPTED):
            out, width = tensor.shape
            held[name] = LowRank.of(
                [
                    (
                        0.02 * torch.randn(RANK, width, generator=draw),
                        0.02 * torch.randn(out, RANK, generator=draw),
                    )
                    for _ in TASKS
                ]
            )
    return TaskVectors(TASKS, origin, LowRankTaskVectors(held))


def multiplied_out(low: TaskVectors) -> TaskVectors:
    """The same, dense: as they are loaded by default."""
    deltas = {name: delta.contiguous() for name, delta in low.deltas.items()}
    return TaskVectors(low.tasks, low.base, deltas)


def held_bytes(vectors: TaskVectors) -> int:
    """Base and task vectors."""
    deltas = vectors.deltas
    kept = (
        deltas.nbytes
        if isinstance(deltas, LowRankTaskVectors)
        else sum(d.nbytes for d in deltas.values())
    )
    return kept + sum(tensor.nbytes for tensor in vectors.base.values())


def agree(ours: Tensor, theirs: Tensor) -> float:
    """Their relative difference.

    Raises:
        AssertionError: more than rounding.
    """
    found = difference(ours, theirs)
    assert found < TOLERANCE, found
    return found


def rows_of(name: str, seconds: dict[str, float], off: float) -> list[Row]:
    """Dense over factored, and what it differs by."""
    dense, low = seconds["dense"], seconds["factored"]
    how = f"{1e3 * dense:.4g} ms ÷ {1e3 * low:.4g} ms; they differ by {off:.1e}"
    return [Row(f"{name}: dense ÷ factored", dense / low, "", how)]


def measure(size: str, folder: Path, repeats: int) -> list[Row]:
    """All figures of one size."""
    shape = SIZES[size]
    base = inspect(str(write_base(shape, folder / "base")), "pool.base")
    data = write_data(shape, TASKS, ROWS, folder / "data")
    low = low_rank_vectors(base)
    sides = {"dense": multiplied_out(low), "factored": low}
    held = {name: held_bytes(vectors) for name, vectors in sides.items()}
    plain = sum(tensor.nbytes for tensor in low.base.values())
    factors = sum(2 * d.shape[1] for n, d in low.deltas.items() if n.endswith(ADAPTED))
    floor = plain + 4 * len(TASKS) * RANK * factors
    rows = [
        Row("held, dense ÷ factored", held["dense"] / held["factored"], "",
            f"{held['dense'] / 1e6:.5g} MB ÷ {held['factored'] / 1e6:.5g} MB"),
        Row("held, factored ÷ floor", held["factored"] / floor, "1", f"{floor / 1e6:.5g} MB"),
    ]  # fmt: skip
    who = {name: experts(base, vectors, data, "cpu") for name, vectors in sides.items()}
    draw = torch.Generator().manual_seed(SEED)
    at = torch.arange(IMAGES)
    batch = who["dense"].runner.batch(TASKS[0], ROLE, at)
    for models, said in ((1, "one layer-wise coding"), (IMAGES, "one coding a sample")):
        coding = 0.3 + 0.1 * torch.randn(models, len(TASKS), len(low.groups), generator=draw)
        weights = Weights("", coding=coding)
        micro_batch = [MicroBatch({TASKS[0]: at}, coding)]
        forward = {
            name: partial(
                lambda e, w: next(e.runner.pipeline.embed_coded([(batch, w)])), each, weights
            )
            for name, each in who.items()
        }
        off = agree(forward["factored"](), forward["dense"]())
        if models == 1:
            resident = Weights("plain", "task_arithmetic", {"scale": 0.0})
            shard = who["factored"].runner.pipeline.shards[0]
            works = {**forward, "plain": partial(shard.run, batch, resident)}
        found = medians(works if models == 1 else forward, repeats)
        rows += rows_of(f"forward, {IMAGES} images, {said}", found, off)
        if models == 1:
            how = "form C ÷ the resident model; FLOPs: 1.04 to 1.06 of B/32"
            rows.append(Row("forward ÷ plain model's", found["factored"] / found["plain"], "", how))
        both = {
            name: partial(lambda e, g: e.gradients(g, ROLE, Trim())[0].coding, each, micro_batch)
            for name, each in who.items()
        }
        off = agree(both["factored"](), both["dense"]())
        rows += rows_of(f"forward + backward, {said}", medians(both, repeats), off)
    return rows + merges(sides, repeats)


def merges(sides: dict[str, TaskVectors], repeats: int) -> list[Row]:
    """By a coding, and a method that reads task vectors multiplied out; into a resident model."""
    low, rows = sides["factored"], []
    arena = {name: torch.zeros_like(tensor) for name, tensor in low.base.items()}
    coding = torch.full((1, len(TASKS), 1), 0.3)
    arithmetic = METHODS["task_arithmetic"]
    assert isinstance(arithmetic, Static)
    for name, merge in (
        ("merge by a coding", partial(mix, coding=coding)),
        ("task_arithmetic", partial(arithmetic.merge, scale=0.3)),
    ):
        key = next(key for key in low.base if key.endswith(ADAPTED))
        found = {side: merge(vectors)[key] for side, vectors in sides.items()}
        works = {side: partial(merge, vectors.into(arena)) for side, vectors in sides.items()}
        rows += rows_of(name, medians(works, repeats), agree(found["factored"], found["dense"]))
    return rows


def main() -> None:
    """Measure, print, and keep with `--save`."""
    parser = arguments(__doc__, 5)
    parser.add_argument("--size", choices=sorted(SIZES), default="b32")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(given.size, Path(folder), given.repeats)
    sizes = (
        f"{SIZES[given.size]}, {len(TASKS)} adapters of rank {RANK} on q and v, float32; medians of"
        f" {given.repeats} in turns; {given.threads} threads"
    )
    finish("lora", sizes, rows)


if __name__ == "__main__":
    main()
