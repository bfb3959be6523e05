"""Fields of a trial's MLflow run: name, parameters, tags and metrics."""

from __future__ import annotations

import getpass
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sweeps.console import redact
from sweeps.report.charts.hyperparameter_profiles import flat
from sweeps.report.charts.learning_curves import asked_steps
from sweeps.results.ledger import Entry

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param

MAX_PARAM = 6000
"""Characters MLflow takes in a parameter's value."""

MAX_PARAMS = 100
"""Parameters MLflow takes in a call."""


def state_of(entry: Entry) -> str:
    """MLflow's status of a trial; one that was stopped in a race is `KILLED`."""
    return {"done": "FINISHED", "stopped": "KILLED"}.get(entry.status, "FAILED")


def trial_tags(entry: Entry, parent: str, sweep: str) -> dict[str, str]:
    """Tags that a trial's run is found by."""
    return {
        "mlflow.parentRunId": parent,
        "mlflow.user": user(),
        "trial_key": entry.trial_key,
        "sweep": sweep,
        "method": entry.method,
        "kind": entry.kind,
        "split": entry.split,
        "role": "trial",
    }


def user() -> str:
    """User who runs the sweep; a container may have no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


LONGEST_NAME = 60
"""Characters of a run's name, beside the method's."""


def run_name(entry: Entry) -> str:
    """Name of a run: `task_arithmetic scale=0.3`; of many parameters the first ones, and how many
    more there are: `weighted_average weights.cars=0.25 +7`."""
    words = [
        f"{name}={f'{value:.4g}' if isinstance(value, float) else str(value)[:24]}"
        for name, value in flat(entry.params).items()
    ]
    shown = len(words)
    while shown and len(" ".join(words[:shown])) > LONGEST_NAME:
        shown -= 1
    left = [f"+{len(words) - shown}"] if shown < len(words) else []
    return " ".join([entry.method, *words[:shown], *left])


def params_of(entry: Entry) -> list[Param]:
    """Its method, and parameters, nested ones with dotted names; of a learner also its steps."""
    from mlflow.entities import Param  # late: see `mlflow_store`

    params = {name: str(value)[:MAX_PARAM] for name, value in flat(entry.params).items()}
    if entry.steps:
        params = {"steps": str(asked_steps(entry)), **params}
    params = {"method": entry.method, **params}
    return [Param(name, value) for name, value in list(params.items())[:MAX_PARAMS]]


def metrics_of(entry: Entry) -> list[Metric]:
    """Scores, cost and curve; always the same for a trial, so that they can be sent again.

    Scores are those of the select split: each as `val/…`, beside `test/…` of a winner, and by its
    name alone, as before there was a `val/`.
    """
    from mlflow.entities import Metric  # late: see `mlflow_store`

    now = millis(entry.started, entry.trial_s)
    values = {
        **entry.metrics,
        **{f"val/{name}": each for name, each in entry.metrics.items() if is_score(name)},
        "trial_s": entry.trial_s,
        "peak_bytes": float(entry.peak_bytes),
        **cost(entry),
    }
    if entry.stopped is not None:
        values |= {
            "stopped/rows": float(entry.stopped.rows),
            "stopped/at_most": entry.stopped.at_most,
        }
    if entry.steps:
        values["steps"] = float(
            entry.steps
        )  # steps taken; the parameter holds the configured number
    metrics = [Metric(name, value, now, 0) for name, value in sorted(values.items())]
    return metrics + curve_metrics(entry)


def is_score(name: str) -> bool:
    """Whether a metric of a trial is measured on rows; others are what a learner has chosen."""
    return not name.startswith("chosen/")


def spec_params(spec: Mapping[str, Any]) -> dict[str, str]:
    """Parameters of a sweep's run: the fields of its file, with dotted names."""
    fields = {name: value for name, value in spec.items() if name != "mlflow"}
    fields = {name: value for name, value in fields.items() if name != "references" or value}
    if "pool" in fields and fields["pool"].get("platform") == "huggingface":
        fields["pool"] = {k: v for k, v in fields["pool"].items() if k != "platform"}
    return {
        name: redact.text(str(value))[:MAX_PARAM]
        for name, value in flat(fields).items()
        if value is not None
    }


def cost(entry: Entry) -> dict[str, float]:
    """Cost of a trial, with names that MLflow's page shows as system metrics."""
    used = {"system/peak_memory_megabytes": entry.peak_bytes / 1e6}
    if entry.busy_s:
        used["system/busy_seconds"] = entry.busy_s
    if entry.gpu_s:
        used["system/gpu_seconds"] = entry.gpu_s
    return used


def totals(entries: Iterable[Entry]) -> dict[str, float]:
    """Total cost of all trials, the largest peak memory, and the number of failed ones."""
    each = [vars(entry) | {"curve": ()} for entry in entries]  # curves are long
    sums = {name: sum(entry[name] for entry in each) for name in ("trial_s", "busy_s", "gpu_s")}
    return {
        "trials": float(len(each)),
        "trials_failed": float(sum(entry["status"] == "failed" for entry in each)),
        "trials_stopped": float(sum(entry["status"] == "stopped" for entry in each)),
        **{name: float(value) for name, value in sums.items()},
        "peak_bytes": float(max((entry["peak_bytes"] for entry in each), default=0)),
    }


def curve_metrics(entry: Entry) -> list[Metric]:
    """Losses and coding range of a learning trial, at their steps.

    Its time is spread evenly over its steps: MLflow's page draws against time as readily.
    """
    from mlflow.entities import Metric  # late: see `mlflow_store`

    last = max((point["step"] for point in entry.curve), default=1) or 1
    return [
        Metric(
            name,
            value,
            millis(entry.started, entry.trial_s * point["step"] / last),
            int(point["step"]),
        )
        for point in entry.curve
        for name, value in point.items()
        if name != "step"
    ]


def millis(started: str, seconds: float = 0.0) -> int:
    """Epoch milliseconds of an ISO time, plus seconds."""
    return int((datetime.fromisoformat(started).timestamp() + seconds) * 1000)
