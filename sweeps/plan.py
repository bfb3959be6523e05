"""`sweeps plan`: what a sweep would do, and whether it can; loads no weights, starts nothing."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from actors.experts import REFERENCES
from actors.placement import Plan, gigabytes
from sweeps import cluster
from sweeps.candidates import planned
from sweeps.completion import completed
from sweeps.prepare import Prepared, prepare
from sweeps.spec import SweepSpec


def show(spec: SweepSpec, outputs: Path, console: Console, address: str | None = None) -> None:
    """Check everything that `run` checks, and print placement, memory, trials and work.

    Raises:
        InputError: what `run` would refuse.
    """
    with ExitStack() as stack:
        if target := cluster.target(address):
            stack.enter_context(cluster.connected(target, 0))
            resources = cluster.of_cluster()
        else:
            resources = cluster.this_machine()
        prepared = prepare(spec, outputs, resources)
    for row in facts(prepared):
        console.print("{:<12}{}".format(*row), soft_wrap=True)
    console.print(trial_table(prepared))


def facts(prepared: Prepared) -> list[tuple[str, str]]:
    """Pool, placement, memory and data, a line each."""
    spec, pool, plan = prepared.spec, prepared.pool, prepared.plan
    dtypes = ", ".join(sorted(set(pool.dtypes.values())))
    return [
        ("sweep", f"{spec.name}: select on {spec.splits.select}, report on {spec.splits.report}"),
        (
            "pool",
            f"{len(pool.experts)} experts of {spec.pool.base}: {len(pool.names)} tensors, "
            f"{pool.parameters:,} parameters each ({dtypes} on disk)",
        ),
        (
            "placement",
            f"{arrangement(plan)}, {plan.threads} thread(s) each, "
            f"forward in {spec.placement.dtype}",
        ),
        ("memory", memory(plan)),
        (
            "data",
            f"{len(prepared.tasks)} tasks, {prepared.images:,} images at "
            f"{prepared.preprocess.size} px: {gigabytes(prepared.pixel_bytes)} of pixel cache",
        ),
    ]


def arrangement(plan: Plan) -> str:
    """Replicas, shards and where they are.

    >>> arrangement(Plan(2, 2, ((0, 7), (7, 14)), "cuda", 1, 0.5, 0, (0, 0), 0))
    '2 replica(s) of 2 shards (segments 0-6, 7-13) on GPU (0.5 of one each)'
    """
    where = "GPU" if plan.device == "cuda" else "CPU"
    if plan.device == "cuda" and plan.gpus < 1:
        where += f" ({plan.gpus:g} of one each)"
    if plan.shards == 1:
        return f"{plan.replicas} whole replica(s) on {where}"
    blocks = ", ".join(
        f"{start}-{stop - 1}" if stop - start > 1 else f"{start}" for start, stop in plan.blocks
    )
    return f"{plan.replicas} replica(s) of {plan.shards} shards (segments {blocks}) on {where}"


def memory(plan: Plan) -> str:
    """Main memory of the fullest node, and what a shard takes beside what its node shares."""
    low, high = gigabytes(min(plan.shard_bytes)), gigabytes(max(plan.shard_bytes))
    each = high if low == high else f"{low.removesuffix(' GB')} to {high}"
    part = "replica" if plan.shards == 1 else "shard"
    where = " on its GPU" if plan.device == "cuda" else ""
    return (
        f"{gigabytes(plan.total_bytes)} a node: {gigabytes(plan.store_bytes)} base and task "
        f"vectors once, {each} a {part}{where}"
    )


def trial_table(prepared: Prepared) -> Table:
    """Trials and images forwarded, a row a method."""
    counts = planned(completed(prepared.spec))
    rows = prepared.role_rows
    table = Table(title="at most", title_justify="left")
    for name in ("method", "trials", "images on select", "images on report"):
        table.add_column(name, justify="left" if name == "method" else "right")
    passes = {"ensemble": len(prepared.pool.experts)}
    for method, trials in {**dict.fromkeys(REFERENCES, 1), **counts}.items():
        each = passes.get(method, 1)
        # Expert embeddings are cached: an ensemble costs its forward passes once, not per trial.
        select = rows["select"] * (each if each > 1 else trials)
        table.add_row(method, str(trials), f"{select:,}", f"{rows['report'] * each:,}")
    return table
