"""MLflow: one parent run a sweep, one child run a trial. The only file that knows it.

Everything is idempotent: runs are found again by tags (`sweep_id`, `trial_key`), so what could not
be sent, because the server died, is sent when the sweep is resumed, and nothing is sent twice.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from fusion.errors import InputError
from sweeps.curves import asked_steps
from sweeps.ledger import Entry

# A dead server must be noticed in seconds, not after MLflow's own minutes of retries.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException

log = logging.getLogger(__name__)

EXPERIMENT = "fusion-sweeps"
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Opens the experiment's page on runs and metrics, not on traces of language models."""

MAX_PARAM = 6000
"""Characters MLflow takes in a parameter's value."""

MAX_BATCH = 800
"""Metrics in a call: MLflow takes 1000 things, of which up to 100 are parameters."""


def default_uri(outputs: Path) -> str:
    """An absolute sqlite file under the outputs folder: no process's working directory matters."""
    return f"sqlite:///{(outputs / 'mlflow.db').resolve()}"


def connect(uri: str | None, experiment: str | None, outputs: Path) -> tuple[MlflowClient, str]:
    """A client and the experiment's id, made if absent. Initialises a fresh sqlite store.

    Raises:
        InputError: the store cannot be reached or opened.
    """
    where = uri or default_uri(outputs)
    name = experiment or EXPERIMENT
    if where.startswith("file:") or "://" not in where:
        raise InputError(
            f"mlflow.tracking_uri: {where!r}: MLflow keeps no file stores any more;"
            " sqlite:///ABSOLUTE_PATH or http(s)://HOST:PORT allowed"
        )
    quiet = logging.getLogger("alembic"), logging.getLogger("mlflow")
    for logger in quiet:  # the migrations of a fresh store are not news
        logger.setLevel(logging.WARNING)
    try:
        if where.startswith("sqlite:"):
            outputs.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(where)
        found = client.get_experiment_by_name(name)
        if found is not None:
            return client, found.experiment_id
        # A server has an artifact root of its own; a sqlite store would use the working directory.
        local = where.startswith("sqlite:")
        place = (outputs / "mlflow-artifacts" / name).resolve().as_uri() if local else None
        return client, client.create_experiment(name, artifact_location=place, tags=KIND)
    except Exception as error:  # whatever the store raises: SQL, HTTP, operating system
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"mlflow.tracking_uri: {where!r}: cannot be used: {reason}") from error


