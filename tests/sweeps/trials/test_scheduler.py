"""ASHA for the methods that ask for it, and for no other."""

from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import TrialScheduler

from sweeps.spec.sweep import validate
from sweeps.trials.scheduler import Halving


@dataclass(eq=False)
class Trial:
    config: dict[str, Any]
    trial_id: str
    status: str = "RUNNING"


def halving(tiny_pool):
    entry = {"learning_rate": {"loguniform": [1e-4, 1e-2]}, "trials": 9, "scheduler": "asha"}
    methods = {"adamerging": entry, "task_arithmetic": {}}
    return Halving(validate(tiny_pool.spec(methods=methods), "s"))


def test_the_best_third_of_a_rung_goes_on(tiny_pool):
    scheduler = halving(tiny_pool)
    decisions = []
    for index in range(9):
        trial = Trial({"method": "adamerging"}, str(index))
        scheduler.on_trial_add(None, trial)
        result = {"rung": 1, "acc/mean": 0.9 - 0.1 * index, "training_iteration": 1}
        decisions.append(scheduler.on_trial_result(None, trial, result))
    assert decisions[0] == TrialScheduler.CONTINUE
    assert decisions[-1] == TrialScheduler.STOP
    assert decisions.count(TrialScheduler.STOP) >= 5


def test_other_methods_run_to_their_end(tiny_pool):
    scheduler = halving(tiny_pool)
    for index in range(9):
        trial = Trial({"method": "task_arithmetic"}, str(index))
        scheduler.on_trial_add(None, trial)
        result = {"acc/mean": -float(index), "training_iteration": 1}
        assert scheduler.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE
        scheduler.on_trial_complete(None, trial, result)
