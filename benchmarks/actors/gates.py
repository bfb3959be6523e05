"""Training a gate, evaluating with one model a sample, and AdaMerging's gradients.

    python -m benchmarks.actors.gates [--save] [--size embedded] [--parts train memory code static]

Random weights, eight experts, on the sizes of the embedded pool and of CLIP ViT-B/32. Ours is what
a sweep runs (`LocalExperts`, `learn_step`, `Shard.run_coded`). The textbook merges state dicts by
Python sums and calls transformers' CLIPVisionModel through `torch.func.functional_call`:

* train: a step on 8 tasks × 16 images, one model a task. The textbook merges under autograd, keeps
  all eight graphs and goes back once, through the gate too.
* memory: the peak of such steps, of a process that does nothing else, over what it had before any
  weight. The floor: base, task vectors, and what one task's plain forward keeps for its backward.
* code: 16 images, a coding each. The textbook merges and runs a model an image, without gradients.
* static: the gradient of one layer-wise coding on all tasks (AdaMerging). The textbook merges once
  under autograd and goes back task by task through the retained graph, as FusionBench does.

Losses, gradients and embeddings of the two must agree first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import psutil
import torch
from torch import Tensor

from actors.experts.local import LocalExperts
from actors.shards.shard import Weights
from benchmarks.environment import Row, finish
from benchmarks.fusion.layers import arguments, difference, flop_rate, medians
from benchmarks.fusion.merging import alone, peak_bytes, reset_peak
from benchmarks.pools import (
    B32,
    EMBEDDED,
    ROLE,
    ROWS,
    SEED,
    TASKS,
    RandomPool,
    Size,
    Textbook,
    gate_learning,
    write_base,
)
from fusion.logits.optimize import draw
from fusion.methods.learned.steps import MicroBatch, learn_step, micro_batches
from fusion.task_vectors.sparsify import Trim

IMAGES = 16
GROUPINGS = ("task", "layer")
SIZES = {"embedded": (EMBEDDED,), "b32": (B32,), "both": (EMBEDDED, B32)}
PARTS = ("train", "memory", "code", "static")
TOLERANCE = 1e-4
"""Of relative L2 differences, in float32: gradients are sums of many terms that cancel."""


class Training:
    """A gate under way, on our experts or on the textbook."""

    def __init__(
        self,
        pool: RandomPool,
        grouping: str,
        side: LocalExperts | Textbook,
        tasks: int = len(TASKS),
    ) -> None:
        """`tasks`: how many of them a step learns from."""
        self.pool, self.side, self.at = pool, side, 0
        self.sizes = dict(list(pool.sizes.items())[:tasks])
        self.learning = gate_learning(TASKS, pool.vectors.groups, grouping)
        parameters = self.learning.router.parameters()
        self.optimizer = torch.optim.Adam(parameters, lr=self.learning.learning_rate)

    def step(self) -> dict[str, float]:
        """One more: task -> loss."""
        pool, side = self.pool, self.side
        stacked = side.runner.stacked if isinstance(side, LocalExperts) else 0
        given = micro_batches(self.learning, self.sizes, pool.features, self.at, SEED, stacked)
        self.at += 1
        if isinstance(side, LocalExperts):
            compute_gradients = partial(side.gradients, role=ROLE, trim=self.learning.trim)
            return learn_step(self.learning, self.optimizer, given, compute_gradients, self.at - 1)
        losses = {
            task: side.loss(side.merged(micro_batch.coding[0]), task, rows)
            for micro_batch in given
            for task, rows in micro_batch.rows.items()
        }
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return {task: loss.item() for task, loss in losses.items()}

    def gradient(self) -> Tensor:
        """Of the gate, by the last step."""
        return torch.cat(
            [p.grad.flatten() for p in self.learning.router.parameters() if p.grad is not None]
        )


def agree(ours: Tensor, theirs: Tensor) -> float:
    """Their relative difference.

    Raises:
        AssertionError: more than rounding.
    """
    found = difference(ours.cpu(), theirs.cpu())
    assert found < TOLERANCE, found
    return found


def floor(size: Size, images: int, passes: int, rate: float) -> tuple[float, str]:
    """Seconds of the weights' products alone at a plain product's rate."""
    flops = 2.0 * passes * images * size.tokens * size.weights
    return flops / rate, f"{flops / 1e9:.3g} GFLOP at {rate / 1e9:.3g} GFLOP/s"


def compared(name: str, found: Mapping[str, float], least: tuple[float, str]) -> list[Row]:
    """The rows of one comparison."""
    ours = found["ours"]
    return [
        *(
            Row(
                f"{name}: {side}'s time ÷ ours", theirs / ours, "", f"{theirs:.3g} s ÷ {ours:.3g} s"
            )
            for side, theirs in found.items()
            if side != "ours"
        ),
        Row(f"{name}: ours ÷ floor", ours / least[0], "", least[1]),
    ]


def train(pool: RandomPool, repeats: int, rate: float) -> list[Row]:
    """Steps of training."""
    rows = []
    # Of ViT-B/32 the textbook holds eight graphs in more than 22 GB: timed on two tasks' batches.
    timed = len(TASKS) if pool.size == EMBEDDED else 2
    sides: dict[str, LocalExperts | Textbook] = {
        "ours": pool.experts(),
        "textbook": Textbook(pool),
        "textbook, a sample at a time": Textbook(pool, by_sample=True),
    }
    for grouping in GROUPINGS:
        runs = {name: Training(pool, grouping, side, timed) for name, side in sides.items()}
        losses = {name: run.step() for name, run in runs.items()}
        for task, loss in losses["ours"].items():
            assert abs(loss - losses["textbook"][task]) < TOLERANCE, (task, losses)
        off = agree(runs["ours"].gradient(), runs["textbook"].gradient())
        works = {name: run.step for name, run in runs.items()}
        found = medians(works, repeats, pool.device)
        name = f"{pool.size.name}: a step on {timed} tasks, {grouping}-wise"
        rows += compared(name, found, floor(pool.size, IMAGES * timed, 3, rate))
        rows.append(Row(f"{name}: gradients' difference", off, f"< {TOLERANCE:g}", "relative L2"))
    return rows


def code(pool: RandomPool, repeats: int, rate: float) -> list[Row]:
    """One model a sample."""
    ours, theirs = pool.experts(), Textbook(pool)
    task, rows = TASKS[0], torch.arange(IMAGES)
    learning = gate_learning(TASKS, pool.vectors.groups, "layer")
    with torch.no_grad():
        coding = learning.router(pool.features[task][rows])
    batch, weights = ours.runner.batch(task, ROLE, rows), Weights("", coding=coding)
    works = {
        "ours": lambda: next(ours.runner.pipeline.embed_coded([(batch, weights)])),
        "textbook": lambda: theirs.code(task, rows, coding),
    }
    off = agree(works["ours"](), works["textbook"]())
    seconds, text = floor(pool.size, IMAGES, 1, rate)
    merging = 2.0 * len(TASKS) * IMAGES * pool.size.weights
    least = (seconds + merging / rate, f"{text}, and {merging / 1e9:.3g} GFLOP to merge (form A)")
    name = f"{pool.size.name}: {IMAGES} images, a coding each"
    return [
        *compared(name, medians(works, repeats, pool.device), least),
        Row(f"{name}: embeddings' difference", off, f"< {TOLERANCE:g}", "relative L2"),
    ]


def static(pool: RandomPool, repeats: int, rate: float) -> list[Row]:
    """AdaMerging's gradient."""
    ours, theirs = pool.experts(), Textbook(pool)
    rows = {task: draw(ROWS, IMAGES, 0, seed) for seed, task in enumerate(TASKS)}
    coding = torch.full((1, len(TASKS), len(pool.vectors.groups)), 0.3)
    works = {
        "ours": lambda: ours.gradients([MicroBatch(rows, coding)], ROLE, Trim())[0].coding,
        "textbook": lambda: theirs.static(rows, coding),
    }
    off = agree(works["ours"](), works["textbook"]())
    name = f"{pool.size.name}: AdaMerging's gradient"
    least = floor(pool.size, IMAGES * len(TASKS), 3, rate)
    return [
        *compared(name, medians(works, repeats, pool.device), least),
        Row(f"{name}: difference", off, f"< {TOLERANCE:g}", "relative L2"),
    ]