class Tracker:
    """Sends a sweep's trials to MLflow from the driver, in the background, one call a batch."""

    def __init__(
        self,
        client: MlflowClient,
        experiment: str,
        sweep: str,
        sweep_id: str,
        tags: Mapping[str, str],
    ) -> None:
        self.client = client
        self.experiment = experiment
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self.pending: list[Future[None]] = []
        self.fault: str | None = None
        """Why sending stopped; None while all is well."""
        parents = client.search_runs(
            [experiment], f"tags.sweep_id = '{sweep_id}' and tags.role = 'sweep'", max_results=1
        )
        if parents:
            self.parent = parents[0].info.run_id
            client.update_run(self.parent, status="RUNNING")
        else:
            marks = {**tags, "sweep": sweep, "sweep_id": sweep_id, "role": "sweep"}
            self.parent = client.create_run(experiment, run_name=sweep, tags=marks).info.run_id
        self.sent = self.find_children()

    def find_children(self) -> dict[str, tuple[str, str]]:
        """trial_key -> (run id, status) of the runs already there."""
        children: dict[str, tuple[str, str]] = {}
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment],
                f"tags.mlflow.parentRunId = '{self.parent}'",
                max_results=1000,
                page_token=token,
            )
            for run in page:
                key = run.data.tags.get("trial_key", "")
                children[key] = (run.info.run_id, run.info.status)
            token = page.token
            if not token:
                return children

    def trial(self, entry: Entry) -> None:
        """Queue one finished trial; returns at once."""
        self.pending.append(self.worker.submit(self.guarded, entry))

    def guarded(self, entry: Entry) -> None:
        """Send, unless the store has failed before; never raises."""
        if self.fault is None:
            try:
                self.send(entry)
            except Exception as error:  # the sweep goes on: the ledger keeps what is not sent
                self.fault = str(error).strip().splitlines()[0][:200]
                log.warning("MLflow: %s; results stay on disk, --resume sends them", self.fault)

    def send(self, entry: Entry) -> None:
        """Create or complete the child run of one trial."""
        state = "FINISHED" if entry.status == "done" else "FAILED"
        run_id, sent = self.sent.get(entry.trial_key, ("", ""))
        if sent == state:
            return
        began = millis(entry.started)
        if not run_id:
            tags = {
                "mlflow.parentRunId": self.parent,
                "trial_key": entry.trial_key,
                "method": entry.method,
                "kind": entry.kind,
                "split": entry.split,
                "role": "trial",
            }
            run_id = self.client.create_run(
                self.experiment, start_time=began, run_name=run_name(entry), tags=tags
            ).info.run_id
        now = millis(entry.started, entry.trial_s)
        values = {**entry.metrics, "trial_s": entry.trial_s, "peak_bytes": float(entry.peak_bytes)}
        params = {name: str(value)[:MAX_PARAM] for name, value in flat(entry.params).items()}
        if entry.steps:
            values["steps"] = float(entry.steps)  # taken; the parameter says how many were asked
            params = {"steps": str(asked_steps(entry)), **params}
        metrics = [Metric(name, value, now, 0) for name, value in sorted(values.items())]
        metrics += curve_metrics(entry, now)
        self.client.log_batch(
            run_id,
            metrics=metrics[:MAX_BATCH],
            params=[Param(name, value) for name, value in list(params.items())[:100]],
            tags=[RunTag("error", entry.error[:1000])] if entry.error else [],
        )
        for start in range(MAX_BATCH, len(metrics), MAX_BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + MAX_BATCH])
        self.client.set_terminated(run_id, status=state, end_time=now)
        self.sent[entry.trial_key] = (run_id, state)

    def flush(self, entries: Iterable[Entry]) -> None:
        """Wait for what is queued, then send whatever of `entries` is not there yet."""
        for future in self.pending:
            future.result()
        self.pending.clear()
        for entry in entries:
            self.guarded(entry)

    def run_id(self, trial_key: str) -> str | None:
        """The child run of a trial; None where it could not be sent."""
        return self.sent.get(trial_key, (None, None))[0]

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
    ) -> None:
        """Log a method's winner: report metrics and datasets on its run, and a logged model.

        `datasets`: task -> digest of its report rows. The model's weights are not stored: its
        recipe is, with the `files` that it names (what was learned), and rebuilds them. `notes`:
        what a reader of the numbers must know, as a tag.
        """
        run_id = self.run_id(trial_key)
        if self.fault or run_id is None:
            return
        now = int(time.time() * 1000)
        try:
            if "winner" in self.client.get_run(run_id).data.tags:
                return  # sent before the sweep was resumed
            inputs = [
                DatasetInput(Dataset(task, digest, "local", f"{task} (report)"))
                for task, digest in datasets.items()
            ]
            self.client.log_inputs(run_id, inputs)
            tags = {"sweep": self.parent, "method": row}
            model = self.client.create_logged_model(
                self.experiment, name=row, source_run_id=run_id, tags=tags, model_type="fusion"
            )
            batch = []
            for name, value in metrics.items():
                task = name.partition("/")[2]
                digest = datasets.get(task)
                batch.append(
                    Metric(
                        f"test/{name}", value, now, 0, model_id=model.model_id,
                        dataset_name=task if digest else None, dataset_digest=digest,
                    )
                )  # fmt: skip
            self.client.log_batch(run_id, metrics=batch)
            self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
            for path in (*([recipe] if recipe else []), *files):
                self.client.log_artifact(run_id, str(path), "recipe")
            if notes:
                self.client.set_tag(run_id, "notes", "; ".join(notes)[:MAX_PARAM])
            self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
            self.client.set_tag(run_id, "winner", row)
        except MlflowException as error:
            self.fault = str(error).strip().splitlines()[0][:200]
            log.warning("MLflow: %s; results stay on disk, --resume sends them", self.fault)

    def finish(self, status: str, metrics: Mapping[str, float], files: Iterable[Path]) -> None:
        """End the parent run with the winners' metrics and the sweep's artifacts."""
        try:
            if self.fault is None:
                now = int(time.time() * 1000)
                self.client.log_batch(
                    self.parent, metrics=[Metric(k, v, now, 0) for k, v in metrics.items()]
                )
                for path in files:
                    target = "recipes" if path.parent.name == "recipes" else None
                    self.client.log_artifact(self.parent, str(path), target)
                self.client.set_terminated(self.parent, status=status)
        except Exception as error:  # the results are on disk; say it once
            self.fault = str(error).strip().splitlines()[0][:200]
            log.warning("MLflow: %s; results stay on disk, --resume sends them", self.fault)
        self.worker.shutdown(wait=False)


def run_name(entry: Entry) -> str:
    """`task_arithmetic scale=0.3`."""
    shown = {
        name: f"{value:.6g}" if isinstance(value, float) else str(value)[:24]
        for name, value in flat(entry.params).items()
    }
    return " ".join([entry.method, *(f"{name}={value}" for name, value in shown.items())])


def curve_metrics(entry: Entry, now: int) -> list[Metric]:
    """Losses and coding range of a trial that learned, at their steps."""
    return [
        Metric(name, value, now, int(point["step"]))
        for point in entry.curve
        for name, value in point.items()
        if name != "step"
    ]


def flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters under dotted names.

    >>> flat({"weights": {"a": 1.0}, "scale": 0.3})
    {'weights.a': 1.0, 'scale': 0.3}
    """
    named: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            named |= flat(value, f"{prefix}{key}.")
        else:
            named[f"{prefix}{key}"] = value
    return named


def millis(started: str, seconds: float = 0.0) -> int:
    """Epoch milliseconds of an ISO time, plus seconds."""
    return int((datetime.fromisoformat(started).timestamp() + seconds) * 1000)
