"""WE-MoE's evaluation against a loop over samples; a step of a Concrete mask against T products.

    python -m benchmarks.actors.resident [--save]

Layers of CLIP ViT-B/32's size, eight tasks, random weights. The loop merges one sample's MLP at a
time, a task after the other, as FusionBench does; ours merges for all samples in one product. Both
multiply each sample's tokens by its own weights: the floor, which bounds the ratio. The textbook's
mask multiplies every task vector by the mask and leaves the rest to autograd; ours sums
the task vectors once, and writes the gradient out. Both draw the same uniform numbers. Ours and the
other take turns, the best of some repeats counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.environment import Row, finish
from benchmarks.fusion.merging import timed
from fusion.merged_layers.modules import Mixer, merge_layers
from fusion.methods.learned.concrete import drawn, logits_gradient, masked, relaxed, summed
from fusion.methods.learned.wemoe import RoutedMlp, Router
from fusion.task_vectors.sparse import pruned
from fusion.task_vectors.task_vectors import TaskVectors

TASKS, WIDTH, HIDDEN, TOKENS, SAMPLES = 8, 768, 3072, 50, 32
REPEATS = 3
SCALE, TEMPERATURE = 0.3, 0.5
BLOCK = {**dict.fromkeys(("q", "k", "v", "out"), (WIDTH, WIDTH)), "fc1": (HIDDEN, WIDTH)}
BLOCK |= {"fc2": (WIDTH, HIDDEN)}
"""The weights of one block."""


def random_vectors(shapes: Mapping[str, tuple[int, ...]]) -> TaskVectors:
    """Base and eight task vectors."""
    generator = torch.Generator().manual_seed(0)
    base = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    deltas = {
        name: 0.002 * torch.randn(TASKS, *shape, generator=generator)
        for name, shape in shapes.items()
    }
    return TaskVectors(tuple(f"task{t}" for t in range(TASKS)), base, deltas)


def mlp() -> nn.Sequential:
    """A block's MLP."""
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))


def looped(vectors: TaskVectors, router: Router, hidden: Tensor) -> Tensor:
    """A sample at a time, a tensor at a time, a task at a time."""
    out = torch.empty_like(hidden)
    coefficients = router(hidden)
    for i, row in enumerate(coefficients.tolist()):
        merged = {}
        for name, base in vectors.base.items():
            weight = base.clone()
            for t, delta in enumerate(vectors.deltas[name]):
                weight = weight + row[t] * delta
            merged[name] = weight
        inner = nn.functional.gelu(linear(hidden[i], merged["0.weight"], merged["0.bias"]))
        out[i] = linear(inner, merged["2.weight"], merged["2.bias"])
    return out


def routed(vectors: TaskVectors, router: Router) -> RoutedMlp:
    """An MLP a sample, in batched products."""
    mixer, names = Mixer(vectors), list(vectors.base)
    return RoutedMlp(merge_layers(mlp(), mixer, {n: n for n in names}), router, mixer, names, False)


