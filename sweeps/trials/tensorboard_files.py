"""TensorBoard's event files of trials, written by Tune's logger: each metric once."""

from __future__ import annotations

from typing import Any

from ray.tune.logger import TBXLoggerCallback


class EventFiles(TBXLoggerCallback):  # type: ignore[misc]  # ray is untyped
    """Tune's logger without `entry`: its metrics are reported beside it, under their own names."""

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """Write one report of a trial."""
        shown = {name: value for name, value in result.items() if name != "entry"}
        super().log_trial_result(iteration, trial, shown)
