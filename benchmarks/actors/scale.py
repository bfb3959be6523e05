"""What a sweep's own machinery takes as its trials grow, on many nodes: no model, all else real.

    python -m benchmarks.actors.scale [--save] [--trials 10,100,1000] [--nodes 64] [--noop 0.05]

A Ray cluster of logical nodes on this machine (`ray.cluster_utils.Cluster`) with a stub replica on
each, in a placement group of its own, that sleeps for `--noop` seconds instead of evaluating.
Searcher, Tune, trial processes, dispatcher, ledger, MLflow (sqlite), mirror, comparison and report
are
those of `sweeps run`. Every sweep, and every resume, is a process of its own (`scale_driver.py`).

* a trial adds: (first trial's start to last one's end − trials × noop ÷ slots) ÷ trials; slots are
  calls under way at a time: trials in flight, or replicas where those are fewer.
* driver: resident memory before the first trial and at the end, and its peak.
* MLflow: rows stored ÷ seconds in which the sending thread was at work.
* resume: from opening ledger and MLflow to knowing that nothing is left to try; and, with every
  other trial forgotten, to the first new result.
* of that, ms a trial of the driver in the places that could grow with the number of trials.

As many nodes are started as `--patience` seconds and memory allow; the result says how many.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from sweeps.cluster.ray_connection import stay_on_loopback

STORE = 80 * 2**20
"""Object store of a logical node: little more than the least that Ray takes."""

NODE_MEMORY = 2**30
"""What a logical node says it has: room for five trials."""

SPARE = 4 * 2**30
"""Bytes left free by the nodes: for the driver and the trials' processes."""

STUB = 80 * 2**20
"""Bytes that a stub's process will take on each node."""

LIMIT = 1800.0
"""Seconds that one driver may take."""

PARTS = ("searcher", "ledger", "queueing for MLflow", "progress", "Tune's snapshots")


@dataclass(frozen=True)
class Site:
    """A cluster that stands."""

    address: str
    nodes: int
    seconds: float
    """That starting its nodes took."""
    node_bytes: float
    """Memory of a node's own processes, shared pages shared out."""


def start(nodes: int, patience: float) -> tuple[Site, Any]:
    """As many nodes as there is room and patience for, one CPU each."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "num_gpus": 0, "object_store_memory": STORE, "memory": NODE_MEMORY}
    with socket.socket() as free:  # the usual port may be another cluster's
        free.bind(("127.0.0.1", 0))
        head["dashboard_port"] = free.getsockname()[1]
    # So many processes on a few cores answer late, and are alive nevertheless.
    patient = {"health_check_failure_threshold": 60}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**head, "include_dashboard": False, "_system_config": patient},
    )
    alone, began, count = held(), time.monotonic(), 0
    for count in range(1, nodes + 1):
        cluster.add_node(num_cpus=1, object_store_memory=STORE, memory=NODE_MEMORY, wait=False)
        late = time.monotonic() - began > patience
        if late or psutil.virtual_memory().available < SPARE + count * STUB:
            break
    took = time.monotonic() - began
    return Site(cluster.address, count, took, (held() - alone) / count), cluster


def held() -> float:
    """Bytes of all processes that this one started."""
    sizes = []
    for process in psutil.Process().children(recursive=True):
        try:
            sizes.append(process.memory_full_info().pss)
        except psutil.Error:  # it has just ended
            continue
    return float(sum(sizes))


def driven(site: Site, folder: Path, trials: int, noop: float, mode: str) -> dict[str, Any]:
    """What one driver tells."""
    words = [site.address, folder, site.nodes, trials, noop, mode]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.actors.scale_driver", *map(str, words)],
        stdout=subprocess.PIPE, text=True, timeout=LIMIT, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    say(f"{trials} trials, {mode}: {found['trials_s']:.1f} s + {found['ending_s']:.1f} s")
    return found


def stored(folder: Path) -> int:
    """Rows in MLflow's tables of runs and what they hold."""
    tables = ("runs", "metrics", "latest_metrics", "params", "tags")
    with sqlite3.connect(folder / "mlflow.db") as db:
        counts = [db.execute(f"select count(*) from {table}").fetchone()[0] for table in tables]
    return int(sum(counts))


@dataclass(frozen=True)
class Size:
    """A sweep of some number of trials, and its two resumes."""

    new: dict[str, Any]
    all: dict[str, Any]
    half: dict[str, Any]
    rows: int
    """That MLflow stored."""
    slots: int
    noop: float

    @property
    def trials(self) -> int:
        """How many."""
        return int(self.new["trials"])

    def added(self) -> float:
        """Seconds a trial, beyond those of waiting."""
        waiting = self.trials * self.noop / self.slots
        return float((self.new["span_s"] - waiting) / self.trials)


def part_ms(part: str, size: Size) -> str:
    """Milliseconds a trial of one of `PARTS`."""
    return f"{1000 * size.new['spent'].get(part, 0.0) / size.trials:.2f}"


