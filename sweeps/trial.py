"""One trial: a thin client that asks the fleet to merge and evaluate, and reports floats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from ray import tune

from actors.experts import Evaluation, Experts, Recipe
from fusion.registry import METHODS
from sweeps.ledger import Entry

TRIAL_MEMORY = 200 * 2**20
"""What a trial's process holds. It computes nothing: no CPU is asked for, so that trials queue at
the fleet and not for cores that the replicas occupy."""


def run_trial(config: Mapping[str, Any], experts: Experts) -> None:
    """The trainable: one suggestion of `MethodSearch`, evaluated on the select split."""
    started = datetime.now(UTC).isoformat()
    try:
        evaluation = experts.evaluate(Recipe(config["method"], config["params"]), "select")
    except Exception as error:
        reason = str(error).strip().splitlines() or [""]
        entry = failed(config, f"{type(error).__name__}: {reason[-1]}"[:1000], started)
        tune.report({"entry": vars(entry)})
        raise
    entry = finished(config["trial_key"], config, evaluation, started, config["seed"])
    tune.report({**entry.metrics, "entry": vars(entry)})


def finished(
    trial_key: str,
    what: Mapping[str, Any],
    evaluation: Evaluation,
    started: str,
    seed: int = 0,
) -> Entry:
    """The ledger entry of a successful evaluation on the select split."""
    return Entry(
        trial_key=trial_key,
        method=what["method"],
        kind=kind_of(what["method"]),
        params=what["params"],
        status="done",
        split="select",
        metrics=evaluation.metrics(),
        n={task: len(score.correct) for task, score in evaluation.scores.items()},
        trial_s=evaluation.seconds,
        peak_bytes=evaluation.peak_bytes,
        started=started,
        ended=datetime.now(UTC).isoformat(),
        seed=seed,
    )


def failed(config: Mapping[str, Any], error: str, started: str | None = None) -> Entry:
    """The ledger entry of a trial that raised."""
    now = datetime.now(UTC).isoformat()
    return Entry(
        trial_key=config["trial_key"],
        method=config["method"],
        kind=kind_of(config["method"]),
        params=config["params"],
        status="failed",
        split="select",
        started=started or now,
        ended=now,
        seed=config["seed"],
        error=error,
    )


def kind_of(method: str) -> str:
    """`static`, `logits`, … or `reference`."""
    row = METHODS.get(method)
    return row.kind if row is not None else "reference"


class Recorder(tune.Callback):  # type: ignore[misc]  # ray is untyped
    """Hands each finished trial to `record`, on the driver, as soon as Tune hears of it."""

    def __init__(self, record: Callable[[Entry], None]) -> None:
        self.record = record
        self.heard: set[str] = set()

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune pickles its callbacks beside its state, and ours hold a live connection."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """A trial reports once, when it is done or has failed."""
        if "entry" in result:
            self.heard.add(result["entry"]["trial_key"])
            self.record(Entry(**result["entry"]))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial that could not even say why: its process died."""
        if trial.config["trial_key"] not in self.heard:
            self.record(failed(trial.config, "the trial's process died"))
