"""Log a training in MLflow: one parent run, and one child run for each fine-tuning.

It is sent when the training ends, from the results on disk; nothing is sent twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from mlflow.entities import Metric

from actors.files.atomic import replacing
from sweeps.console import redact
from sweeps.results.ledger import Entry
from sweeps.tracking import mlflow_store
from sweeps.tracking.run_fields import spec_params
from sweeps.tracking.tracker import Tracker

METHOD = "fine_tune"

ID_FILE = "mlflow_id"
"""In the folder of results: what its run is found by, however often the file is trained."""


class Result(Protocol):
    """Result of one fine-tuning."""

    @property
    def key(self) -> str:
        """Key of the trial."""

    @property
    def task(self) -> str:
        """Its task."""

    @property
    def params(self) -> Mapping[str, Any]:
        """Its hyper-parameters."""

    @property
    def select(self) -> float:
        """The task's metric on the select split."""

    @property
    def report(self) -> float | None:
        """The same on the report split; None: a scheduler stopped the trial."""

    @property
    def seconds(self) -> float:
        """Its duration."""


class TrainingRun:
    """MLflow's store for one training.

    Args:
        name: of the training.
        out: its folder.
        uri: of the store; None: `$MLFLOW_TRACKING_URI`, else a file beside the folder.
        experiment: its name; None: that of sweeps.
        say: takes a line for the user.

    Raises:
        InputError: the store cannot be used.
    """

    def __init__(
        self,
        name: str,
        out: Path,
        uri: str | None,
        experiment: str | None,
        say: Callable[[str], None],
    ) -> None:
        self.name, self.out, self.say = name, out.resolve(), say
        self.uri = uri or mlflow_store.default_uri(self.out.parent)
        self.experiment = experiment
        mlflow_store.check_reachable(self.uri, experiment)

    def log(
        self,
        spec: Mapping[str, Any],
        results: Iterable[tuple[Result, Path]],
        files: Sequence[Path],
    ) -> str:
        """Send what has ended; returns the address of the training's page.

        Args:
            spec: the training file, as plain data.
            results: each with its file.
            files: files for the training's run.
        """
        client, experiment = mlflow_store.connect(
            self.uri, self.experiment, self.out.parent, self.say
        )
        tags = {"code": version("fusion-sweeps"), "folder": str(self.out)}
        params = spec_params(spec)
        tracker = Tracker(
            client, experiment, self.name, self.id(), tags, params=params, role="training",
            say=self.say,
        )  # fmt: skip
        found = [(entry_of(result, file), result) for result, file in results]
        tracker.flush([entry for entry, _ in found])
        best: dict[str, float] = {}
        for entry, result in found:
            (name,) = entry.metrics
            run = tracker.run_id(entry.trial_key)
            if result.report is None or run is None:
                continue
            at = int(datetime.fromisoformat(entry.ended).timestamp() * 1000)
            metric = Metric(f"test/{name}", result.report, at, 0)
            tracker.sender.do(lambda run=run, m=metric: client.log_batch(run, metrics=[m]))  # type: ignore[misc]
            if result.select >= best.get(f"val/{name}", -1.0):
                best |= {f"val/{name}": result.select, f"test/{name}": result.report}
        tracker.finish("FINISHED", best, files)
        return mlflow_store.browsed(redact.url(self.uri), tracker.page)

    @property
    def serve(self) -> str:
        """The command that serves the store's page; empty for a server."""
        return mlflow_store.serve_command(redact.url(self.uri))

    def id(self) -> str:
        """What the training's run is found by; it is made with the first call."""
        file = self.out / "trained" / ID_FILE
        if not file.exists():
            with replacing(file) as part:
                part.write_text(uuid.uuid4().hex)
        return file.read_text()


def entry_of(result: Result, file: Path) -> Entry:
    """A result as an entry, whose metric is `score/<task>`: the task's own; it ended when its file
    was written."""
    ended = datetime.fromtimestamp(file.stat().st_mtime, UTC)
    started = ended - timedelta(seconds=result.seconds)
    return Entry(
        f"{result.task}-{result.key}",
        METHOD,
        "training",
        {"task": result.task, **result.params},
        "done",
        "select",
        metrics={f"score/{result.task}": result.select},
        n={},
        trial_s=result.seconds,
        peak_bytes=0,
        started=started.isoformat(),
        ended=ended.isoformat(),
    )