Column = tuple[str, Callable[[Size], str]]

COLUMNS: tuple[Column, ...] = (
    ("trials", lambda s: f"{s.trials}"),
    ("in flight", lambda s: f"{s.new['in_flight']}"),
    ("from first start to last end, s", lambda s: f"{s.new['span_s']:.1f}"),
    ("of that waiting, s", lambda s: f"{s.trials * s.noop / s.slots:.2f}"),
    ("**a trial adds, ms**", lambda s: f"{1000 * s.added():.0f}"),
    ("whole run, s", lambda s: f"{s.new['trials_s'] + s.new['ending_s']:.1f}"),
    ("of that finals, comparison, report, s", lambda s: f"{s.new['ending_s']:.1f}"),
    ("driver before, MB", lambda s: f"{s.new['before'] / 1e6:.0f}"),
    ("at the end, MB", lambda s: f"{s.new['end'] / 1e6:.0f}"),
    ("peak, MB", lambda s: f"{s.new['peak'] / 1e6:.0f}"),
    ("MLflow rows", lambda s: f"{s.rows}"),
    ("rows a second", lambda s: f"{s.rows / s.new['spent']['sending']:.0f}"),
    ("trials a second into MLflow", lambda s: f"{s.trials / s.new['spent']['sending']:.0f}"),
    ("resume, all finished, s", lambda s: f"{s.all['trials_s']:.2f}"),
    ("of that MLflow's store opened, s", lambda s: f"{s.all['connect_s']:.2f}"),
    ("resume, half finished: first new result, s", lambda s: f"{s.half['first_s']:.2f}"),
    *((f"{part}, ms a trial", partial(part_ms, part)) for part in PARTS),
)


def table(sizes: list[Size], site: Site, wanted: int, noop: float) -> str:
    """The result file: a row a figure, a column a size."""
    from benchmarks.environment import machine

    load = ", ".join(f"{each:.0f}" for each in os.getloadavg())
    fewer = f" (of {wanted} asked for: no more fitted in memory or time)"
    cells = [[name, *(show(size) for size in sizes)] for name, show in COLUMNS]
    return "\n".join(
        [
            "# scale",
            "",
            f"`python -m benchmarks.actors.scale --trials {','.join(str(s.trials) for s in sizes)}"
            f" --nodes {wanted} --noop {noop:g}`, {datetime.now(UTC).date()}: {machine()};"
            f" load average at the end {load}.",
            f"{site.nodes} logical nodes{fewer if site.nodes < wanted else ''}, a stub replica on"
            f" each: {site.node_bytes / 1e6:.0f} MB a node before its replica,"
            f" {site.seconds / site.nodes:.1f} s to start one. Three tasks; a tenth of the trials"
            " is proposed by TPE, the others are drawn at random.",
            "",
            "| " + " | ".join(cells[0]) + " |",
            "|---" * len(cells[0]) + "|",
            *("| " + " | ".join(row) + " |" for row in cells[1:]),
            "",
        ]
    )


def say(line: str) -> None:
    """How far it is, for who waits."""
    sys.stderr.write(f"{datetime.now(UTC):%H:%M:%S} {line}\n")


def main() -> None:
    """Measure, print, and with `--save` keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--trials", default="10,100,1000")
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--noop", type=float, default=0.05, help="seconds of an evaluation")
    parser.add_argument("--patience", type=float, default=240.0, help="seconds to start nodes in")
    given = parser.parse_args()
    stay_on_loopback(None)
    with tempfile.TemporaryDirectory(prefix="scale-") as scratch:
        # Of its own, or whoever starts a Ray on this machine meanwhile joins this one.
        os.environ |= {"RAY_TMPDIR": scratch, "FUSION_SWEEPS_CACHE": f"{scratch}/cache"}
        import datasets
        import transformers

        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
        import_module("tests.tiny_pool").make_pool(Path(scratch) / "pool")
        site, cluster = start(given.nodes, given.patience)
        say(f"{site.nodes} nodes after {site.seconds:.0f} s")
        try:
            sizes: list[Size] = []
            for trials in map(int, given.trials.split(",")):
                before = stored(Path(scratch)) if sizes else 0
                new = driven(site, Path(scratch), trials, given.noop, "new")
                rows = stored(Path(scratch)) - before
                done = driven(site, Path(scratch), trials, given.noop, "all")
                half = driven(site, Path(scratch), trials, given.noop, "half")
                slots = min(site.nodes, new["in_flight"])
                sizes.append(Size(new, done, half, rows, slots, given.noop))
        finally:
            cluster.shutdown()
    text = table(sizes, site, given.nodes, given.noop)
    sys.stdout.write(text)
    if given.save:
        from benchmarks.environment import RESULTS

        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"scale_{datetime.now(UTC).date()}.md").write_text(text)


if __name__ == "__main__":
    main()
