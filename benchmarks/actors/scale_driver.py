"""One synthetic sweep, or its resume, as a driver of its own; run by `scale.py`.

    python -m benchmarks.actors.scale_driver ADDRESS FOLDER NODES TRIALS NOOP new|all|half

FOLDER holds a tiny pool (`tests/tiny_pool.py`) and gets the sweep; JSON on standard output tells
what it took. `all` resumes a finished sweep; `half` forgets every other trial of it first, and ends
with the first new result.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from sweeps.cluster.ray_connection import stay_on_loopback

if TYPE_CHECKING:
    from actors.fleet.client import Client
    from sweeps.results.ledger import Ledger

ROWS = 20
"""Images that a stub pretends to have seen of each task."""


class Stub:
    """A replica that only waits; its process gets it by value, and so imports no torch."""

    def __init__(self, tasks: tuple[str, ...], rows: int, noop: float) -> None:
        self.tasks, self.rows, self.noop = tasks, rows, noop

    def call(self, request: Any) -> Any:
        """What trials, references and finals ask for."""
        time.sleep(self.noop)
        if request.name == "measure":
            return self.measure(request.recipe.params)
        return None if request.name == "embed" else Seen(self.tasks, self.rows, self.noop)

    def measure(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The metrics of a trial: best where the scale is 0.3."""
        right = round(self.rows * max(0.0, 1 - abs(params.get("scale", 0.5) - 0.3))) / self.rows
        found = {f"acc/{task}": right for task in (*self.tasks, "mean")}
        found |= {f"nll/{task}": 1 - right for task in (*self.tasks, "mean")}
        samples = dict.fromkeys(self.tasks, self.rows)
        return {"metrics": found, "n": samples, "trial_s": self.noop, "peak_bytes": 10**9}

    def states(self) -> Any:
        """What the dispatcher asks before the first call."""
        from actors.fleet.restarts import own_state

        return [own_state()]


class Seen:
    """An `Evaluation` once it has left the stub's process, which knows none."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __reduce__(self) -> tuple[Any, ...]:
        return evaluation, self.args


def evaluation(tasks: tuple[str, ...], rows: int, seconds: float) -> Any:
    """Every other image right."""
    import numpy as np

    from actors.experts.evaluation import Evaluation, TaskScore

    half = TaskScore(np.arange(rows) % 2 == 0, 0.5)
    return Evaluation(dict.fromkeys(tasks, half), seconds, 10**9)


def methods(trials: int) -> dict[str, Any]:
    """So many trials with the references and methods of every comparison: two methods are searched
    at random, a tenth is proposed by TPE."""
    rest = trials - 4
    guided = max(rest // 10, 1)
    ties = (rest - guided) // 2
    scale = {"uniform": [0.0, 1.0]}
    return {
        "task_arithmetic": {"scale": scale, "trials": rest - guided - ties},
        "ties": {"density": {"uniform": [0.1, 0.9]}, "scale": scale, "trials": ties},
        "wise_ft": {
            "alpha": {"uniform": [0.0, 1.0]},
            "expert": "tones",
            "trials": guided,
            "searcher": "tpe",
        },
    }


class Stop(Exception):
    """The first new result is there."""


class Clock:
    """Seconds spent in some methods, all calls together, and moments."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.at: dict[str, float] = {}
        """When each last came to an end."""
        self.found: dict[str, Any] = {}
        """What each returned last."""

    def watch(self, kind: Any, name: str, label: str) -> None:
        """Time every call of `kind.name`."""
        inner = getattr(kind, name)

        @wraps(inner)
        def outer(*args: Any, **given: Any) -> Any:
            began = time.perf_counter()
            try:
                self.found[label] = inner(*args, **given)
                return self.found[label]
            finally:
                self.spent[label] += time.perf_counter() - began
                self.at[label] = time.perf_counter()

        setattr(kind, name, outer)


