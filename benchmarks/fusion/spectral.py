"""TSV-M, Iso-C and Iso-CTS against full decompositions; a step of WUDI against autograd.

    python -m benchmarks.fusion.spectral [--save]

Matrices of CLIP ViT-B/32's shapes, eight tasks, random weights; one matrix of each shape is timed,
and the whole model is that times how many there are (48 of [768, 768], 12 of [3072, 768], 12 of
[768, 3072], one of [50, 768]). The textbook does as FusionBench: a full float32 decomposition of
each task's matrix, of their sum and of the two blocks, and dense diagonal products. Ours and the
textbook take turns, the best of some repeats counts; both have all of torch's threads. Random
matrices have flat spectra: the directions at a cut are hardly told apart, which is the hardest case
for "equal results". How far each is from the textbook in float64 says whose difference it is.

One shape is timed again with singular values that fall to a thousandth. Many of them are then too
small for squares in float32, which takes float64 to put right: `iso_c`, which is nothing but one
polar factor, is slower than the textbook there, and nearer to the result in float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.environment import Row, finish
from benchmarks.fusion.merging import timed
from fusion.methods.spectral.iso import iso_c, iso_cts
from fusion.methods.spectral.tsv import tsv_m
from fusion.methods.spectral.wudi import normal_equations
from fusion.task_vectors.task_vectors import TaskVectors

TASKS = 8
SHAPES = {(768, 768): 48, (3072, 768): 12, (768, 3072): 12, (50, 768): 1}
"""Shape of a matrix -> how many a ViT-B/32 has."""
FALLING = (768, 768)
"""The shape that is timed with falling singular values, too."""
REPEATS = 2
STEPS = 5

Rule = Callable[[Tensor], Tensor]
"""Task matrices [T, m, n] -> merged [m, n]."""


def random_matrices(shape: tuple[int, int]) -> Tensor:
    """[T, m, n]: for each task noise of full rank, with a common part."""
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(TASKS, *shape, generator=generator)
    return (own + 0.5 * torch.randn(shape, generator=generator)) * 0.002


def falling_matrices(shape: tuple[int, int]) -> Tensor:
    """[T, m, n]: for each task random directions, whose singular values fall from 1 to 1e-3."""
    generator = torch.Generator().manual_seed(0)
    values = torch.logspace(0, -3, min(shape))
    tasks = []
    for _ in range(TASKS):
        left, right = (
            torch.linalg.qr(torch.randn(size, min(shape), generator=generator)).Q for size in shape
        )
        tasks.append(left * values @ right.T)
    return torch.stack(tasks)


def decomposed(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The full thin decomposition."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right


def textbook_polar(matrix: Tensor) -> Tensor:
    """U·Vᵀ."""
    left, _, right = decomposed(matrix)
    return left @ right


def textbook_tsv(deltas: Tensor) -> Tensor:
    """TSV-M: T + 2 decompositions."""
    share = min(deltas.shape[1:]) // TASKS
    parts = [decomposed(delta) for delta in deltas]
    left = torch.cat([part[0][:, :share] for part in parts], 1)
    values = torch.cat([part[1][:share] for part in parts])
    right = torch.cat([part[2][:share] for part in parts])
    return textbook_polar(left) @ torch.diag(values) @ textbook_polar(right)


def textbook_iso_c(deltas: Tensor) -> Tensor:
    """Iso-C: one decomposition."""
    left, values, right = decomposed(deltas.sum(0))
    return left @ torch.diag(values.mean().expand(len(values))) @ right


def textbook_iso_cts(deltas: Tensor) -> Tensor:
    """Iso-CTS: T + 3 decompositions."""
    rank = min(deltas.shape[1:])
    own = round((rank - int(0.8 * rank)) / TASKS)
    common = rank - own * TASKS
    left, values, right = decomposed(deltas.sum(0))
    left, values, right = left[:, :common], values[:common], right[:common]
    parts = [decomposed(delta - left @ (left.T @ delta)) for delta in deltas]
    lefts = torch.cat([*(part[0][:, :own] for part in parts), left], 1)
    every = torch.cat([*(part[1][:own] for part in parts), values])
    rights = torch.cat([*(part[2][:own] for part in parts), right])
    diagonal = torch.diag(every.mean().expand(len(every)))
    return textbook_polar(lefts) @ diagonal @ textbook_polar(rights)


def ours(rule: Callable[[TaskVectors], dict[str, Tensor]]) -> Rule:
    """A rule of one matrix, from a base of zeros."""
    tasks = tuple(f"task{t}" for t in range(TASKS))

    def merge(deltas: Tensor) -> Tensor:
        base = {"w": torch.zeros_like(deltas[0])}
        return rule(TaskVectors(tasks, base, {"w": deltas}))["w"]

    return merge


RULES: dict[str, tuple[Rule, Rule]] = {
    "tsv_m": (ours(tsv_m), textbook_tsv),
    "iso_c": (ours(iso_c), textbook_iso_c),
    "iso_cts": (ours(iso_cts), textbook_iso_cts),
}
"""method -> (ours, the textbook's)."""


def timed_result(rule: Rule, deltas: Tensor) -> tuple[float, Tensor]:
    """Seconds that a rule takes, and what it gives."""
    start = time.perf_counter()
    merged = rule(deltas)
    return time.perf_counter() - start, merged


def compared(name: str, label: str, deltas: Tensor, note: str) -> tuple[list[float], list[Row]]:
    """(Seconds of ours and the textbook's, rows) of one method on some task matrices."""
    best, results = [float("inf")] * 2, [deltas[0]] * 2
    for _ in range(REPEATS):
        for at, rule in enumerate(RULES[name]):
            once, results[at] = timed_result(rule, deltas)
            best[at] = min(best[at], once)
    exact = RULES[name][1](deltas.double())
    off = [float((result - exact).norm() / exact.norm()) for result in results]
    apart = float((results[0] - results[1]).norm() / results[1].norm())
    here = f"{name} {label}"
    return best, [
        Row(f"{here}: textbook's time ÷ ours", best[1] / best[0], "", note),
        Row(f"{here}: results differ by", apart, "", "relative norm"),
        Row(f"{here}: ours off float64", off[0], f"≤ {off[1]:.3g}", "aim: the textbook's"),
        Row(f"{here}: textbook's off float64", off[1], "", "relative norm"),
    ]


def merge_rows(name: str) -> list[Row]:
    """One method over all shapes."""
    rows, seconds = [], [0.0, 0.0]
    for shape, count in SHAPES.items():
        best, more = compared(name, f"{list(shape)}", random_matrices(shape), f"{count} are")
        seconds = [total + count * once for total, once in zip(seconds, best, strict=True)]
        rows += more
    label = f"{list(FALLING)}, falling"
    rows += compared(name, label, falling_matrices(FALLING), "singular values 1 to 1e-3")[1]
    whole = Row(f"{name}: textbook's time ÷ ours", seconds[1] / seconds[0], "≥ 2", "whole model")
    return [whole, Row(f"{name}: seconds", seconds[0], "", "whole model"), *rows]


def autograd_step(merged: Tensor, deltas: Tensor, sizes: Tensor) -> Tensor:
    """∂/∂M Σ_t ‖(M − τ_t)·τ_tᵀ‖²/‖τ_t‖² by autograd through the batched products."""
    merged = merged.detach().requires_grad_()
    products = torch.matmul(merged[None] - deltas, deltas.transpose(1, 2))
    loss = (products.square().sum((1, 2)) / sizes).sum()
    (gradient,) = torch.autograd.grad(loss, merged)
    return gradient


def closed_step(merged: Tensor, seen: Tensor, aim: Tensor) -> Tensor:
    """The same in closed form, as `fusion.methods.spectral.wudi` has it."""
    return torch.mm(merged, seen).sub_(aim).mul_(2)


def wudi_rows() -> list[Row]:
    """A step's gradient, over all shapes; what is made once is told by itself."""
    rows, seconds = [], [0.0, 0.0, 0.0]
    for shape, count in SHAPES.items():
        deltas = random_matrices(shape)
        sizes = deltas.square().sum((1, 2))
        start, seen, aim = normal_equations(deltas)
        once = timed(partial(normal_equations, deltas))

        wanted = autograd_step(start, deltas, sizes)
        gradient = closed_step(start, seen, aim)
        off = float((gradient - wanted).norm() / wanted.norm())
        fast = min(timed(partial(closed_step, start, seen, aim)) for _ in range(STEPS))
        slow = min(timed(partial(autograd_step, start, deltas, sizes)) for _ in range(STEPS))
        parts = (fast, slow, once)
        seconds = [total + count * part for total, part in zip(seconds, parts, strict=True)]
        rows.append(Row(f"wudi {list(shape)}: autograd's step ÷ ours", slow / fast, "", ""))
        rows.append(Row(f"wudi {list(shape)}: gradients differ by", off, "", "relative norm"))
    return [
        Row("wudi: autograd's step ÷ ours", seconds[1] / seconds[0], "≥ 5", "whole model"),
        Row("wudi: seconds a step", seconds[0], "", "whole model, without Adam"),
        Row("wudi: A and B, in steps", seconds[2] / seconds[0], "", "made once"),
        *rows,
    ]


def run() -> list[Row]:
    """All figures."""
    with torch.no_grad():
        rows = [row for name in RULES for row in merge_rows(name)]
    return rows + wudi_rows()


def main() -> None:
    """Measure, print, and keep with `--save`."""
    sizes = f"{TASKS} tasks; one matrix of each shape, best of {REPEATS}, {STEPS} steps"
    finish("spectral", f"{sizes}; {torch.get_num_threads()} threads", run())


if __name__ == "__main__":
    main()
