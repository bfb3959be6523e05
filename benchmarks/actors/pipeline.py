"""Training steps of a gate through fleets on a private Ray: what actors and shards cost.

    python -m benchmarks.actors.pipeline [--save] [--shards 4] [--micro 8] [--steps 2] [--device
    cuda]

A random CLIP and four experts, written and read in the hub's layout; a micro-batch is 16 images of
one task, a step as many micro-batches as there are tasks, one gate for all of them.

* local: one shard as an actor against the same in this process; actor and process take turns.
* pipeline: S shards, each a process of one thread. With f and b the seconds that a stage takes
  forward and backward, measured here with nothing beside it, a step of M micro-batches takes at
  least (S + M − 1)·max(f + b) with a core a shard, and at least M·Σ(f + b) ÷ cores on fewer.
* two: two trainings at once on one sharded fleet against one alone. One leaves bubbles, which the
  other fills: at best 2·M·max(f + b) a step of both, again no less than their work ÷ cores.

Gradients must be those of one shard in this process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from actors.cluster.partition import Load, blocks_of
from actors.cluster.planner import Plan
from actors.data.task_rows import TaskData
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import LocalExperts, local_experts
from actors.experts.protocol import Experts
from actors.families.clip.segments import clip_segments
from actors.families.registry import inspect
from actors.fleet.fleet import Fleet
from actors.pool.pool import Pool, open_pool
from actors.shards.pipeline import one_forward_one_backward
from benchmarks.environment import Row, finish
from benchmarks.fusion.layers import arguments, difference, medians, synchronise
from benchmarks.fusion.merging import timed
from benchmarks.pools import (
    EMBEDDED,
    MIDDLE,
    ROLE,
    ROWS,
    SEED,
    TASKS,
    Size,
    features,
    gate_learning,
    write_base,
    write_data,
    write_expert,
)
from fusion.methods.learned.steps import MicroBatch, learn_step, micro_batches
from fusion.task_vectors.sparsify import Trim
from sweeps.cluster.ray_connection import stay_on_loopback

EXPERTS = 4
TOLERANCE = 1e-5
STORE_BYTES = 600 * 2**20


@dataclass(frozen=True)
class World:
    """A pool, and the data of as many tasks as there are micro-batches in a step."""

    pool: Pool
    data: dict[str, TaskData]
    cache: EmbeddingCache
    device: str

    @classmethod
    def made(cls, size: Size, folder: Path, device: str) -> World:
        """Written and opened."""
        base = write_base(size, folder / "base")
        origin = inspect(str(base), "pool.base")
        members = {
            f"expert{t}": str(write_expert(origin, folder / f"expert{t}", t))
            for t in range(EXPERTS)
        }
        data = write_data(size, TASKS, ROWS, folder / "data")
        cache = EmbeddingCache(folder / "embeddings", {})
        return cls(open_pool(str(base), members), data, cache, device)

    def blocks(self, shards: int) -> tuple[tuple[int, int], ...]:
        """Where a fleet's plan would cut."""
        chain = clip_segments(self.pool.base)
        segments = tuple(4 * segment.numel for segment in chain)
        return blocks_of(Load(segments, EXPERTS), shards)

    def local(self, shards: int = 1) -> LocalExperts:
        """In this process."""
        blocks = self.blocks(shards)
        return local_experts(self.pool, self.data, self.cache, device=self.device, blocks=blocks)

    def fleet(self, shards: int, threads: int) -> Fleet:
        """Ready."""
        gpus = 1 / shards if self.device == "cuda" else 0.0
        blocks, none = self.blocks(shards), (0,) * shards
        plan = Plan(1, shards, blocks, self.device, threads, gpus, STORE_BYTES, none, 0)
        fleet = Fleet(self.pool, self.data, self.cache, plan)
        fleet.ready()
        return fleet


