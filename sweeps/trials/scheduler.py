"""Early stopping (ASHA) for methods that ask for it; trials of other methods run to their end."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from sweeps.spec.sweep import SweepSpec


class Halving(FIFOScheduler):  # type: ignore[misc]  # ray is untyped
    """Asynchronous successive halving (ASHA), separately for each method.

    A trial reports on rungs 1, 3 and 9 (after 1/9, 1/3 and all of its steps); on each but the last
    the best third continues.
    """

    def __init__(self, spec: SweepSpec) -> None:
        super().__init__()
        self.each = {
            name: AsyncHyperBandScheduler(
                time_attr="rung",
                metric=spec.metric,
                mode=spec.mode,
                max_t=9,
                grace_period=1,
                reduction_factor=3,
            )
            for name, entry in spec.methods.items()
            if entry.scheduler == "asha"
        }

    def of(self, trial: Any) -> Any:
        """The ASHA bracket of a trial's method; None: it has none."""
        return self.each.get(trial.config["method"])

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Add a trial to its method's lowest rung."""
        if own := self.of(trial):
            own.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE, or STOP for a trial that is not in the best third of its rung."""
        if (own := self.of(trial)) and "rung" in result:
            return str(own.on_trial_result(tune_controller, trial, result))
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """After a trial ended without being stopped."""
        if (own := self.of(trial)) and "rung" in result:
            own.on_trial_complete(tune_controller, trial, result)
