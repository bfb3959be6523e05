"""Four shards cut by work against four cut by bytes: Flan-T5-large's shape, scaled down.

A step is 8 tasks of some rows with 64 source tokens, one micro-batch a task, every task with a
coding of its own. The work that a sweep cuts by is what a shard does a row, and a micro-batch:
merging, and small operations (`actors/cluster/segment_costs.py`). Every shard computes alone on one
thread, and its CPU seconds are taken, forward and backward. The chain is also cut into shards of
one segment, whose seconds give the best of all cuts. From those follow, whatever the number of
cores here:

* the slowest shard's seconds a micro-batch, which bound the time of a long step;
* the time of a step of the 1F1B schedule with a core a shard and free transport.

What the costs of the segments predict is beside both.
"""

from __future__ import annotations

import shutil
import statistics
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from actors.cluster.partition import Load, blocks_of, cut
from actors.data.protocol import Activations
from actors.data.text.answers import answer_tree, collated
from actors.families.protocol import segment_names
from actors.families.registry import inspect
from actors.families.t5.architecture import TYPICAL_TOKENS
from actors.families.t5.segments import t5_segments
from actors.files.embedded_pool import TEXT, locate
from actors.shards.messages import Batch, Weights
from actors.shards.shard import Shard
from benchmarks.actors.pipeline import makespan
from benchmarks.environment import Row
from fusion.logits.head import AnswerHead
from fusion.task_vectors.task_vectors import TaskVectors
from sweeps.cli.quickstart import ensure_pool
from sweeps.planning.prepared import costs_of

SHARDS, TASKS = 4, 8
EACH = "segments"
"""The cut into shards of one segment."""

ANSWERS = torch.tensor([[5, 1], [6, 1]])
"""Two words, so three nodes."""
LARGE = {
    "d_model": 1024,
    "d_ff": 2816,
    "d_kv": 64,
    "num_heads": 16,
    "vocab_size": 32128,
    "num_layers": 24,
}
SCALED = ("d_model", "d_ff", "num_heads", "vocab_size")