class Training:
    """A gate that is trained on some tasks by whoever holds the experts."""

    def __init__(self, world: World, experts: Experts, micro: int) -> None:
        self.experts, self.at = experts, 0
        self.learning = gate_learning(world.pool.tasks, world.pool.groups, "layer")
        parameters = self.learning.router.parameters()
        self.optimizer = torch.optim.Adam(parameters, lr=self.learning.learning_rate)
        self.sizes = dict.fromkeys(TASKS[:micro], ROWS)
        self.features = features(TASKS[:micro], ROWS)

    def micro_batches(self) -> list[MicroBatch]:
        """Of the next step."""
        return micro_batches(self.learning, self.sizes, self.features, self.at, SEED)

    def step(self) -> None:
        """One step."""
        compute_gradients = partial(self.experts.gradients, role=ROLE, trim=Trim())
        learn_step(self.learning, self.optimizer, self.micro_batches(), compute_gradients, self.at)
        self.at += 1


def check(world: World, experts: Experts, micro: int) -> float:
    """The largest difference of a micro-batch's gradient from that of one shard here.

    Raises:
        AssertionError: more than rounding.
    """
    given = Training(world, experts, micro).micro_batches()
    given = [MicroBatch(micro_batch.rows, micro_batch.coding.detach()) for micro_batch in given]
    pairs = zip(
        experts.gradients(given, ROLE, Trim()),
        world.local().gradients(given, ROLE, Trim()),
        strict=True,
    )
    worst = max(difference(ours.coding, theirs.coding) for ours, theirs in pairs)
    assert worst < TOLERANCE, worst
    return worst


def stages(world: World, shards: int, repeats: int) -> list[tuple[float, float]]:
    """Median seconds (forward, backward) of a micro-batch on each shard; the last: no forward."""
    experts = world.local(shards)
    [micro_batch] = Training(world, experts, 1).micro_batches()
    batch = experts.runner.batch_of(micro_batch, ROLE)
    weights = experts.runner.pipeline.weights(coding=micro_batch.coding.detach())
    found: list[list[tuple[float, float]]] = [[] for _ in range(shards)]
    *first, last = experts.runner.pipeline.shards
    for repeat in range(repeats + 1):
        key, carries, ahead = uuid.uuid4().hex, [batch], []
        for shard in first:
            spent, out = clocked(world, shard.forward, key, carries[-1], weights)
            ahead.append(spent)
            carries.append(out)
        spent, (_, _, back) = clocked(world, last.finish, carries[-1], weights, batch)
        times = [(0.0, spent)]
        for shard, carry, before in reversed(list(zip(first, carries, ahead, strict=False))):
            spent, (_, back) = clocked(world, shard.backward, key, carry, weights, back)
            times.insert(0, (before, spent))
        for stage, each in zip(found, times, strict=True):
            stage.extend([each] if repeat else [])
    return [
        (statistics.median(f for f, _ in each), statistics.median(b for _, b in each))
        for each in found
    ]


def clocked(world: World, call: Any, *args: Any) -> tuple[float, Any]:
    """Seconds, and the result."""
    results: list[Any] = []

    def whole() -> None:
        results.append(call(*args))
        synchronise(world.device)

    return timed(whole), results[0]


def makespan(times: Sequence[tuple[float, float]], items: int) -> float:
    """Seconds of 1F1B with a core a stage and nothing between stages.

    >>> makespan([(1.0, 1.0), (0.0, 2.0)], 8)  # S + M − 1 = 9 slots of 2 s, as a stage's are equal
    18.0
    """
    free = [0.0] * len(times)
    done: dict[tuple[int, bool, int], float] = {}
    for step in one_forward_one_backward(len(times), items):
        needs = [(step.stage - 1, False, step.item)]
        if step.backward and step.stage < len(times) - 1:
            needs = [(step.stage + 1, True, step.item)]
        start = max([free[step.stage], *(done.get(need, 0.0) for need in needs)])
        free[step.stage] = start + times[step.stage][step.backward]
        done[step.stage, step.backward, step.item] = free[step.stage]
    return max(free)


