"""A step of DAWE, and one model a sample, on the embedded text pool.

* step: a gate learns on 6 tasks × 8 rows, one model a task, as in a sweep (`learn_step`). The
  textbook sums state dicts under autograd, calls `transformers`' T5 by one `functional_call` a
  sample (or a batch), keeps all six graphs and goes back once.
* code: 16 rows with a coding each, without gradients. The textbook merges and runs a model a row:
  by `functional_call` for the first token alone, or loaded and through `generate`, as the original.
  Ours scores all answers of each row.

Entropies of the first token, losses and gradients of the two must agree first.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.environment import Row
from benchmarks.fusion.layers import difference
from benchmarks.pools import FEATURES, ROLE, SEED, features, gate_learning
from benchmarks.text.clocks import in_turns, ratio
from benchmarks.text.pool import Library, TextPool
from fusion.logits.entropy import entropy
from fusion.methods.learned.steps import learn_step, micro_batches

BATCH = 8
"""Rows of a task in a step, as published."""
CODED = 16
TOLERANCE = 1e-4


class Training:
    """A gate under way, on our experts or on the textbook."""

    def __init__(self, pool: TextPool, grouping: str, library: Library | None, by_sample: bool):
        """`library`: None: ours. `by_sample`: one `functional_call` a row, and not one a batch."""
        tasks = tuple(pool.data)
        self.pool, self.library, self.by_sample, self.at = pool, library, by_sample, 0
        self.learning = gate_learning(pool.pool.tasks, pool.pool.groups, grouping, BATCH)
        self.optimizer = torch.optim.Adam(self.learning.router.parameters(), lr=1e-4)
        self.sizes = {task: pool.runner.size(task, ROLE) for task in tasks}
        self.features = features(tasks, max(self.sizes.values()))

    def step(self) -> dict[str, float]:
        """One more: task -> loss."""
        given = micro_batches(self.learning, self.sizes, self.features, self.at, SEED)
        self.at += 1
        if self.library is None:
            compute = partial(self.pool.experts.gradients, role=ROLE, trim=self.learning.trim)
            return learn_step(self.learning, self.optimizer, given, compute, self.at - 1)
        losses = {
            task: self.loss(self.library, self.library.merged(each.coding[0]), task, rows)
            for each in given
            for task, rows in each.rows.items()
        }
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return {task: loss.item() for task, loss in losses.items()}

    def loss(self, library: Library, state: dict[str, Tensor], task: str, rows: Tensor) -> Tensor:
        """Mean entropy of the first token; a row alone has no padding."""
        ids, mask = self.pool.tokens(task, ROLE, rows)
        if not self.by_sample:
            return entropy(library.first_token(state, ids, mask)).mean()
        each = [
            library.first_token(state, row[None, :n], seen[None, :n])
            for row, seen, n in zip(ids, mask, mask.sum(1).tolist(), strict=True)
        ]
        return entropy(torch.cat(each)).mean()

    def gradient(self) -> Tensor:
        """Of the gate, by the last step."""
        parameters = self.learning.router.parameters()
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def step(pool: TextPool, library: Library, repeats: int) -> list[Row]:
    """Steps of training."""
    rows = []
    for grouping in ("task", "layer"):
        sides = {
            "ours": Training(pool, grouping, None, False),
            "a functional_call a sample": Training(pool, grouping, library, True),
            "a functional_call a batch": Training(pool, grouping, library, False),
        }
        losses = {name: side.step() for name, side in sides.items()}
        for name, found in losses.items():
            for task, loss in found.items():
                assert abs(loss - losses["ours"][task]) < TOLERANCE, (name, task, losses)
        gradients = [side.gradient() for side in sides.values()]
        off = max(difference(each, gradients[0]) for each in gradients[1:])
        assert off < TOLERANCE, off
        spent = in_turns({name: side.step for name, side in sides.items()}, repeats, warm=False)
        what = f"DAWE's step, {grouping}-wise"
        aims = {"a functional_call a sample": "≥ 3"}
        rows += [
            ratio(f"{what}: {name} ÷ ours", spent[name], spent["ours"], aims.get(name, ""))
            for name in sides
            if name != "ours"
        ]
        rows.append(Row(f"{what}: gradients' difference", off, f"< {TOLERANCE:g}", "relative L2"))
    return rows


def code(pool: TextPool, library: Library, repeats: int) -> list[Row]:
    """One model a sample."""
    task, at = next(iter(pool.data)), torch.arange(CODED)
    learning = gate_learning(pool.pool.tasks, pool.pool.groups, "layer", BATCH)
    with torch.no_grad():
        coding = learning.router(torch.randn(CODED, FEATURES))
    batch = pool.runner.batch(task, ROLE, at)
    weights = pool.runner.pipeline.weights(coding=coding)
    ids, mask = pool.tokens(task, ROLE, at)
    sizes = mask.sum(1).tolist()

    def ours() -> Tensor:
        return next(pool.runner.pipeline.embed_coded([(batch, weights)]))

    def called() -> Tensor:
        with torch.no_grad():
            return torch.cat(
                [
                    library.first_token(library.merged(c), ids[i, None, :n], mask[i, None, :n])
                    for i, (c, n) in enumerate(zip(coding, sizes, strict=True))
                ]
            )

    def generated() -> None:
        for i, (c, n) in enumerate(zip(coding, sizes, strict=True)):
            library.load(c)
            library.generate(ids[i, None, :n], mask[i, None, :n])

    off = float((entropy(called()) - ours()[:, 0]).abs().max())
    assert off < TOLERANCE, off
    works = {
        "ours": ours,
        "a merge and a functional_call": called,
        "a merge and generate": generated,
    }
    spent = in_turns(works, repeats)
    aims = {"a merge and a functional_call": "≥ 5"}
    what = f"{CODED} rows, a coding each"
    return [
        *(
            ratio(f"{what}: {name} a row ÷ ours", spent[name], spent["ours"], aims.get(name, ""))
            for name in works
            if name != "ours"
        ),
        Row(f"{what}: entropies' difference", off, f"< {TOLERANCE:g}", "nats"),
    ]
