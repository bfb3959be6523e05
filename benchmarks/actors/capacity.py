"""What large pools would need, by the project's own formulas: memory, shards, traffic, time a step.

    python -m benchmarks.actors.capacity

Prints the tables of `docs/capacity.md`. Computed from shapes alone:
`actors.cluster.partition.needs` and
`actors.cluster.planner.plan` for memory and shards, the formulas below for traffic and work. Rates
of GPUs are data sheets' and the part of them that is reached is assumed: no GPU is measured here.

A *step* learns from B images (or sequences) of n tokens of each of T tasks, a micro-batch a task.
With P the weights that every token is multiplied with, d the width, L the layers and e the bytes an
element of what is computed in:

    traffic = 2 · (S − 1) · T · B · n · d · e           (each cut: forth, and back as gradients)
    work    = 3 · T · B · n · (2 P + 4 n d L)           (forward once, backward twice that)
    merging = 3 · T · 2 T P                             (merge, merge again, ⟨∂L/∂W, τ⟩)
    moved   = T · P · (4 (3 T + 2) + 4 e)               (task vectors three times, base twice; a
                                                         merged model written and read, twice)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from actors.cluster.partition import FLOAT32, Load, needs
from actors.cluster.planner import Node, Plan, Resources, plan
from actors.data.task_rows import BATCH
from actors.families.clip.architecture import DEFAULTS, activations, vision_tensors
from fusion.errors import InputError

UTILISATION = 0.4
"""Part of a GPU's rate that matrix products reach: assumed."""

OVER_FLOOR = 1.44
"""A training step ÷ the floor of its products: measured on a CPU, B/32 (results/gates)."""

HOST = 512 * 10**9
"""Main memory of a node: assumed."""


@dataclass(frozen=True)
class Gpu:
    """As its data sheet says: bytes, FLOP/s in float32 and in float16, bytes/s of its memory."""

    name: str
    memory: int
    float32: float
    float16: float
    bandwidth: float


A100 = Gpu("A100 80 GB", 80 * 10**9, 19.5e12, 312e12, 2.0e12)


@dataclass(frozen=True)
class Model:
    """Bytes of its segments in float32, and what passes through them."""

    name: str
    segments: tuple[int, ...]
    weights: int
    """Parameters that every token is multiplied with."""
    width: int
    layers: int
    tokens: int
    forward: int
    """Elements of activations a sample: at the peak of a forward pass."""
    kept: int
    """The same: kept for a backward pass."""
    batch: int = BATCH
    """Samples of an evaluation batch."""

    def load(self, experts: int, itemsize: int, samples: int, delta: int = FLOAT32) -> Load:
        """What has to be placed to learn from `samples` a micro-batch."""
        return Load(
            self.segments,
            experts,
            delta,
            itemsize,
            itemsize * self.batch * self.forward,
            itemsize * samples * self.kept,
        )

    def traffic(self, shards: int, samples: int, itemsize: int) -> float:
        """Bytes between shards a step of so many samples."""
        return 2.0 * (shards - 1) * samples * self.tokens * self.width * itemsize

    def work(self, samples: int) -> float:
        """Floating-point operations of a step of so many samples."""
        attention = 4 * self.tokens * self.width * self.layers
        return 3.0 * samples * self.tokens * (2 * self.weights + attention)

    def merging(self, tasks: int) -> float:
        """Floating-point operations to merge in a step of a micro-batch a task."""
        return 6.0 * tasks * tasks * self.weights

    def moved(self, tasks: int, itemsize: int) -> float:
        """Bytes of device memory that merging moves in such a step."""
        return float(tasks * self.weights * (FLOAT32 * (3 * tasks + 2) + 4 * itemsize))


