"""Population-based training: fine-tunings that copy the better ones and go on with other rates.

Jaderberg et al. 2017, arXiv:1711.09846, by Ray Tune's `PopulationBasedTraining`, in step: after
each leg all members wait for each other; then each of the worst quarter on select goes on from the
weights of one of the best quarter, under that one's hyper-parameters, changed. What is copied and
how values change depends on scores and on the file's seed, and never on time. Tune's own state is
not restored: a second run makes the same decisions again, of scores that are kept
(`population_member.py`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
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
from sweeps.train.fine_tuning_context import Yard
from sweeps.train.population_member import legs_in, member_trial, population_folder
from sweeps.train.population_spec import perturbed
from sweeps.train.searcher import method
from sweeps.train.trial import rows_of
from sweeps.trials.tuner import fit

RESTARTS = 3
"""How often a member goes on whose process died."""


class Population(PopulationBasedTraining):  # type: ignore[misc]  # ray is untyped
    """Tune's scheduler, in step, with draws of the file's seed.

    Tune draws from Python's global generator; it is seeded for each decision, and put back. All
    decisions of a round are made as its last result comes, whichever that is.
    """

    def __init__(self, entry: MethodSpec, seed: int, task: str) -> None:
        """`entry`: of the search; `seed`: of the file."""
        self.seed, self.task, self.spaces = seed, task, perturbed(entry)
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
        """What becomes of a member after a leg, and at a round's end of all of them."""
        before = random.getstate()
        random.seed(derive_seed(self.seed, "population", self.task, result.get("round")))
        try:
            return str(super().on_trial_result(tune_controller, trial, result))
        finally:
            random.setstate(before)

    def bounded(self, config: dict[str, Any]) -> dict[str, Any]:
        """Changed values stay inside their spaces."""
        params = config["trial"]["params"]
        for name, space in self.spaces.items():
            if not isinstance(space, Grid | Choice):
                params[name] = space.settle(params[name])
        return config


def resampled(space: Space) -> list[Any] | Callable[[], Any]:
    """A space as Tune's mutations take it: values to step along, or a draw."""
    if isinstance(space, Grid | Choice):
        return list(space.values)
    return lambda: space.sample(random.Random(random.getrandbits(64)))


def run_population(yard: Yard, task: str, progress: Progress) -> None:
    """One task's population, where a member has no result yet.

    Raises:
        KeyboardInterrupt: legs that have ended are kept.
        InputError: a member whose process died again and again.
    """
    known = {result.key for result in yard.usable(task)}
    trials = members(yard, task)
    if not trials.keys() <= known:
        steps = steps_of(yard, task)
        progress.start(f"legs of {task}", legs_in(steps) * len(trials))
        callback = Following(yard, task, trials, known, progress)
        grow(yard, task, trials, steps, callback)
        if callback.ended != trials.keys():  # Tune ends quietly on SIGUSR1
            raise KeyboardInterrupt
    for state in population_folder(yard.out, task, yard.contexts[task]).glob("*.pt"):
        state.unlink(missing_ok=True)


def members(yard: Yard, task: str) -> dict[str, dict[str, Any]]:
    """Key -> `{task, params, trial_key, seed}`, in the order that they are drawn in."""
    spec, found = yard.spec, {}
    for params in random_points(spec.finetune, method(task), spec.seed):
        key = trial_key(method(task), params, yard.contexts[task])
        about = {"task": task, "params": params, "trial_key": key}
        found[key] = {**about, "seed": derive_seed(spec.seed, key)}
    return found


def steps_of(yard: Yard, task: str) -> int:
    """Of each member's run."""
    params = {**yard.defaults, **yard.spec.finetune.params}
    images = len(rows_of(yard.data[task], "fit")[1])
    return max(1, round(float(params["epochs"]) * images / int(params["batch_size"])))


def grow(yard: Yard, task: str, trials: Mapping[str, Any], steps: int, callback: Following) -> None:
    """The Tune run of a population."""
    found = ray_connection.of_cluster(yard.nodes)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    trainable = tune.with_parameters(
        member_trial,
        folder=yard.base.folder,
        data={task: yard.data[task]},
        contexts=dict(yard.contexts),
        out=yard.out,
        device="cuda" if found.gpus else "cpu",
        members=dict(trials),
        steps=steps,
        names=tuple(perturbed(yard.spec.finetune)),
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1, "gpu": 1} if found.gpus else {"cpu": 1}),
        param_space={"trial": tune.grid_search([dict(trial) for trial in trials.values()])},
        tune_config=tune.TuneConfig(
            scheduler=Population(yard.spec.finetune, yard.spec.seed, task),
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["trial"]["trial_key"],
            trial_dirname_creator=lambda trial: trial.config["trial"]["trial_key"],
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(yard.out / "trained"),
            callbacks=[callback],
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
            verbose=0,
        ),
    )
    fit(tuner, callback.faults)


class Following(tune.Callback):  # type: ignore[misc]  # ray is untyped
    """As members report and end: moves the bars, bounds the disk, says what failed."""

    def __init__(
        self,
        yard: Yard,
        task: str,
        trials: Mapping[str, Any],
        known: set[str],
        progress: Progress,
    ) -> None:
        self.yard, self.task, self.trials, self.known = yard, task, trials, known
        self.progress, self.ended = progress, set[str]()
        self.faults: list[BaseException] = []

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune pickles its callbacks beside its state."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """One that ended a leg."""
        self.progress.advance(f"legs of {self.task}", note=f"{result.get('select', 0):.4f}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """One that ended, or that has failed."""
        key, last = str(trial), trial.last_result
        try:
            self.ended.add(key)
            if last.get("reason"):
                self.progress.say(
                    f"failed: {self.task} {self.trials[key]['params']}: {last['reason']}"
                )
            self.yard.settle(self.task)
        except BaseException as fault:
            self.faults.append(fault)
            raise
        if key not in self.known:
            self.progress.advance("experts", note=f"{self.task}: {last.get('select', 0):.4f}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """One whose process died again and again: the others would wait for it for ever."""
        reason = str(trial.get_error()).strip().splitlines()[-1]
        fault = InputError(
            f"finetune: the population of {self.task}: the process of {trial} died"
            f" {RESTARTS + 1} times ({reason}); the same command goes on from what has ended"
        )
        self.faults.append(fault)
        raise fault
