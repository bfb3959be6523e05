"""Estimate of a sweep's time from rates measured on this machine, and the rates of a finished one.

A rate is kept for each model and method, so that what a method does beside the forward passes
(merges, candidates of a greedy soup) is part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sweeps.planning.prepared import Prepared
from sweeps.planning.print_plan import forwarded, learned_images
from sweeps.planning.rates import Kind, Rates, Span
from sweeps.results.ledger import Entry

POSITIONS = 50
"""Positions of a row that the multiplications of a model are guessed from, where its segments do
not state them."""


@dataclass(frozen=True)
class Measured:
    """Seconds of a run's phases."""

    start: float
    """From the start of Ray until the replicas are ready, without the preparation of rows."""
    trials: float
    """From the first trial to the last."""
    finish: float
    """From the last trial to the report."""


def model_key(prepared: Prepared) -> str:
    """What the speed of a forward pass depends on."""
    pool, plan, placement = prepared.pool, prepared.plan, prepared.spec.placement
    size = f"{pool.parameters}/{len(pool.experts)}/{prepared.inputs.about}"
    return f"{pool.family.name}/{size}/{placement.dtype}/{plan.shards}x{plan.threads}"


def multiplications(prepared: Prepared) -> float:
    """Multiplications of the forward pass of a row."""
    return sum(prepared.load.work) or float(POSITIONS * prepared.pool.parameters)


def estimate(prepared: Prepared, rates: Rates, done: int = 0) -> Span:
    """Seconds of a sweep, from the start of Ray to its report.

    Args:
        prepared: the sweep.
        rates: of this machine.
        done: trials that have finished before.
    """
    model, rows = model_key(prepared), forwarded(prepared)
    trials = sum(count for count, _, _ in rows.values())
    left = max(0.0, 1 - done / trials) if trials else 0.0
    prepare = rates.span("prepare", prepared.inputs.about) * prepared.images
    select = passes(prepared, rates, {name: count for name, (_, count, _) in rows.items()})
    learned = passes(prepared, rates, learned_images(prepared.spec), "learn")
    return (
        rates.span("start", model)
        # Whether the cache has the rows is not known before the sweep runs.
        + Span(0.0, prepare.high)
        + (select + learned + rates.span("trial") * trials) * left
        + passes(prepared, rates, {name: count for name, (_, _, count) in rows.items()})
        + rates.span("finish", model) * len(rows)
    )


def passes(
    prepared: Prepared, rates: Rates, rows: Mapping[str, float], kind: Kind = "evaluate"
) -> Span:
    """Seconds in which the replicas, side by side, evaluate or learn from each method's rows."""
    model = model_key(prepared)
    spans = (rates.span(kind, f"{model}:{name}") * count for name, count in rows.items())
    share = multiplications(prepared) / max(1, prepared.plan.replicas)
    return sum(spans, Span()) * share


def keep_rates(
    prepared: Prepared, rates: Rates, entries: Iterable[Entry], measured: Measured
) -> None:
    """Store the rates of a run.

    Args:
        prepared: the sweep.
        rates: of this machine; gets them.
        entries: trials of this run that succeeded.
        measured: its phases.
    """
    model, entries = model_key(prepared), list(entries)
    work, replicas = multiplications(prepared), max(1, prepared.plan.replicas)
    rows, learned = forwarded(prepared), learned_images(prepared.spec)
    rates.keep("start", measured.start, 1, model)
    for method in {entry.method for entry in entries} & rows.keys():
        own = [entry for entry in entries if entry.method == method]
        busy = sum(entry.busy_s for entry in own)
        kind: Kind = "learn" if method in learned else "evaluate"
        trials, select, _ = rows[method]
        units = learned.get(method, select) / trials * len(own)
        rates.keep(kind, busy, units * work, f"{model}:{method}")
    if entries:
        waited = measured.trials - sum(entry.busy_s for entry in entries) / replicas
        rates.keep("trial", max(waited, 0.01), len(entries))
    report = passes(prepared, rates, {name: count for name, (_, _, count) in rows.items()})
    rest = measured.finish - (report.low + report.high) / 2
    rates.keep("finish", max(rest, 0.05 * len(rows)), len(rows), model)