def routing_rows() -> list[Row]:
    """One block's MLP, a model a sample."""
    vectors = random_vectors({name: tuple(p.shape) for name, p in mlp().named_parameters()})
    router = Router(WIDTH, TASKS, 2, SCALE)
    hidden = torch.randn(SAMPLES, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    sparse = pruned(vectors, list(vectors.base), 0.9)
    dense, thin = routed(vectors, router), routed(sparse, router)
    with torch.inference_mode():
        wanted, found = looped(vectors, router, hidden), dense(hidden)
        off = float((found - wanted).norm() / wanted.norm())
        best, plain = [float("inf")] * 4, mlp()
        for _ in range(REPEATS):
            works = (
                lambda: dense(hidden),
                lambda: looped(vectors, router, hidden),
                lambda: thin(hidden),
                lambda: plain(hidden),
            )
            best = [min(b, timed(work)) for b, work in zip(best, works, strict=True)]
    what = f"one block's MLP, {SAMPLES} images of {TOKENS} tokens"
    merging = (best[1] - best[3]) / (best[0] - best[3])
    kept = sum(delta.nbytes for delta in vectors.deltas.values())
    stored = sum(part.nbytes for part in sparse_parts(sparse))
    return [
        Row("wemoe, a model a sample: loop's time ÷ ours", best[1] / best[0], "≥ 5", what),
        Row("wemoe: milliseconds an image and block", 1e3 * best[0] / SAMPLES, "", "ours"),
        Row("wemoe: loop's time ÷ the products alone", best[1] / best[3], "", "the most there is"),
        Row("wemoe: merging alone, loop's ÷ ours", merging, "", "without those products"),
        Row("wemoe: results differ by", off, "", "relative norm"),
        Row("ewemoe: time ÷ wemoe's", best[2] / best[0], "", "a tenth of the entries"),
        Row("ewemoe: memory of task vectors ÷ wemoe's", stored / kept, "", "values and places"),
    ]


def sparse_parts(vectors: TaskVectors) -> list[Tensor]:
    """Values and places of the pruned task vectors, as many as are not zero."""
    found = []
    for name in vectors.deltas:
        left = vectors.deltas[name].count_nonzero()
        found += [torch.empty(int(left)), torch.empty(int(left), dtype=torch.int32)]
    return found


def textbook_step(base: Tensor, deltas: Tensor, logits: Tensor, gradient: Tensor) -> Tensor:
    """∂L/∂x by autograd through T products."""
    x = logits.detach().requires_grad_()
    uniform = drawn(logits, 0, "w")
    mask = torch.sigmoid((uniform.logit() + x) / TEMPERATURE)
    mask = mask / mask.mean()
    theta = base
    for delta in deltas:
        theta = theta + (SCALE * mask) * delta
    (found,) = torch.autograd.grad(theta, x, gradient)
    return found


def our_step(base: Tensor, step: Tensor, logits: Tensor, gradient: Tensor, out: Tensor) -> Tensor:
    """∂L/∂x, Σ λτ being there."""
    mask = relaxed(logits, drawn(logits, 0, "w"), TEMPERATURE)
    masked(out, base, step, mask)
    return logits_gradient(gradient, step, mask, TEMPERATURE)


def mask_rows() -> list[Row]:
    """One block's weights, from logits to their gradients; the model's own passes aside."""
    vectors = random_vectors(BLOCK)
    seconds, worst, made, drawing = [0.0, 0.0], 0.0, 0.0, 0.0
    for name, base in vectors.base.items():
        deltas, out = vectors.deltas[name], torch.empty_like(base)
        logits = torch.randn(base.shape, generator=torch.Generator().manual_seed(2))
        gradient = torch.randn(base.shape, generator=torch.Generator().manual_seed(3))
        step = summed(deltas, [SCALE] * TASKS)
        made += timed(partial(summed, deltas, [SCALE] * TASKS))
        best = [float("inf")] * 2
        works = (
            partial(our_step, base, step, logits, gradient, out),
            partial(textbook_step, base, deltas, logits, gradient),
        )
        for _ in range(REPEATS):
            best = [min(old, timed(work)) for old, work in zip(best, works, strict=True)]
        drawing += min(timed(partial(drawn, logits, 0, "w")) for _ in range(REPEATS))
        results = [
            our_step(base, step, logits, gradient, out),
            textbook_step(base, deltas, logits, gradient),
        ]
        worst = max(worst, float((results[0] - results[1]).norm() / results[1].norm()))
        seconds = [total + once for total, once in zip(seconds, best, strict=True)]
    ratio = seconds[1] / seconds[0]
    return [
        Row("concrete, a step: T products' time ÷ ours", ratio, "≥ 2", "one block's weights"),
        Row("concrete: milliseconds a block", 1e3 * seconds[0], "", "ours"),
        Row("concrete: of that, drawing", drawing / seconds[0], "", "uniform numbers, in both"),
        Row("concrete: Σ λτ, in steps", made / seconds[0], "", "made once"),
        Row("concrete: gradients differ by", worst, "", "relative norm"),
    ]


def run() -> list[Row]:
    """All figures."""
    return routing_rows() + mask_rows()


def main() -> None:
    """Measure, print, and keep with `--save`."""
    sizes = f"ViT-B/32's blocks, {TASKS} tasks; best of {REPEATS}"
    finish("resident", f"{sizes}; {torch.get_num_threads()} threads", run())


if __name__ == "__main__":
    main()