def write_base(folder: Path, scale: int) -> Path:
    """A random T5 of large's depth, narrower by `scale`."""
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {name: size // scale if name in SCALED else size for name, size in LARGE.items()}
    torch.manual_seed(0)
    config = T5Config(**shape, feed_forward_proj="gated-gelu", decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    model.lm_head = torch.nn.Linear(shape["d_model"], shape["vocab_size"], bias=False)
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    ensure_pool("text", Console(stderr=True))
    pool = locate(kind=TEXT)
    assert pool is not None
    for file in ("tokenizer.json", "tokenizer_config.json"):  # shards open it; nothing is tokenised
        shutil.copy(pool.base / file, folder)
    return folder


class Cut:
    """The shards of one cut; each keeps its inputs of one micro-batch."""

    def __init__(self, base: Any, vectors: TaskVectors, blocks: Sequence[tuple[int, int]]) -> None:
        self.blocks, self.shards = tuple(blocks), []
        chain = t5_segments(base)
        for block in blocks:
            names = segment_names(chain, *block)
            part = vectors.restrict([name for name in vectors.base if name in names])
            head = {"task": AnswerHead(ANSWERS)}
            self.shards.append(Shard(base, part, head, "cpu", torch.float32, block, len(blocks)))
        self.times: list[list[tuple[float, float]]] = [[] for _ in blocks]

    def run(self, given: Activations, coding: Tensor, batch: Batch, keep: bool = True) -> None:
        """One micro-batch; CPU seconds (forward, backward) of each shard, the last all backward."""
        key, weights = uuid.uuid4().hex, Weights("", coding=coding)
        *first, last = self.shards
        carries, ahead = [given], []
        for shard in first:
            spent, out = clocked(partial(shard.forward, key, carries[-1], weights))
            ahead.append(spent)
            carries.append(out)
        spent, (_, _, back) = clocked(partial(last.finish, carries[-1], weights, batch))
        times = [(0.0, spent)]
        for shard, carry, before in reversed(list(zip(first, carries, ahead, strict=False))):
            spent, (_, back) = clocked(partial(shard.backward, key, carry, weights, back))
            times.insert(0, (before, spent))
        if keep:
            for kept, each in zip(self.times, times, strict=True):
                kept.append(each)

    def medians(self) -> list[tuple[float, float]]:
        """Of each shard."""
        return [
            (statistics.median(f for f, _ in each), statistics.median(b for _, b in each))
            for each in self.times
        ]


def clocked(call: partial[Any]) -> tuple[float, Any]:
    """CPU seconds, and the result."""
    start = time.process_time()
    found = call()
    return time.process_time() - start, found


def predicted(costs: Sequence[float], blocks: Sequence[tuple[int, int]]) -> list[float]:
    """Share of the costs of each shard."""
    return [sum(costs[slice(*block)]) / sum(costs) for block in blocks]


def cuts(scratch: Path, scale: int, experts: int, rows: int, repeats: int) -> list[Row]:
    """Both cuts, in turns."""
    base = inspect(str(write_base(scratch / f"large{rows}", scale)), "pool.base")
    chain = t5_segments(base)
    costs = costs_of(chain, experts, rows)
    load = Load(tuple(4 * each.numel for each in chain), experts)
    sides = {
        "bytes": blocks_of(load, SHARDS),
        "work": blocks_of(replace(load, costs=costs), SHARDS),
        EACH: tuple((at, at + 1) for at in range(len(chain))),
    }
    vectors = random_vectors(base, experts)
    found = {name: Cut(base, vectors, blocks) for name, blocks in sides.items()}
    ids = torch.randint(3, LARGE["vocab_size"] // scale, (rows, TYPICAL_TOKENS))
    given = {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool)}
    given |= collated([(answer_tree(ANSWERS, 0), rows)])
    coding = torch.full((1, experts, 1), 0.3)
    batch = Batch((("task", Path(), np.arange(rows)),))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for repeat in range(repeats + 1):
        for name in list(found)[:: 1 if repeat % 2 else -1]:
            found[name].run(given, coding, batch, keep=repeat > 0)
    torch.set_num_threads(threads)
    return compared(f"{rows} rows, {experts} experts", found, costs)


def slowest_of(seconds: Sequence[float], blocks: Sequence[tuple[int, int]]) -> float:
    """Of the heaviest block of a cut."""
    return max(sum(seconds[slice(*block)]) for block in blocks)


def random_vectors(base: Any, experts: int) -> TaskVectors:
    """The base's tensors, and random task vectors."""
    from actors.checkpoints.checkpoint import read

    draw = torch.Generator().manual_seed(0)
    origin = {name: tensor.clone() for name, tensor in read(base, list(base.tensors))}
    deltas = {
        name: torch.empty(experts, *tensor.shape).normal_(0, 0.002, generator=draw)
        for name, tensor in origin.items()
    }
    return TaskVectors(tuple(f"task{t}" for t in range(experts)), origin, deltas)


def compared(title: str, found: dict[str, Cut], costs: Sequence[float]) -> list[Row]:
    """The rows of both cuts; `EACH` of `found` is the chain cut into single segments."""
    alone = [f + b for f, b in found.pop(EACH).medians()]
    medians = {name: each.medians() for name, each in found.items()}
    slots = {name: [f + b for f, b in times] for name, times in medians.items()}
    shares = {name: predicted(costs, each.blocks) for name, each in found.items()}
    steps = {name: makespan(times, TASKS) for name, times in medians.items()}
    ideal = {
        name: makespan([(s / 3, 2 * s / 3) for s in each[:-1]] + [(0.0, each[-1])], TASKS)
        for name, each in shares.items()
    }
    slowest = {name: max(each) for name, each in slots.items()}
    most = {name: max(each) for name, each in shares.items()}
    rows = [
        Row(
            f"{title}: slowest shard, cut by bytes ÷ by work",
            slowest["bytes"] / slowest["work"],
            f"near {most['bytes'] / most['work']:.3g}",
            f"{slowest['bytes']:.3g} CPU s ÷ {slowest['work']:.3g} CPU s a micro-batch; predicted"
            f" {100 * most['bytes']:.0f} % ÷ {100 * most['work']:.0f} % of the costs",
        ),
        Row(
            f"{title}: a step of {TASKS} tasks (1F1B of these CPU s), by bytes ÷ by work",
            steps["bytes"] / steps["work"],
            f"near {ideal['bytes'] / ideal['work']:.3g}",
            f"{steps['bytes']:.3g} s ÷ {steps['work']:.3g} s; with {SHARDS} − 1 slots of bubbles",
        ),
    ]
    best = cut(alone, SHARDS)
    least = slowest_of(alone, best)
    for name, kept in found.items():
        here = slowest_of(alone, kept.blocks)
        rows.append(
            Row(
                f"{title}: slowest shard, cut by {name} ÷ the best of all cuts",
                here / least,
                "",
                f"{here:.3g} s ÷ {least:.3g} s, sums of segments run alone; the best is"
                f" {' '.join(f'[{a}, {b})' for a, b in best)}",
            )
        )
    for name, kept in found.items():
        seconds = sum(slots[name])
        each = " / ".join(f"{100 * s / seconds:.0f}" for s in slots[name])
        said = " / ".join(f"{100 * s:.0f}" for s in shares[name])
        blocks = " ".join(f"[{a}, {b})" for a, b in kept.blocks)
        how = f"measured {each} %, predicted {said} %; segments {blocks}"
        rows.append(
            Row(f"{title}, cut by {name}: CPU s of all shards a micro-batch", seconds, "", how)
        )
    return rows
