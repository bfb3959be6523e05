"""Population-based training (PBT): members copy better ones and continue with other
hyper-parameters.

Jaderberg et al. 2017, arXiv:1711.09846, by Ray Tune's `PopulationBasedTraining`, synchronous: after
each interval all members wait for each other; then each of the worst quarter on select continues
from the weights of one of the best quarter, with that one's hyper-parameters, perturbed. Copies and
perturbations depend on scores and on the file's seed, never on time. Tune's own state is not
restored: a second run repeats the decisions from the scores that were kept
(`population_member.py`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

from fusion.errors import InputError
from sweeps.cluster import ray_connection
from sweeps.console.progress import Progress
from sweeps.spec.candidates import random_points
from sweeps.spec.method import MethodSpec
from sweeps.spec.search_space import Choice, Grid, Space
from sweeps.spec.trial_key import derive_seed, trial_key
from sweeps.train.fine_tuning_context import FineTuningContext
from sweeps.train.population.population_member import intervals_in, member_trial, population_folder
from sweeps.train.population.population_spec import perturbed
from sweeps.train.searcher import method
from sweeps.train.trial import labels_of
from sweeps.trials.tuner import fit

RESTARTS = 3
"""Restarts of a fine-tuning whose process died, in a population or not."""


class Population(PopulationBasedTraining):  # type: ignore[misc]  # ray is untyped
    """Tune's PBT scheduler, synchronous, with random draws from the file's seed.

    Tune draws from Python's global generator; it is seeded for each decision, then
    restored. All decisions of a round are made when its last result arrives.
    """

    def __init__(self, entry: MethodSpec, seed: int, task: str, stepwise: Sequence[str]) -> None:
        """`entry`: of the search; `seed`: of the file; `stepwise`: see `perturbed`."""
        self.seed, self.task, self.spaces = seed, task, perturbed(entry, stepwise)
        changes = {name: resampled(space) for name, space in self.spaces.items()}
        super().__init__(
            time_attr="round",
            metric="select",
            mode="max",
            perturbation_interval=1,
            hyperparam_mutations={"trial": {"params": changes}},
            custom_explore_fn=self.bounded,
            log_config=False,
            synch=True,
        )

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide about a member after an interval, and at the end of a round about all of them."""
        before = random.getstate()
        random.seed(derive_seed(self.seed, "population", self.task, result.get("round")))
        try:
            return str(super().on_trial_result(tune_controller, trial, result))
        finally:
            random.setstate(before)

    def bounded(self, config: dict[str, Any]) -> dict[str, Any]:
        """Keep changed values inside their search spaces."""
        params = config["trial"]["params"]
        for name, space in self.spaces.items():
            if not isinstance(space, Grid | Choice):
                params[name] = space.settle(params[name])
        return config


def resampled(space: Space) -> list[Any] | Callable[[], Any]:
    """A search space as Tune's mutations take it: a list of values, or a function that samples."""
    if isinstance(space, Grid | Choice):
        return list(space.values)
    return lambda: space.sample(random.Random(random.getrandbits(64)))


def run_population(context: FineTuningContext, task: str, progress: Progress) -> None:
    """Run one task's population, if a member has no result yet.

    Raises:
        KeyboardInterrupt: intervals that have ended are kept.
        InputError: a member whose process died again and again.
    """
    known = {result.key for result in context.usable(task)}
    trials = members(context, task)
    if not trials.keys() <= known:
        steps = steps_of(context, task)
        progress.start(f"intervals of {task}", intervals_in(steps) * len(trials))
        callback = PopulationRecorder(context, task, trials, known, progress)
        grow(context, task, trials, steps, callback)
        if callback.ended != trials.keys():  # Tune ends quietly on SIGUSR1
            raise KeyboardInterrupt
    for state in population_folder(context.out, task, context.contexts[task]).glob("*.pt"):
        state.unlink(missing_ok=True)


def members(context: FineTuningContext, task: str) -> dict[str, dict[str, Any]]:
    """Members in the order drawn: key -> `{task, params, trial_key, seed}`."""
    spec, found = context.spec, {}
    for params in random_points(spec.finetune, method(task), spec.seed):
        key = trial_key(method(task), params, context.contexts[task])
        about = {"task": task, "params": params, "trial_key": key}
        found[key] = {**about, "seed": derive_seed(spec.seed, key)}
    return found


def steps_of(context: FineTuningContext, task: str) -> int:
    """Steps of each member's run."""
    params: dict[str, Any] = {**context.defaults, **context.spec.finetune.params}
    rows = len(labels_of(context.data[task].rows["fit"]))
    return max(1, round(float(params["epochs"]) * rows / int(params["batch_size"])))


def grow(
    context: FineTuningContext,
    task: str,
    trials: Mapping[str, Any],
    steps: int,
    callback: PopulationRecorder,
) -> None:
    """Run Tune for a population."""
    found = ray_connection.of_cluster(context.nodes)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    trainable = tune.with_parameters(
        member_trial,
        folders=context.folders,
        data={task: context.data[task]},
        contexts=dict(context.contexts),
        out=context.out,
        device="cuda" if found.gpus else "cpu",
        members=dict(trials),
        steps=steps,
        names=tuple(perturbed(context.spec.finetune, context.training.stepwise)),
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1, "gpu": 1} if found.gpus else {"cpu": 1}),
        param_space={"trial": tune.grid_search([dict(trial) for trial in trials.values()])},
        tune_config=tune.TuneConfig(
            scheduler=Population(
                context.spec.finetune, context.spec.seed, task, context.training.stepwise
            ),
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["trial"]["trial_key"],
            trial_dirname_creator=lambda trial: trial.config["trial"]["trial_key"],
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


class PopulationRecorder(tune.Callback):  # type: ignore[misc]  # ray is untyped
    """Callback: updates the progress bars, limits disk use, reports failures."""

    def __init__(
        self,
        context: FineTuningContext,
        task: str,
        trials: Mapping[str, Any],
        known: set[str],
        progress: Progress,
    ) -> None:
        self.context, self.task, self.trials, self.known = context, task, trials, known
        self.progress, self.ended = progress, set[str]()
        self.faults: list[BaseException] = []

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune pickles its callbacks beside its state."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """After an interval of a member."""
        self.progress.advance(f"intervals of {self.task}", note=f"{result.get('select', 0):.4f}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """After a member's end or failure."""
        key, last = str(trial), trial.last_result
        try:
            self.ended.add(key)
            if last.get("reason"):
                self.progress.say(
                    f"failed: {self.task} {self.trials[key]['params']}: {last['reason']}"
                )
            self.context.settle(self.task)
        except BaseException as fault:
            self.faults.append(fault)
            raise
        if key not in self.known:
            self.progress.advance("experts", note=f"{self.task}: {last.get('select', 0):.4f}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """After a member's process died repeatedly: stop, since the others would wait forever."""
        reason = str(trial.get_error()).strip().splitlines()[-1]
        fault = InputError(
            f"finetune: the population of {self.task}: the process of {trial} died"
            f" {RESTARTS + 1} times ({reason}); the same command goes on from what has ended"
        )
        self.faults.append(fault)
        raise fault
