"""Send a sweep to MLflow in the background: one parent run, and one child run for each trial.

Everything is idempotent: runs are found again by tags (`sweep_id`, `trial_key`), so what could not
be sent is sent later (`retry_queue.py`: within the sweep; `--resume`: in another), and nothing
twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.results.ledger import Entry
from sweeps.tracking.experiment_page import MAX_NOTE, NOTE, SHOWN, fitted, page
from sweeps.tracking.logged_model import ModelSource, Place, inputs, log_winner
from sweeps.tracking.mlflow_store import patience as usual
from sweeps.tracking.mlflow_store import tag_experiment
from sweeps.tracking.retry_queue import Job, Sender
from sweeps.tracking.run_fields import (
    MAX_PARAMS,
    metrics_of,
    params_of,
    run_name,
    state_of,
    trial_tags,
    user,
)
from sweeps.tracking.system_metrics import Sample, SystemMetrics

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MAX_BATCH = 800
"""Metrics in a call: MLflow takes 1000 things, of which up to 100 are parameters."""


class Tracker:
    """Send a sweep's trials from the driver; sending them again changes nothing.

    Args:
        client: of a store that `mlflow_store.connect` has reached.
        experiment: id of the experiment.
        sweep: name of the sweep.
        sweep_id: finds the parent run of a resumed sweep.
        tags: of the parent run.
        params: of the parent run.
        role: tag of the parent run: `sweep`, or `training`.
        patience: seconds of trouble that the end of the sweep puts up with; None: as usual.
        say: takes a line for the user; None: the log.
        watch: folder whose disk, and whose machine, is sampled; None: nothing is.
    """

    def __init__(
        self,
        client: MlflowClient,
        experiment: str,
        sweep: str,
        sweep_id: str,
        tags: Mapping[str, str],
        *,
        params: Mapping[str, str] | None = None,
        role: str = "sweep",
        patience: float | None = None,
        watch: Path | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.client, self.experiment, self.sweep = client, experiment, sweep
        self.tags = {
            **tags,
            "sweep": sweep,
            "sweep_id": sweep_id,
            "role": role,
            "mlflow.user": user(),
            "mlflow.source.name": "sweeps run" if role == "sweep" else "sweeps train",
        }
        self.params = params or {}
        self.parent = ""
        """The sweep's run, once it is there."""
        self.began = 0
        """When it was made, in epoch milliseconds."""
        self.sent: dict[str, tuple[str, str]] = {}
        """trial_key -> (run id, status) of the runs that are there."""
        self.unsure: set[str] = set()
        """Trials whose run may or may not have been made: the answer was lost."""
        waits = usual() if patience is None else patience
        self.sender = Sender(lambda: client.get_experiment(experiment), waits, say)
        self.sender.offer(self.open)
        self.system_metrics = SystemMetrics(watch, self.progress, self.sample) if watch else None

    @property
    def fault(self) -> str | None:
        """Why MLflow lacks results; None while it has all, or may still get them."""
        return self.sender.fault

    def open(self) -> None:
        """Find the parent run and its children, or create it."""
        if self.parent:
            return
        found = self.parents()
        if found:
            parent = max(found, key=lambda run: len(self.children(run.info.run_id)))
            self.client.update_run(parent.info.run_id, status="RUNNING")
        else:
            parent = self.client.create_run(self.experiment, run_name=self.sweep, tags=self.tags)
        from mlflow.entities import Param  # late: see `mlflow_store`

        # A parameter cannot be changed: an extended sweep keeps what it began with.
        left = [Param(k, v) for k, v in self.params.items() if k not in parent.data.params]
        for start in range(0, len(left), MAX_PARAMS):
            self.client.log_batch(parent.info.run_id, params=left[start : start + MAX_PARAMS])
        for key, runs in self.children(parent.info.run_id).items():
            best = max(runs, key=lambda run: run.info.status == "FINISHED")
            self.sent[key] = (best.info.run_id, best.info.status)
        self.began = parent.info.start_time
        self.parent = parent.info.run_id

    def parents(self) -> list[Run]:
        """The sweep's parent runs; several only if a response was lost."""
        return self.search(
            f"tags.sweep_id = '{self.tags['sweep_id']}' and tags.role = '{self.tags['role']}'"
        )

    def children(self, parent: str) -> dict[str, list[Run]]:
        """trial_key -> its runs; several only if a response was lost."""
        found: dict[str, list[Run]] = {}
        for run in self.search(f"tags.mlflow.parentRunId = '{parent}'"):
            found.setdefault(run.data.tags.get("trial_key", ""), []).append(run)
        return found

    def search(self, where: str) -> list[Run]:
        """All runs of the experiment that match a filter."""
        found: list[Run] = []
        token = None
        while True:
            some = self.client.search_runs(
                [self.experiment], where, max_results=1000, page_token=token
            )
            found += some
            token = some.token
            if not token:
                return found

    @property
    def page(self) -> str:
        """The part of an address, after that of the store's page, that opens on the parent run."""
        where = f"/runs/{self.parent}" if self.parent else ""
        return f"#/experiments/{self.experiment}{where}"

    def trial(self, entry: Entry) -> None:
        """Queue one finished trial; returns at once. `flush` sends what found no room."""
        self.sender.offer(lambda: self.send(entry))

    def send(self, entry: Entry) -> None:
        """Create or complete the child run of one trial."""
        self.open()
        state, key = state_of(entry), entry.trial_key
        run_id, sent = self.sent.get(key, ("", ""))
        if sent == state:
            return
        from mlflow.entities import RunTag  # late: see `mlflow_store`

        metrics = metrics_of(entry)
        if not run_id:
            run_id = self.child(entry)
        self.client.log_batch(
            run_id,
            metrics=metrics[:MAX_BATCH],
            params=params_of(entry),
            tags=[RunTag("error", entry.error[:1000])] if entry.error else [],
        )
        for start in range(MAX_BATCH, len(metrics), MAX_BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + MAX_BATCH])
        if sent == "FAILED":
            self.client.delete_tag(run_id, "error")
        self.client.set_terminated(run_id, status=state, end_time=metrics[0].timestamp)
        self.sent[key] = (run_id, state)

    def child(self, entry: Entry) -> str:
        """Run of a trial: the existing one, or a new one."""
        key = entry.trial_key
        made: list[Run] = []
        if key in self.unsure:
            where = f"tags.mlflow.parentRunId = '{self.parent}' and tags.trial_key = '{key}'"
            made = self.search(where)
        self.unsure.add(key)
        if not made:
            made = [
                self.client.create_run(
                    self.experiment,
                    start_time=metrics_of(entry)[0].timestamp - int(1000 * entry.trial_s),
                    run_name=run_name(entry),
                    tags=trial_tags(entry, self.parent, self.sweep),
                )
            ]
        self.unsure.discard(key)
        run_id: str = made[0].info.run_id
        self.sent[key] = (run_id, "RUNNING")
        return run_id

    def flush(self, entries: Iterable[Entry]) -> None:
        """Wait for the queue, then send all `entries` that are missing."""
        self.sender.drain()
        for entry in entries:
            if self.sent.get(entry.trial_key, ("", ""))[1] != state_of(entry):
                self.sender.do(lambda entry=entry: self.send(entry))  # type: ignore[misc]
        if self.sender.shaky:
            self.sender.do(self.settle)

    def settle(self) -> None:
        """Delete runs of requests that succeeded after they had been given up."""
        kept = {self.parent, *(run_id for run_id, _ in self.sent.values())}
        runs = [run for each in self.children(self.parent).values() for run in each]
        for run in [*runs, *self.parents()]:
            if run.info.run_id not in kept:
                self.client.delete_run(run.info.run_id)
        self.sender.shaky = False

    def run_id(self, trial_key: str) -> str | None:
        """Child run of a trial; None if it could not be sent."""
        return self.sent.get(trial_key, (None, None))[0]

    def progress(self) -> dict[str, float]:
        """Record how many trials have finished, for the system metrics."""
        return {"trials": float(len(self.sent))}

    def sample(self, samples: Sequence[Sample]) -> bool:
        """Queue samples of the driver's machine for the parent run."""
        return self.sender.offer(lambda: self.log_samples(samples))

    def log_samples(self, samples: Sequence[Sample]) -> None:
        """Send samples; their steps are seconds since the sweep first started."""
        from mlflow.entities import Metric  # late: see `mlflow_store`

        self.open()
        metrics = [
            Metric(name, value, at, (at - self.began) // 1000)
            for at, values in samples
            for name, value in values.items()
        ]
        for start in range(0, len(metrics), MAX_BATCH):
            self.client.log_batch(self.parent, metrics=metrics[start : start + MAX_BATCH])

    def winner(
        self,
        row: str,
        trial_key: str,
        metrics: Mapping[str, float],
        datasets: Mapping[str, str],
        recipe: Path | None,
        *,
        notes: Sequence[str] = (),
        files: Sequence[Path] = (),
        surface: Path | None = None,
        source: ModelSource | str = "not given",
    ) -> None:
        """Log a method's winner: report metrics and data sets on its run, recipe and model.

        `datasets`: task -> digest of its report rows. `recipe` rebuilds the model, with the `files`
        that it names (what was learned). `notes`: what a reader of the numbers must know, as a tag.
        `surface`: the table of what it searched. `source`: of the model, which becomes a logged
        model that predicts; or why it does not.
        """
        run_id = self.run_id(trial_key)
        if run_id is None:
            return
        place = Place(self.client, self.experiment, self.parent, self.sweep)
        paths = [(path, "recipe") for path in (recipe, *files) if path]
        paths += [(surface, "surface")] if surface else []
        self.sender.do(
            lambda: log_winner(place, run_id, row, metrics, datasets, paths, notes, source)
        )

    def finish(
        self,
        status: str,
        metrics: Mapping[str, float],
        files: Iterable[Path],
        *,
        note: str = "",
        datasets: Mapping[str, str] | None = None,
    ) -> None:
        """End the parent run; log the winners' metrics, artifacts and the comparison.

        `note`: the comparison as Markdown; the description of the run, and with those of other
        sweeps that of the experiment.
        """
        now = int(time.time() * 1000)
        samples = self.system_metrics.stop() if self.system_metrics else []

        def log() -> None:
            from mlflow.entities import Metric  # late: see `mlflow_store`

            self.open()
            self.log_samples(samples)
            there = self.client.get_run(self.parent).data.metrics
            new = [Metric(k, v, now, 0) for k, v in metrics.items() if there.get(k) != v]
            self.client.log_batch(self.parent, metrics=new)
            if datasets:
                self.client.log_inputs(self.parent, inputs(datasets))

        def end() -> None:
            self.open()
            self.client.set_terminated(self.parent, status=status)

        def keep(path: Path) -> None:
            self.open()
            target = {"recipes": "recipes", "plots": "plots"}.get(path.parent.name)
            self.client.log_artifact(self.parent, str(path), target)

        def tell() -> None:
            self.open()
            self.client.set_tag(self.parent, NOTE, fitted(note, MAX_NOTE))
            self.describe()

        # One job each: what cannot be sent keeps nothing else from being sent.
        jobs: list[Job] = [log, end, *(partial(keep, path) for path in files)]
        for job in [*jobs, tell] if note else jobs:
            self.sender.do(job)
        self.sender.close()

    def describe(self) -> None:
        """Write the newest comparisons into the experiment's description.

        It is put together from the runs' own, so that of sweeps which end together the last one
        to write has them all.
        """
        newest = self.client.search_runs(
            [self.experiment],
            "tags.role = 'sweep'",
            order_by=["attributes.start_time DESC"],
            max_results=4 * SHOWN,
        )
        notes = [run.data.tags[NOTE] for run in newest if NOTE in run.data.tags][:SHOWN]
        tag_experiment(self.client, self.experiment, NOTE, page(self.experiment, notes))


def attach(
    client: MlflowClient, experiment: str, sweep_id: str, files: Iterable[tuple[Path, str]]
) -> int:
    """Log files with the parent run of an existing sweep; returns the number of runs: 0 or 1.

    Args:
        client: of a store that `mlflow_store.connect` has reached.
        experiment: id of the experiment.
        sweep_id: finds the run.
        files: each with the folder among the run's artifacts; empty: their root.
    """
    where = f"tags.sweep_id = '{sweep_id}' and tags.role = 'sweep'"
    runs = client.search_runs([experiment], where, max_results=1)
    for run in runs:
        for path, place in files:
            client.log_artifact(run.info.run_id, str(path), place or None)
    return len(runs)
