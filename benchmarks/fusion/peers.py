"""Merges and statistics from memory against straightforward code for the same formulas.

    python -m benchmarks.fusion.peers [--save]

The straightforward code is written here from the formulas, with the operations in the order of
FusionBench 0.2.33 (DARE, SLERP, Gram matrices) and mergekit 0.1.4 (breadcrumbs): one tensor and one
model after the other, each operation in new memory. It starts from state dicts, ours from task
vectors. The two run in turn in one process; each ratio is of the best of some repeats.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from benchmarks.environment import Row, finish
from benchmarks.fusion.layers import arguments
from benchmarks.fusion.merging import vision_shapes
from fusion.methods.geodesic.slerp import slerp
from fusion.methods.sparse.breadcrumbs import breadcrumbs
from fusion.methods.sparse.dare import dare
from fusion.methods.statistics.collect import Grams
from fusion.task_vectors.task_vectors import TaskVectors

State = dict[str, Tensor]
TASKS, DENSITY, GAMMA, SCALE = 8, 0.15, 0.006, 0.3

SIZES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "150 tensors of 256": {f"layer.{i}.bias": (256,) for i in range(150)},
    "256 wide, 8 layers": vision_shapes(256, 8),
}

MODELS = {"160 wide, 2 layers": (160, 2, 16, 64), "ViT-B/32": (768, 12, 32, 224)}
"""Width, layers, side of a patch and of an image."""


def pool(shapes: Mapping[str, tuple[int, ...]], tasks: int) -> tuple[TaskVectors, list[State]]:
    """Random task vectors, and the state dicts of their experts."""
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.empty(shape).normal_(0, 0.02, generator=generator)
            for name, shape in shapes.items()}  # fmt: skip
    deltas = {name: torch.empty(tasks, *shape).normal_(0, 0.002, generator=generator)
              for name, shape in shapes.items()}  # fmt: skip
    experts = [{name: base[name] + deltas[name][t] for name in base} for t in range(tasks)]
    return TaskVectors(tuple(f"task{t}" for t in range(tasks)), base, deltas), experts


def plain_sum(base: State, vectors: list[State], scale: float) -> State:
    """θ₀ + λ·Σ τ, one model after the other."""
    total = dict(vectors[0])
    for vector in vectors[1:]:
        total = {name: total[name] + vector[name] for name in total}
    return {name: base[name] + scale * total[name] for name in base}


def plain_dare(base: State, experts: list[State]) -> State:
    """Drop half of the entries of every task vector, double the rest, and add."""
    vectors = [{name: expert[name] - base[name] for name in base} for expert in experts]
    for vector in vectors:
        for name, tensor in vector.items():
            vector[name] = tensor * (torch.rand_like(tensor) > 0.5) / 0.5
    return plain_sum(base, vectors, SCALE)


def plain_breadcrumbs(base: State, experts: list[State]) -> State:
    """Mask by the order of a full sort."""
    vectors = [{name: expert[name] - base[name] for name in base} for expert in experts]
    for vector in vectors:
        for name, tensor in vector.items():
            order = tensor.abs().reshape(-1).sort(descending=True).indices
            first = int(GAMMA * len(order))
            mask = torch.zeros_like(tensor)
            mask.view(-1)[order[first : first + int(DENSITY * len(order))]] = 1
            vector[name] = tensor * mask
    return plain_sum(base, vectors, SCALE)


def plain_slerp(base: State, experts: list[State]) -> State:
    """The arc between two models at its middle, tensor by tensor."""
    merged = {}
    for name, first in experts[0].items():
        second = experts[1][name]
        a, b = (end.clone() for end in (first, second))
        cosine = ((a / a.norm()) * (b / b.norm())).sum()
        if abs(cosine) > 0.9995:
            merged[name] = 0.5 * first + 0.5 * second
            continue
        angle = cosine.arccos()
        share = (angle / 2).sin() / angle.sin()
        merged[name] = share * first + share * second
    return merged


def plain_grams(model: nn.Module, batches: list[Tensor]) -> State:
    """XᵀX of the inputs of every linear layer, by a hook a layer."""
    sums: State = {}
    handles = []
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear):

            def add(layer: nn.Module, inputs: tuple[Tensor, ...], name: str = path) -> None:
                x = inputs[0].reshape(-1, inputs[0].shape[-1])
                gram = x.T @ x
                sums[name] = sums[name] + gram if name in sums else gram

            handles.append(layer.register_forward_pre_hook(add))
    run(model, batches)
    for handle in handles:
        handle.remove()
    return sums


def our_grams(model: nn.Module, batches: list[Tensor]) -> State:
    """The same by `Grams`."""
    names = {name: name for name, _ in model.named_parameters()}
    grams = Grams([(model, names)], names)
    grams.on = True
    run(model, batches)
    grams.close()
    return grams.means()


def run(model: nn.Module, batches: list[Tensor]) -> None:
    """Forward passes."""
    with torch.inference_mode():
        for batch in batches:
            model(batch)


def in_turn(ours: Callable[[], object], plain: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of both, each the best of some repeats."""
    best = [float("inf")] * 2
    for _ in range(repeats + 1):  # the first warms up and is rarely the best
        for at, work in enumerate((ours, plain)):
            start = time.perf_counter()
            work()
            best[at] = min(best[at], time.perf_counter() - start)
    return best


def row(name: str, seconds: list[float], aim: str) -> Row:
    """The ratio of two times."""
    ours, plain = seconds
    return Row(name, plain / ours, aim, f"{plain * 1e3:.4g} ÷ {ours * 1e3:.4g} ms")


def merges(repeats: int) -> list[Row]:
    """Merges of every size."""
    rows = []
    for size, shapes in SIZES.items():
        vectors, experts = pool(shapes, TASKS)
        pair, ends = pool(shapes, 2)
        base = dict(vectors.base)
        works: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "DARE": (
                partial(dare, vectors, density=0.5, scale=SCALE),
                partial(plain_dare, base, experts),
            ),
            "breadcrumbs": (
                partial(breadcrumbs, vectors, density=DENSITY, gamma=GAMMA, scale=SCALE),
                partial(plain_breadcrumbs, base, experts),
            ),
            "SLERP, 2 models": (partial(slerp, pair), partial(plain_slerp, base, ends)),
        }
        for name, (ours, plain) in works.items():
            rows.append(row(f"{name}: {size}", in_turn(ours, plain, repeats), "≥ 1"))
    return rows


def statistics(repeats: int) -> list[Row]:
    """Gram matrices for RegMean."""
    rows = []
    for size, (width, layers, patch, image) in MODELS.items():
        config = CLIPVisionConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
            num_attention_heads=max(1, width // 64), patch_size=patch, image_size=image,
        )  # fmt: skip
        model = CLIPVisionModel(config).eval()
        batches = [torch.randn(32, 3, image, image)] * (8 if layers < 12 else 1)
        ours, plain = partial(our_grams, model, batches), partial(plain_grams, model, batches)
        seconds = in_turn(ours, plain, repeats)
        rows.append(row(f"Gram matrices of an expert's inputs: {size}", seconds, "≥ 1.3"))
    return rows


def main() -> None:
    """Measure, print, and keep with `--save`."""
    given = arguments(__doc__, 3).parse_args()
    torch.set_num_threads(given.threads)
    sizes = f"{TASKS} experts, float32; {given.threads} threads; best of {given.repeats}"
    rows = merges(given.repeats) + statistics(given.repeats)
    finish("peers", sizes, rows)


if __name__ == "__main__":
    main()
