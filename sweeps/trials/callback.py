"""Finished trials as ledger entries, and how the driver hears of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from ray import tune

from actors.experts.evaluation import Evaluation
from fusion.registry import METHODS
from sweeps.console import redact
from sweeps.results.ledger import Entry


def finished(trial_key: str, method: str, evaluation: Evaluation, started: str) -> Entry:
    """The ledger entry of a reference that was evaluated on the select split."""
    return complete(
        {
            "trial_key": trial_key,
            "method": method,
            "params": {},
            "status": "done",
            "split": "select",
            **evaluation.plain(),
            "started": started,
            "ended": datetime.now(UTC).isoformat(),
        }
    )


def died(config: Mapping[str, Any], reason: str = "the trial's process died") -> Entry:
    """The ledger entry of a trial that could not say itself why it failed."""
    now = datetime.now(UTC).isoformat()
    return complete(
        {**config, "status": "failed", "split": "select", "started": now, "ended": now}
        | {"error": reason}
    )


def complete(fields: Mapping[str, Any]) -> Entry:
    """An entry from what a trial reported; the method's kind is the table's to say."""
    row = METHODS.get(fields["method"])
    error = fields.get("error")
    fields = {**fields, "error": None if error is None else redact.text(error)}
    return Entry(**fields, kind=row.kind if row is not None else "reference")


class Recorder(tune.Callback):  # type: ignore[misc]  # ray is untyped
    """Hands each finished trial to `record`, on the driver, as soon as Tune hears of it."""

    def __init__(self, record: Callable[[Entry], None]) -> None:
        self.record = record
        self.heard: set[str] = set()
        self.partial: dict[str, dict[str, Any]] = {}
        """Trial key -> the last result on the way of a trial that learns."""

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune pickles its callbacks beside its state, and ours hold a live connection."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """A trial reports when it is done or has failed; one that learns, on the way as well."""
        if "entry" not in result:
            return
        entry = result["entry"]
        if result.get("final", True):
            self.heard.add(entry["trial_key"])
            self.record(complete(entry))
        else:
            self.partial[entry["trial_key"]] = entry

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial that a scheduler stopped: its last result on the way stands."""
        key = trial.config["trial_key"]
        if key in self.partial and key not in self.heard:
            self.heard.add(key)
            self.record(complete(self.partial.pop(key)))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial whose process died without a word."""
        if trial.config["trial_key"] not in self.heard:
            self.record(died(trial.config))
