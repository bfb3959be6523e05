"""Log a method's winner in MLflow: report metrics, data sets, recipe, and its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sweeps.tracking.experiment_page import MAX_NOTE, NOTE
from sweeps.tracking.run_fields import MAX_PARAM, user

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric, Run

NOT_STORED = "model_not_stored"
"""Tag of a winner's run whose model is not in MLflow: the reason."""


class NoModel(Exception):
    """Why a row has no model that MLflow could hold."""


class ModelSource(Protocol):
    """What gives the model of a winner, when MLflow needs it."""

    def export(self) -> Path:
        """Make the model; raises NoModel."""

    def package(self, run_id: str, model_id: str) -> Path:
        """The folder of the MLflow model."""


@dataclass(frozen=True)
class Place:
    """Client, experiment and parent run of a sweep."""

    client: MlflowClient
    experiment: str
    parent: str
    sweep: str


def log_winner(
    place: Place,
    run_id: str,
    row: str,
    metrics: Mapping[str, float],
    datasets: Mapping[str, str],
    files: Sequence[tuple[Path, str]],
    notes: Sequence[str],
    source: ModelSource | str,
) -> None:
    """Mark a trial's run as the winner of its row; may be interrupted and repeated.

    `files`: each with its folder among the run's artifacts. `source`: of the model, or why it is
    not stored. The tag `winner` is set last: a run that has it, has all.
    """
    from mlflow.entities import LoggedModelStatus  # late: see `mlflow_store`

    client = place.client
    run = client.get_run(run_id)
    if "winner" in run.data.tags:
        return  # sent before the sweep was resumed
    demote(place, row)
    client.log_inputs(run_id, inputs(datasets))
    model = stored(place, row, run, source)
    client.log_batch(run_id, metrics=tested(metrics, datasets, model, run.info.end_time))
    for path, where in files:
        client.log_artifact(run_id, str(path), where)
    if notes:
        client.set_tag(run_id, "notes", "; ".join(notes)[:MAX_PARAM])
    if model is not None:
        client.finalize_logged_model(model, LoggedModelStatus.READY)
    client.set_tag(run_id, "winner", row)


def stored(place: Place, row: str, run: Run, source: ModelSource | str) -> str | None:
    """Upload a winner's model, and describe in its run how it is loaded; None: it has none."""
    client, run_id = place.client, run.info.run_id
    try:
        if isinstance(source, str):
            raise NoModel(source)
        source.export()
    except NoModel as error:
        client.set_tag(run_id, NOT_STORED, str(error)[:MAX_PARAM])
        client.set_tag(run_id, NOTE, f"Its model is not stored here: {error}."[:MAX_NOTE])
        return None
    model = model_of(place, row, run)
    client.log_model_artifacts(model, str(source.package(run_id, model)))
    described = LOADED.format(model=model)
    client.set_logged_model_tags(model, {NOTE: described})
    client.set_tag(run_id, NOTE, described)
    return model


LOADED = """The merged model, which predicts the class of each row of a table:

    import mlflow
    mlflow.set_tracking_uri("…")  # this server, or sqlite:////…/mlflow.db
    model = mlflow.pyfunc.load_model("models:/{model}")
    model.predict(table, params={{"task": "…"}})

Its signature lists the table's columns. Its folder `data` is what `sweeps export` writes.
"""


def demote(place: Place, row: str) -> None:
    """Remove the mark from an earlier winner of an extended sweep."""
    where = f"tags.mlflow.parentRunId = '{place.parent}' and tags.winner = '{row}'"
    for run in place.client.search_runs([place.experiment], where):
        for output in run.outputs.model_outputs if run.outputs else []:
            place.client.delete_logged_model(output.model_id)
        place.client.delete_tag(run.info.run_id, "winner")


def model_of(place: Place, row: str, run: Run) -> str:
    """Id of a winner's logged model; it is created if missing."""
    from mlflow.entities import LoggedModelOutput  # late: see `mlflow_store`

    if run.outputs and run.outputs.model_outputs:
        linked: str = run.outputs.model_outputs[0].model_id
        return linked
    run_id = run.info.run_id
    found = place.client.search_logged_models(
        [place.experiment], f"source_run_id = '{run_id}' and name = '{row}'", max_results=1
    )
    if found:  # its answer was lost
        model = found[0]
    else:
        model = place.client.create_logged_model(
            place.experiment,
            name=row,
            source_run_id=run_id,
            tags={
                "sweep": place.sweep,
                "sweep_run": place.parent,
                "method": row,
                "mlflow.user": user(),
            },
            params=run.data.params,
            model_type="fusion",
        )
    place.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    model_id: str = model.model_id
    return model_id


def inputs(datasets: Mapping[str, str]) -> list[DatasetInput]:
    """Report rows of tasks as MLflow data sets."""
    from mlflow.entities import Dataset, DatasetInput, InputTag  # late: see `mlflow_store`

    tag = InputTag("mlflow.data.context", "report")
    return [
        DatasetInput(Dataset(task, digest, "local", f"{task} (report)"), [tag])
        for task, digest in datasets.items()
    ]


def tested(
    metrics: Mapping[str, float], datasets: Mapping[str, str], model_id: str | None, at: int
) -> list[Metric]:
    """Metrics of the report split, of the model if it is stored; those of a task name its data."""
    from mlflow.entities import Metric  # late: see `mlflow_store`

    batch = []
    for name, value in metrics.items():
        task = name.partition("/")[2]
        digest = datasets.get(task)
        batch.append(
            Metric(
                f"test/{name}", value, at, 0, model_id=model_id,
                dataset_name=task if digest else None, dataset_digest=digest,
            )
        )  # fmt: skip
    return batch
