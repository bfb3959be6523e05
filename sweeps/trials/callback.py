"""Tune callback: turns finished trials into ledger entries, on the driver."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from ray import tune

from actors.experts.evaluation import Evaluation
from fusion.registry import METHODS
from sweeps.console import redact
from sweeps.results.ledger import Entry, Stopped


def finished(trial_key: str, method: str, evaluation: Evaluation, started: str) -> Entry:
    """Ledger entry of a reference that was evaluated on the select split."""
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
    """Ledger entry of a trial whose process died."""
    now = datetime.now(UTC).isoformat()
    return complete(
        {**config, "status": "failed", "split": "select", "started": now, "ended": now}
        | {"error": reason}
    )


def complete(fields: Mapping[str, Any]) -> Entry:
    """Build an entry from what a trial reported; the registry adds the method's kind."""
    row = METHODS.get(fields["method"])
    error = fields.get("error")
    fields = {name: value for name, value in fields.items() if name != "race"}
    fields |= {"error": None if error is None else redact.text(error)}
    if (stopped := fields.get("stopped")) is not None:
        fields["stopped"] = Stopped(**stopped)
    return Entry(**fields, kind=row.kind if row is not None else "reference")


RESTARTS = 3
"""How often a trial runs again whose process died: with a node, say, or for want of memory."""


class Recorder(tune.Callback):  # type: ignore[misc]  # ray is untyped
    """Pass each finished trial to `record`, as soon as Tune reports it."""

    def __init__(
        self, record: Callable[[Entry], None], repeat: Callable[[Mapping[str, Any]], None]
    ) -> None:
        """A recorder that has seen nothing.

        Args:
            record: gets the entry of each finished trial.
            repeat: gets the configuration of a trial to be suggested again.
        """
        self.record, self.repeat = record, repeat
        self.repeats: Counter[str] = Counter()
        """Trial key -> how often it was suggested again."""
        self.heard: set[str] = set()
        self.partial: dict[str, dict[str, Any]] = {}
        """Trial key -> the last result on the way of a trial that learns."""

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune pickles its callbacks beside its state, and ours hold a live connection."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """After a report: at the end of a trial; of a learning trial, also before."""
        if "entry" not in result:
            return
        entry = result["entry"]
        if result.get("final", True):
            self.heard.add(entry["trial_key"])
            self.record(complete(entry))
        else:
            self.partial[entry["trial_key"]] = entry

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """After a scheduler stopped a trial: its last intermediate result counts."""
        key = trial.config["trial_key"]
        if key in self.partial and key not in self.heard:
            self.heard.add(key)
            self.record(complete(self.partial.pop(key)))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """After a trial's process died, and Tune does not start it again.

        Tune starts a running trial again `RESTARTS` times, but never one whose process died while
        it started, with its node, say: such a trial is suggested again.
        """
        key = trial.config["trial_key"]
        if key in self.heard:
            return
        if trial.num_failures <= RESTARTS and self.repeats[key] < RESTARTS:
            self.repeats[key] += 1
            self.repeat(trial.config)
        else:
            self.record(died(trial.config))
