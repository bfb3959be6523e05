"""Metrics of a running sweep, sent through Ray; the only file that uses Ray's metrics interface.

`count` and `gauge` may be called anywhere; without a running Ray they do nothing and do not import
it. Ray's agents on the nodes export the values to Prometheus as `ray_fusion_sweeps_<name>`,
counters with `_total`. Tags have few distinct values: no trial, no row, no process.

There are no histograms: Ray 2.60 exports only the counts of buckets, and computes sums from the
middles of buckets. So seconds are counted and divided by the number of calls.

The tags sweep, replica and shard come from the actor's name (`actor_names.py`); a process without
one sets them with `label`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from actors.cluster.actor_names import tags_of

PREFIX = "fusion_sweeps_"

WHERE = ("sweep", "replica", "shard")
"""Tags that every figure has; empty where they mean nothing."""

REFRESH = 5.0
"""Seconds between repetitions of all gauges: Ray forgets one that is silent for 20 s."""


@dataclass(frozen=True)
class Row:
    """One metric."""

    kind: Literal["counter", "gauge"]
    meaning: str
    """With its unit."""
    tags: tuple[str, ...] = ()
    """Beside `WHERE`."""


METRICS: Mapping[str, Row] = MappingProxyType(
    {
        "samples": Row("counter", "Rows measured, a call at a time", ("method",)),
        "images": Row(
            "counter", "Images or texts through the model; use: forward, learn", ("use",)
        ),
        "calls": Row(
            "counter",
            "Calls that a replica ended; status: done, failed",
            ("call", "method", "status"),
        ),
        "seconds": Row(
            "counter", "Seconds that a replica's calls took, without waiting", ("call", "method")
        ),
        "waiting_calls": Row("gauge", "Calls that wait at the dispatcher for a free slot"),
        "lanes": Row("gauge", "Calls that all replicas can take at a time"),
        "busy_lanes": Row("gauge", "Calls that replicas are at work on"),
        "activations": Row("gauge", "Forward passes of a shard that wait for their backward pass"),
        "cache": Row(
            "counter",
            "Look-ups; cache: embeddings, resident (a filled model), survey; found: hit, miss",
            ("cache", "found"),
        ),
        "trials": Row(
            "counter", "Trials that ended; status: done, failed, stopped", ("method", "status")
        ),
    }
)


@dataclass
class State:
    """Ray's metric objects and the last values of this process; never sent to another process."""

    made: dict[str, Any] = field(default_factory=dict)
    """Name -> Ray's object."""
    where: dict[str, str] | None = None
    """Values of `WHERE`; None: not looked up yet."""
    gauges: dict[tuple[str, tuple[tuple[str, str], ...]], float] = field(default_factory=dict)
    """(name, tags) -> the last value."""
    refresher: threading.Thread | None = None


STATE = State()


def count(name: str, amount: float = 1, **tags: str) -> None:
    """Add to a counter; an amount of zero is ignored.

    Raises:
        KeyError: an unknown metric, or a tag that it does not have.
    """
    full = tagged(name, tags)
    if amount > 0 and running():
        made(name).inc(float(amount), tags=full)


def gauge(name: str, value: float, **tags: str) -> None:
    """Set a gauge; it keeps the value as long as this process lives.

    Raises:
        KeyError: see `count`.
    """
    full = tagged(name, tags)
    if not running():
        return
    STATE.gauges[name, tuple(full.items())] = float(value)
    made(name).set(float(value), tags=full)
    if STATE.refresher is None:
        STATE.refresher = threading.Thread(target=refresh, name="gauges", daemon=True)
        STATE.refresher.start()


@contextmanager
def timed(call: str, method: str = "") -> Iterator[None]:
    """Count a call to a replica, and its seconds."""
    start, status = time.perf_counter(), "failed"
    try:
        yield
        status = "done"
    finally:
        count("calls", call=call, method=method, status=status)
        count("seconds", time.perf_counter() - start, call=call, method=method)


def label(sweep: str = "", replica: str = "", shard: str = "") -> None:
    """Set the tags of this process's metrics, for a process without an actor name (the driver)."""
    STATE.where = {"sweep": sweep, "replica": replica, "shard": shard}


def running() -> bool:
    """Whether Ray is running; does not import it."""
    ray = sys.modules.get("ray")
    known = getattr(ray, "is_initialized", None)  # None while Ray is being imported
    return known is not None and bool(known())


def tagged(name: str, tags: dict[str, str]) -> dict[str, str]:
    """All tags of a value, checked whether Ray runs or not."""
    row = METRICS[name]
    if len(tags) != len(row.tags) or any(tag not in tags for tag in row.tags):
        raise KeyError(f"metric {name!r}: tags {sorted(tags)}, not {sorted(row.tags)}")
    return {**(STATE.where or looked_up()), **tags}


def looked_up() -> dict[str, str]:
    """Values of `WHERE`, from the name of this process's actor; cached once Ray runs."""
    empty = dict.fromkeys(WHERE, "")
    if not running():
        return empty
    import ray

    context = ray.get_runtime_context()
    name = context.get_actor_name() if context.get_actor_id() else None
    STATE.where = {**empty, **tags_of(name or "")}
    return STATE.where


def made(name: str) -> Any:
    """Ray's object for a metric, created at its first use."""
    if name not in STATE.made:
        from ray.util import metrics

        row = METRICS[name]
        kind = metrics.Counter if row.kind == "counter" else metrics.Gauge
        new = kind(PREFIX + name, row.meaning, tag_keys=(*WHERE, *row.tags))
        STATE.made[name] = new
    return STATE.made[name]


def refresh() -> None:
    """Send all gauges again at intervals, until Ray ends."""
    while True:
        time.sleep(REFRESH)
        if not running():
            STATE.gauges.clear()
            STATE.refresher = None
            return
        for (name, tags), value in list(STATE.gauges.items()):
            made(name).set(value, tags=dict(tags))