def kept(pool: RandomPool) -> int:
    """Bytes that autograd keeps of one task's plain forward pass, weights aside."""
    textbook = Textbook(pool)
    state = {name: tensor.clone().requires_grad_() for name, tensor in pool.vectors.base.items()}
    weights = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        textbook.loss(state, TASKS[0], torch.arange(IMAGES))
    return sum(storage.nbytes() for storage in storages.values())


def peak(
    kind: str, size: Size, folder: Path, device: str, threads: int, grouping: str
) -> tuple[int, int]:
    """(peak bytes of two steps over what was there before any weight, bytes of all weights)."""
    torch.set_num_threads(threads)

    def training(size: Size, folder: Path) -> tuple[Training, int]:
        pool = RandomPool(size, folder, device)
        side = pool.experts() if kind == "ours" else Textbook(pool)
        return Training(pool, grouping, side), pool.nbytes

    with tempfile.TemporaryDirectory() as scratch:  # what is imported and set up is not counted
        write_base(EMBEDDED, Path(scratch) / "base")
        training(EMBEDDED, Path(scratch))[0].step()
    before = psutil.Process().memory_info().rss
    run, weights = training(size, folder)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    reset_peak()
    for _ in range(2):
        run.step()
    found = torch.cuda.max_memory_allocated() if device == "cuda" else peak_bytes() - before
    return found, weights


