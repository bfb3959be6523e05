"""Log a method's winner in MLflow: report metrics, data sets, recipe, logged model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Run,
)

from sweeps.tracking.run_fields import MAX_PARAM


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
) -> None:
    """Mark a trial's run as the winner of its row; may be interrupted and repeated.

    `files`: each with its folder among the run's artifacts. The tag `winner` is set last: a run
    that has it, has all.
    """
    client = place.client
    run = client.get_run(run_id)
    if "winner" in run.data.tags:
        return  # sent before the sweep was resumed
    demote(place, row)
    client.log_inputs(run_id, inputs(datasets))
    model = model_of(place, row, run)
    client.log_batch(run_id, metrics=tested(metrics, datasets, model, run.info.end_time))
    for path, where in files:
        client.log_artifact(run_id, str(path), where)
    if notes:
        client.set_tag(run_id, "notes", "; ".join(notes)[:MAX_PARAM])
    client.finalize_logged_model(model, LoggedModelStatus.READY)
    client.set_tag(run_id, "winner", row)


def demote(place: Place, row: str) -> None:
    """Remove the mark from an earlier winner of an extended sweep."""
    where = f"tags.mlflow.parentRunId = '{place.parent}' and tags.winner = '{row}'"
    for run in place.client.search_runs([place.experiment], where):
        for output in run.outputs.model_outputs if run.outputs else []:
            place.client.delete_logged_model(output.model_id)
        place.client.delete_tag(run.info.run_id, "winner")


def model_of(place: Place, row: str, run: Run) -> str:
    """Id of a winner's logged model; it is created if missing."""
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
            tags={"sweep": place.sweep, "sweep_run": place.parent, "method": row},
            params=run.data.params,
            model_type="fusion",
        )
    place.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    model_id: str = model.model_id
    return model_id


def inputs(datasets: Mapping[str, str]) -> list[DatasetInput]:
    """Report rows of tasks as MLflow data sets."""
    tag = InputTag("mlflow.data.context", "report")
    return [
        DatasetInput(Dataset(task, digest, "local", f"{task} (report)"), [tag])
        for task, digest in datasets.items()
    ]


def tested(
    metrics: Mapping[str, float], datasets: Mapping[str, str], model_id: str, at: int
) -> list[Metric]:
    """Log metrics of the report split for a model, and those of one task for its data set."""
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