def drive(given: argparse.Namespace) -> dict[str, Any]:
    """One sweep, or one resume, in this process; what it took."""
    import ray
    from ray.tune.execution import experiment_state
    from rich.console import Console

    from sweeps.cluster import ray_connection
    from sweeps.console.progress import Progress
    from sweeps.execution import run
    from sweeps.execution.sweep_run import SweepRun, tags_of
    from sweeps.planning.prepare import prepare
    from sweeps.results.folder import SweepFolder, claim
    from sweeps.results.ledger import Ledger
    from sweeps.spec.sweep import dump, spec_hash, validate
    from sweeps.storage.mirror import Mirror
    from sweeps.tracking import mlflow_store
    from sweeps.tracking.tracker import Tracker
    from sweeps.trials import run_trials
    from sweeps.trials.searcher import MethodSearch

    tiny = import_module("tests.tiny_pool")
    outputs = given.folder / "outputs"
    content = tiny.TinyPool(given.folder / "pool").spec(
        name=f"sweep{given.trials}", methods=methods(given.trials)
    )
    spec = validate(content, "scale")
    folder = SweepFolder(outputs / spec.name)
    ray.init(address=given.address, log_to_driver=False, logging_level="ERROR")
    prepared = prepare(spec, outputs, ray_connection.this_machine())
    client = stand_ins(given.nodes, tuple(tiny.TASKS), given.noop)

    if given.mode == "half":
        forget(folder.ledger)
    clock = Clock()
    clock.watch(MethodSearch, "suggest", "searcher")
    clock.watch(
        experiment_state._ExperimentCheckpointManager,
        "sync_up_experiment_state",
        "Tune's snapshots",
    )
    clock.watch(Ledger, "add", "ledger")
    clock.watch(Tracker, "trial", "queueing for MLflow")
    clock.watch(Tracker, "send", "sending")
    clock.watch(Progress, "advance", "progress")
    clock.watch(run, "run_trials", "trials")
    clock.watch(run_trials, "in_flight", "in flight")
    if given.mode == "half":
        stop_after_one(Ledger)

    before, began = psutil.Process().memory_info().rss, time.perf_counter()
    store, experiment = mlflow_store.connect(
        f"sqlite:///{given.folder / 'mlflow.db'}", spec.name, outputs
    )
    connected = time.perf_counter()
    resumed = given.mode != "new"
    identity = claim(folder.path, spec_hash(spec), dump(spec), resume=resumed)
    tags = tags_of(prepared, identity)
    tracker = Tracker(store, experiment, spec.name, identity.sweep_id, tags)
    with (
        suppress(Stop),
        Progress(Console(quiet=True)) as progress,
        Mirror(folder, None, {}, progress.say) as mirror,
    ):
        run.run_phases(SweepRun(prepared, folder, identity, client, tracker, mirror, progress))
    ended = time.perf_counter()
    if tracker.fault:
        raise RuntimeError(tracker.fault)
    return {
        "trials": given.trials,
        "in_flight": clock.found.get("in flight", 0),
        "before": before,
        "end": psutil.Process().memory_info().rss,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "spent": clock.spent,
        "connect_s": connected - began,
        "first_s": clock.at.get("ledger", began) - began,
        "trials_s": clock.at["trials"] - began,
        "ending_s": ended - clock.at["trials"],
        "span_s": span(folder.ledger),
        "entries": sum(1 for _ in folder.ledger),
    }


def stand_ins(nodes: int, tasks: tuple[str, ...], noop: float) -> Client:
    """A dispatcher over a stub on each node; they end with this process."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from actors.fleet.client import Client
    from actors.fleet.dispatcher import Dispatcher, Slot

    groups = [ray.util.placement_group([{"CPU": 1}]) for _ in range(nodes)]
    stubs = [
        ray.remote(Stub)
        .options(num_cpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(group))
        .remote(tasks, ROWS, noop)
        for group in groups
    ]
    ray.get([stub.states.remote() for stub in stubs], timeout=600)
    slots = [Slot(n, *both) for n, both in enumerate(zip(stubs, groups, strict=True))]
    dispatcher = ray.remote(Dispatcher).options(num_cpus=0, max_concurrency=1000)
    return Client(dispatcher.remote(ray.cloudpickle.dumps(slots), 60.0), nodes)


def forget(ledger: Ledger) -> None:
    """Every other trial of a finished sweep."""
    for path in sorted(ledger.folder.glob("*.json"))[::2]:
        path.unlink()


def stop_after_one(kind: type[Ledger]) -> None:
    """End the sweep once a trial's result is kept."""
    add = kind.add

    def once(self: Ledger, entry: Any) -> None:
        add(self, entry)
        raise Stop

    kind.add = once  # type: ignore[method-assign]


def span(ledger: Ledger) -> float:
    """Seconds from the first trial's start to the last one's end."""
    ran = [entry for entry in ledger if entry.kind != "reference"]
    times = [datetime.fromisoformat(at) for entry in ran for at in (entry.started, entry.ended)]
    return (max(times) - min(times)).total_seconds()


def main() -> None:
    """As called by `scale.py`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("folder", type=Path)
    parser.add_argument("nodes", type=int)
    parser.add_argument("trials", type=int)
    parser.add_argument("noop", type=float)
    parser.add_argument("mode", choices=("new", "all", "half"))
    given = parser.parse_args()
    stay_on_loopback(None)
    found = drive(given)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