def memory(size: Size, folder: Path, device: str, threads: int, activations: int) -> list[Row]:
    """Peaks, each in a process of its own."""
    rows = []
    for grouping in GROUPINGS:
        args = (size, folder, device, threads, grouping)
        ours, weights = alone(peak, "ours", *args)
        try:
            theirs, _ = alone(peak, "textbook", *args)
        except BrokenProcessPool:  # killed for memory: it wanted more than the machine has
            theirs = psutil.virtual_memory().total
        aim = "≤ 1.15" if weights > 1e9 else ""  # of small weights the interpreter's own noise
        least, name = weights + activations, f"{size.name}: peak, {grouping}-wise"
        how = f"{weights / 1e9:.3g} GB base and task vectors + {activations / 1e9:.3g} GB of a task"
        rows += [
            Row(f"{name}: ours ÷ floor", ours / least, aim, f"{ours / 1e9:.3g} GB ÷ ({how})"),
            Row(
                f"{name}: textbook ÷ floor",
                theirs / least,
                "",
                f"{theirs / 1e9:.3g} GB"
                + (" or more: killed" if theirs == psutil.virtual_memory().total else ""),
            ),
            Row(f"{name}: textbook ÷ ours", theirs / ours, "", ""),
        ]
    return rows


def measured(
    size: Size, parts: list[str], device: str, threads: int, repeats: int, rate: float
) -> list[Row]:
    """All figures of one size."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_base(size, folder / "base")
        if "memory" in parts:
            pool = RandomPool(size, folder, device)
            activations = kept(pool)
            del pool
            rows += memory(size, folder, device, threads, activations)
        pool = RandomPool(size, folder, device)
        for name, part in (("train", train), ("code", code), ("static", static)):
            if name in parts:
                rows += part(pool, repeats, rate)
    return rows


def main() -> None:
    """Measure, print, and keep with `--save`."""
    parser = arguments(__doc__, 5)
    parser.add_argument("--size", default="both", choices=list(SIZES))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rate = flop_rate(given.device)
    rows = [Row("plain product, GFLOP/s", rate / 1e9, "", "best of 5")]
    for size in SIZES[given.size]:
        rows += measured(size, given.parts, given.device, given.threads, given.repeats, rate)
    sizes = (
        f"{' and '.join(map(str, SIZES[given.size]))}; 8 experts, {IMAGES} images a task, float32,"
        f" on {given.device}; medians of {given.repeats} in turns; {given.threads} threads"
    )
    finish("gates", sizes, rows)


if __name__ == "__main__":
    main()
