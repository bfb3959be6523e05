"""Run fine-tuning trials through Tune, from the driver."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ray import tune

from sweeps.cluster import ray_connection
from sweeps.console.progress import Progress
from sweeps.spec.method import MethodSpec
from sweeps.train.fine_tuning_context import FineTuningContext
from sweeps.train.ingredients import (
    Trained,
    write_result,
)
from sweeps.train.population.population import RESTARTS, run_population
from sweeps.train.searcher import TaskSearch, as_sweep, count, method
from sweeps.train.trial import fine_tune_trial, seed_of
from sweeps.trials.scheduler import Halving
from sweeps.trials.searcher import MethodSearch
from sweeps.trials.tuner import fit


def run_trials(context: FineTuningContext, progress: Progress) -> None:
    """Fine-tune what has no result yet, one CPU (or GPU) for each trial.

    Raises:
        KeyboardInterrupt: finished results are kept; the rest continues from its last state.
    """
    spec, entry = context.spec, context.spec.finetune
    known = {task: context.usable(task) for task in context.data}
    progress.start("experts", sum(count(entry, task, spec.seed) for task in context.data))
    progress.advance("experts", sum(map(len, known.values())))
    if entry.scheduler == "pbt":
        for task in context.data:
            run_population(context, task, progress)
            context.settle(task)
        return
    search = TaskSearch(
        {
            task: MethodSearch(
                as_sweep({method(task): entry}, spec.seed),
                context.contexts[task],
                {result.key: result.select for result in results},
            )
            for task, results in known.items()
        }
    )
    if search.left():
        tuned(context, search, known, progress)
    for task in context.data:
        context.settle(task)


def tuned(
    context: FineTuningContext,
    search: TaskSearch,
    known: Mapping[str, Sequence[Trained]],
    progress: Progress,
) -> None:
    """Run Tune; a second run continues from results and states in the folder, not from Tune's."""
    found = ray_connection.of_cluster(context.nodes)
    resources = {"cpu": 1, "gpu": 1} if found.gpus else {"cpu": 1}
    # Failed trials are ours to show; Tune would print each with its traceback.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    trainable = tune.with_parameters(
        fine_tune_trial,
        folders=context.folders,
        data=dict(context.data),
        contexts=dict(context.contexts),
        out=context.out,
        device="cuda" if found.gpus else "cpu",
        halved=context.spec.finetune.scheduler == "asha",
    )
    callback = TrialRecorder(context, progress)
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler(context.spec.finetune, known, context.spec.seed),
            num_samples=-1,
            max_concurrent_trials=max(1, found.gpus or found.cpus),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.config["trial_key"],
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(context.out / "trained"),
            callbacks=[callback],
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
            verbose=0,
        ),
    )
    fit(tuner, callback.faults)
    if search.left():  # Tune ends quietly on SIGUSR1
        raise KeyboardInterrupt


def scheduler(entry: MethodSpec, known: Mapping[str, Sequence[Trained]], seed: int) -> Halving:
    """The ASHA scheduler, if configured, with the results reported before an interruption."""
    halving = Halving(as_sweep({method(task): entry for task in known}, seed))
    for task, results in known.items():
        for result in results:
            trial = SimpleNamespace(trial_id=result.key, config={"method": method(task)})
            halving.on_trial_add(None, trial)
            for rung, select in result.rungs.items():
                halving.on_trial_result(None, trial, {"rung": int(rung), "select": select})
    return halving


class TrialRecorder(tune.Callback):  # type: ignore[misc]  # ray is untyped
    """Callback: records stopped trials, limits disk use, updates the progress bar."""

    def __init__(self, context: FineTuningContext, progress: Progress) -> None:
        self.context, self.progress = context, progress
        self.faults: list[BaseException] = []

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune pickles its callbacks beside its state."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """After a trial ended, failed or was stopped."""
        what, last = trial.config, trial.last_result
        if last.get("reason"):
            self.failed(what, last["reason"])
            return
        try:
            if not last.get("final"):
                write_result(self.context.out, stopped(what, last, self.context))
            self.context.settle(what["task"])
        except BaseException as fault:
            self.faults.append(fault)
            raise
        self.progress.advance("experts", note=f"{what['task']}: {last.get('select', 0):.4f}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """After a trial whose process died more than `RESTARTS` times."""
        self.failed(trial.config, str(trial.get_error()).strip().splitlines()[-1])

    def failed(self, what: Mapping[str, Any], reason: str) -> None:
        """Print why a trial failed."""
        self.progress.say(f"failed: {what['task']} {what['params']}: {reason}")
        self.progress.advance("experts")


def stopped(
    what: Mapping[str, Any], last: Mapping[str, Any], context: FineTuningContext
) -> Trained:
    """The result of a trial that a scheduler stopped."""
    return Trained(
        what["trial_key"],
        what["task"],
        what["params"],
        last["select"],
        None,
        0.0,
        seed_of(what),
        context.contexts[what["task"]],
        last["rung"],
        last["rungs"],
    )