def clip(name: str, width: int, inner: int, layers: int, patch: int, projection: int) -> Model:
    """A vision tower of the hub's configuration, by `vision_tensors`."""
    fields = {**DEFAULTS, "hidden_size": width, "intermediate_size": inner, "patch_size": patch}
    fields["num_hidden_layers"] = layers
    sizes = [0] * (layers + 2)
    for tensor, shape in vision_tensors(fields).items():
        *_, at = tensor.split(".")[:3] if tensor.startswith("encoder") else ("", "0")
        last = tensor.startswith("post")
        index = layers + 1 if last else int(at) + 1 if tensor.startswith("encoder") else 0
        sizes[index] += FLOAT32 * prod(shape)
    sizes[-1] += FLOAT32 * width * projection
    tokens = (fields["image_size"] // patch) ** 2 + 1
    multiplied = layers * (4 * width**2 + 2 * width * inner)
    return Model(name, tuple(sizes), multiplied, width, layers, tokens, *activations(fields)[:2])


def decoder(name: str, width: int, inner: int, layers: int, vocabulary: int, tokens: int) -> Model:
    """A language model with a gated MLP and untied embeddings; norms are left out.

    Activations as `sweeps.planning.prepared.activations` counts them, with three hidden layers of
    the MLP.
    """
    layer = 4 * width**2 + 3 * width * inner
    ends = FLOAT32 * vocabulary * width
    return Model(
        name,
        (ends, *[FLOAT32 * layer] * layers, ends),
        layers * layer + vocabulary * width,
        width,
        layers,
        tokens,
        tokens * (5 * width + 2 * inner),
        tokens * (9 * width + 3 * inner) * layers,
        batch=16,
    )


L14 = clip("CLIP ViT-L/14", 1024, 4096, 24, 14, 768)
B32 = clip("CLIP ViT-B/32", 768, 3072, 12, 32, 512)
SEVEN = decoder("7B (Llama 2's configuration)", 4096, 11008, 32, 32000, 512)

CASES = (
    ("L/14 × 8 on 4 × 80 GB", L14, 8, 16),
    ("L/14 × 64 on 4 × 80 GB", L14, 64, 16),
    ("7B × 8 on 8 × 80 GB", SEVEN, 8, 4),
)
"""Experts, and samples a micro-batch."""


def nodes(gpus: int, gpu: Gpu = A100) -> Resources:
    """Nodes of up to eight GPUs, 64 cores and `HOST` bytes."""
    return Resources(
        tuple(
            Node(64, min(8, gpus - start), HOST, gpu.memory, f"node{start // 8}")
            for start in range(0, gpus, 8)
        )
    )


def tables() -> Iterator[str]:
    """Lines of Markdown."""
    yield from sizes()
    yield from placements()
    yield from steps()


def sizes() -> Iterator[str]:
    """Parameters, and what a step moves."""
    yield "| model | parameters | base and 8 task vectors, float32 | forward of a sample |"
    yield "|---|---|---|---|"
    for model in (B32, L14, SEVEN):
        size = sum(model.segments)
        yield (
            f"| {model.name} | {size / FLOAT32 / 1e6:,.1f} M | {9 * size / 1e9:.1f} GB |"
            f" {model.work(1) / 3e9:,.1f} GFLOP |"
        )
    yield ""


def placements() -> Iterator[str]:
    """Memory of every shard, for one replica in so many shards; and the plan's own choice."""
    yield "| case | computed in | one shard | 2 shards | 4 shards | 8 shards | host, whole | plan |"
    yield "|---" * 8 + "|"
    for text, model, experts, samples in CASES:
        for itemsize, delta, kind in PRECISIONS:
            load = model.load(experts, itemsize, samples, delta)
            cells = [
                f"{max(n.device for n in needs(load, count, 'cuda')) / 1e9:.1f} GB"
                for count in (1, 2, 4, 8)
            ]
            whole = 1.15 * sum(n.weights for n in needs(load, 1, "cuda")) / 1e9
            chosen = shown(load, text)
            yield f"| {text} | {kind} | {' | '.join(cells)} | {whole:.0f} GB | {chosen} |"
    yield ""


PRECISIONS = (
    (4, 4, "float32"),
    (2, 4, "float16"),
    (2, 2, "float16, task vectors in bfloat16"),
)


def gpus_of(text: str) -> int:
    """`L/14 × 8 on 4 × 80 GB` -> 4."""
    return int(text.partition(" on ")[2].split()[0])


def shown(load: Load, text: str) -> str:
    """What `plan` makes of it, on the case's GPUs."""
    try:
        found: Plan = plan(load, nodes(gpus_of(text)))
    except InputError as error:
        return str(error).removeprefix("placement: ")
    return f"{found.replicas} × {found.shards} shard(s)"


def steps() -> Iterator[str]:
    """Traffic and time of a step, with the fewest shards that fit and with four.

    A micro-batch takes `OVER_FLOOR` × its products and what merging moves. A replica alone takes
    one after the other;
    R replicas of S shards on all GPUs take ⌈T/R⌉ + S − 1 slots of 1/S micro-batch.
    """
    heads = [
        *("case", "computed in", "shards", "between shards", "products", "merging, arithmetic"),
        *("merging, memory", "a step, micro-batch after micro-batch", "on all GPUs"),
    ]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for text, model, experts, samples in CASES:
        for itemsize, _, kind in PRECISIONS[:2]:
            count = fewest(model.load(experts, itemsize, samples))
            rate = UTILISATION * (A100.float32 if itemsize == FLOAT32 else A100.float16)
            work = model.work(samples * experts) / rate
            arithmetic = model.merging(experts) / rate
            memory = model.moved(experts, itemsize) / A100.bandwidth
            micro_batch = (OVER_FLOOR * work + memory) / experts
            for shards in sorted({count, max(count, 4)}):
                traffic = model.traffic(shards, samples * experts, itemsize)
                dealt = -(-experts // (gpus_of(text) // shards))
                slots = micro_batch / shards * (dealt + shards - 1)
                times = (work, arithmetic, memory, experts * micro_batch, slots)
                cells = " | ".join(f"{each:.2f} s" for each in times)
                name = text.partition(" on ")[0]
                yield f"| {name} | {kind} | {shards} | {traffic / 1e9:.2f} GB | {cells} |"
    yield ""


def fewest(load: Load, gpu: Gpu = A100) -> int:
    """Shards that a replica needs on GPUs of this size."""
    for count in range(1, len(load.segments) + 1):
        if max(need.device for need in needs(load, count, "cuda")) <= gpu.memory:
            return count
    raise InputError(f"capacity: no number of shards fits {gpu.name}")


def main() -> None:
    """Print."""
    sys.stdout.write("\n".join(tables()) + "\n")


if __name__ == "__main__":
    main()
