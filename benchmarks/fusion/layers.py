"""Forms A and B of a merged linear layer, and A against an eager loop over samples.

    python -m benchmarks.fusion.layers [--save] [--device cuda] [--threads 2] [--repeats 7]

M = 16 models of T = 8 or T = 1 task vectors, n tokens a model, two sizes of layer, float32. Form
A merges and then multiplies, form B scales the input (`fusion/merged_layers/functional.py`). The
crossover is the n
at which the two take the same time, between the two measured n around it by the logarithms of n
and of the ratio. Both forms and the loop must give the same outputs and gradients.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.environment import Row, finish
from benchmarks.fusion.merging import timed
from fusion.merged_layers import forms
from fusion.merged_layers.functional import merged_linear

MODELS = 16
TASKS = (8, 1)
LAYERS = ((768, 3072), (160, 320))
"""(in, out)."""
TOKENS = (1, 2, 4, 8, 16, 50, 197)
TOLERANCE = 1e-4
"""Of relative L2 differences, in float32."""


def synchronise(device: str) -> None:
    """Wait for what was asked of the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def medians(
    works: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu"
) -> dict[str, float]:
    """Median seconds of each, taken in turns after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}

    def whole(work: Callable[[], object]) -> None:
        work()
        synchronise(device)

    for repeat in range(repeats + 1):
        for name, work in works.items():
            taken = timed(partial(whole, work))
            if repeat:
                seconds[name].append(taken)
    return {name: statistics.median(each) for name, each in seconds.items()}


def difference(ours: Tensor, theirs: Tensor) -> float:
    """‖ours − theirs‖/‖theirs‖."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-300))


def flop_rate(device: str) -> float:
    """FLOP/s of a plain product of two matrices, best of some."""
    size = 2048 if device == "cpu" else 8192
    left = torch.randn(size, size, device=device)

    def product() -> None:
        torch.mm(left, left)
        synchronise(device)

    product()
    return 2 * size**3 / min(timed(product) for _ in range(5))


@dataclass(frozen=True, eq=False)
class Case:
    """One layer, its task vectors and what goes through it."""

    x: Tensor
    """[M, n, in]."""
    c: Tensor
    """[M, T]."""
    base: Tensor
    deltas: Tensor
    dy: Tensor
    """[M, n, out]."""

    @classmethod
    def random(cls, tokens: int, tasks: int, layer: tuple[int, int], device: str) -> Case:
        """The same every time."""
        draw = torch.Generator(device).manual_seed(0)

        def normal(*shape: int, std: float = 1.0) -> Tensor:
            return std * torch.randn(*shape, generator=draw, device=device)

        width, out = layer
        return cls(
            normal(MODELS, tokens, width).requires_grad_(),
            (0.3 + normal(MODELS, tasks, std=0.1)).requires_grad_(),
            normal(out, width, std=0.02),
            normal(tasks, out, width, std=0.002),
            normal(MODELS, tokens, out),
        )

    def form(self, form: str) -> Tensor:
        """A, B, or the eager loop."""
        if form == "loop":
            return torch.stack([self.sample(m) for m in range(MODELS)])
        return merged_linear(
            self.x, self.c, self.base, self.deltas, form="A" if form == "A" else "B"
        )

    def sample(self, m: int) -> Tensor:
        """One model, as written down: a sum over tasks, then a product."""
        weight = self.base
        for t, delta in enumerate(self.deltas):
            weight = weight + self.c[m, t] * delta
        return F.linear(self.x[m], weight)

    def forward(self, form: str) -> Tensor:
        """Without gradients."""
        with torch.no_grad():
            return self.form(form)

    def both(self, form: str) -> tuple[Tensor, Tensor]:
        """Forward and backward: gradients of input and coefficients."""
        found = torch.autograd.grad(self.form(form), (self.x, self.c), self.dy)
        return found[0], found[1]