def against_local(world: World, given: argparse.Namespace) -> list[Row]:
    """One actor against this process, with the same threads."""
    torch.set_num_threads(given.threads)
    with world.fleet(1, given.threads) as fleet:
        worst = check(world, fleet.client, given.micro)
        runs = {
            "fleet": Training(world, fleet.client, given.micro),
            "local": Training(world, world.local(), given.micro),
        }
        works = {name: run.step for name, run in runs.items()}
        found = medians(works, given.repeats, world.device)
    how = f"{found['fleet']:.3g} s ÷ {found['local']:.3g} s a step, {given.threads} threads"
    return [
        Row("fleet of one shard ÷ local", found["fleet"] / found["local"], "≤ 1.15", how),
        Row("one shard: gradients' difference", worst, f"< {TOLERANCE:g}", "relative L2"),
    ]


def sharded(world: World, given: argparse.Namespace) -> list[Row]:
    """S shards against the schedule, and two trainings against one."""
    rows, cores = [], len(os.sched_getaffinity(0))
    for shards, micro in dict.fromkeys(
        [(given.shards, given.micro), (min(cores, given.shards), min(cores, given.shards))]
    ):
        torch.set_num_threads(1)
        times = stages(world, shards, given.repeats)
        slot, work = max(map(sum, times)), micro * sum(map(sum, times)) / cores
        ideal = (shards + micro - 1) * slot
        with world.fleet(shards, 1) as fleet:
            worst = check(world, fleet.client, micro)
            runs = [Training(world, fleet.client, micro) for _ in range(2)]

            def one(run: Training = runs[0]) -> None:
                for _ in range(given.steps):
                    run.step()

            def two(runs: list[Training] = runs) -> None:
                with ThreadPoolExecutor(2) as threads:
                    list(threads.map(one, runs))

            found = medians({"one": one, "two": two}, given.repeats, world.device)
        step, both = found["one"] / given.steps, found["two"] / given.steps
        bound = max(ideal, work)
        name = f"{shards} shards, {micro} micro-batches"
        parts = ", ".join(f"{1e3 * f:.0f} + {1e3 * b:.0f}" for f, b in times)
        best = max(2 * micro * slot, 2 * work) / max(ideal, work)
        rows += [
            Row(f"{name}: a step ÷ ideal", step / ideal, "", f"{step:.3g} s ÷ {ideal:.3g} s"),
            Row(
                f"{name}: a step ÷ bound",
                step / bound,
                "",
                f"max(ideal, {work:.3g} s of work ÷ {cores} cores); 1F1B of these stages"
                f" {makespan(times, micro):.3g} s; stages, ms: {parts}",
            ),
            Row(f"{name}: two trainings ÷ one", both / step, "≤ 1.6", f"at best {best:.3g} here"),
            Row(f"{name}: gradients' difference", worst, f"< {TOLERANCE:g}", "relative L2"),
        ]
    return rows


def main() -> None:
    """Measure, print, and keep with `--save`."""
    parser = arguments(__doc__, 5)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--micro", type=int, default=len(TASKS), choices=range(1, len(TASKS) + 1))
    parser.add_argument("--steps", type=int, default=2, help="of a training that is timed whole")
    parser.add_argument("--small", action="store_true", help="the embedded pool's size")
    given = parser.parse_args()
    size = EMBEDDED if given.small else MIDDLE
    stay_on_loopback(None)
    import ray

    # As `sweeps.cluster.ray_connection.connected`, but with a logical core for each shard.
    started = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
    ray.init(address="local", num_cpus=given.shards, log_to_driver=False, **started)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            world = World.made(size, Path(scratch), given.device)
            rows = against_local(world, given) + sharded(world, given)
    finally:
        ray.shutdown()
    sizes = (
        f"{size}; {EXPERTS} experts, 16 images a micro-batch, layer-wise gate, float32, on"
        f" {given.device}; {len(os.sched_getaffinity(0))} cores, shards of one thread each;"
        f" medians of {given.repeats} in turns, {given.steps} steps each"
    )
    finish("pipeline", sizes, rows)


if __name__ == "__main__":
    main()