def check(case: Case) -> float:
    """The largest relative difference of B and the loop from A.

    Raises:
        AssertionError: more than rounding.
    """
    wanted = (case.forward("A"), *case.both("A"))
    worst = 0.0
    for form in ("B", "loop"):
        for ours, theirs in zip((case.forward(form), *case.both(form)), wanted, strict=True):
            worst = max(worst, difference(ours, theirs))
    assert worst < TOLERANCE, worst
    return worst


def crossover(ratios: Sequence[tuple[int, float]]) -> float:
    """The n at which B/A becomes 1; NaN where it does not among those measured.

    >>> crossover([(1, 0.25), (4, 4.0)])
    2.0
    """
    for (n, low), (m, high) in itertools.pairwise(ratios):
        if low < 1 <= high:
            share = math.log(1 / low) / math.log(high / low)
            return math.exp(math.log(n) + share * math.log(m / n))
    return math.nan


def measure(
    tasks: int, layer: tuple[int, int], counts: Sequence[int], device: str, repeats: int
) -> list[Row]:
    """The rows of one layer and number of tasks."""
    rows: list[Row] = []
    forward: list[tuple[int, float]] = []
    training: list[tuple[int, float]] = []
    label = f"T = {tasks}, {layer[0]}×{layer[1]}"
    for tokens in counts:
        case = Case.random(tokens, tasks, layer, device)
        check(case)
        works: dict[str, Callable[[], object]] = {}
        for form in ("A", "B", "loop"):
            works[f"{form} forward"] = partial(case.forward, form)
            works[f"{form} both"] = partial(case.both, form)
        found = {name: 1e3 * value for name, value in medians(works, repeats, device).items()}
        for pass_, ratios in (("forward", forward), ("both", training)):
            a, b, loop = (found[f"{form} {pass_}"] for form in ("A", "B", "loop"))
            ratios.append((tokens, b / a))
            what = "forward" if pass_ == "forward" else "forward + backward"
            how = f"{a:.2f} ms, {b:.2f} ms, loop {loop:.2f} ms; {floor(tokens, tasks, layer)}"
            rows.append(Row(f"{label}, n = {tokens}, {what}: B ÷ A", b / a, "", how))
            rows.append(Row(f"{label}, n = {tokens}, {what}: loop ÷ A", loop / a, "", ""))
    costs = forms.crossover(torch.device(device), torch.float32, False, (layer[1], layer[0]), tasks)
    limits = (costs.limit(tasks, False), costs.limit(tasks, True))
    for what, ratios, limit in zip(
        ("forward", "forward + backward"), (forward, training), limits, strict=True
    ):
        how = f"`forms.py` says {limit:.3g}"
        rows.append(Row(f"{label}, {what}: crossover n", crossover(ratios), "", how))
    return rows


def floor(tokens: int, tasks: int, layer: tuple[int, int]) -> str:
    """What each form must do forward."""
    weights = layer[0] * layer[1]
    a, b = (2e-9 * MODELS * weights * k for k in (tasks + tokens, tokens * (tasks + 1)))
    read, written = 4e-6 * weights * (tasks + 1), 4e-6 * weights * MODELS
    return (
        f"forward at least: A {a:.2g} GFLOP, {read:.2g} MB read, {written:.2g} MB written and"
        f" read; B {b:.2g} GFLOP, {read:.2g} MB read"
    )


def arguments(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """What these benchmarks all take; `finish` itself looks for `--save`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--save", action="store_true", help="keep the result under results/")
    return parser


def main() -> None:
    """Measure, print, and keep with `--save`."""
    parser = arguments(__doc__, 7)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = [Row("plain product, GFLOP/s", flop_rate(given.device) / 1e9, "", "best of 5")]
    for tasks in TASKS:
        for layer in LAYERS:
            rows += measure(tasks, layer, given.tokens, given.device, given.repeats)
    sizes = (
        f"{MODELS} models, float32, on {given.device}; medians of {given.repeats} in turns;"
        f" {given.threads} threads; outputs and gradients within {TOLERANCE:g} of A's"
    )
    finish("layers", sizes, rows)


if __name__ == "__main__":
    main()
