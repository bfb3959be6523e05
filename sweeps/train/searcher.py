"""Searcher of `sweeps train`: one search for each task, in turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from ray.tune.search import Searcher

from actors.files.fingerprint import Fingerprint
from sweeps.spec.candidates import planned_trials, random_points
from sweeps.spec.method import MethodSpec
from sweeps.spec.search_space import Choice, Grid, Space
from sweeps.spec.sweep import SweepSpec
from sweeps.spec.trial_key import canonical, trial_key
from sweeps.train.ingredients import Trained
from sweeps.trials.searcher import MethodSearch


def as_sweep(entries: Mapping[str, MethodSpec], seed: int) -> SweepSpec:
    """These entries in the form of a sweep file, for `MethodSearch` and `Halving`."""
    return SweepSpec.model_construct(methods=entries, tasks={}, metric="select", seed=seed)


def method(task: str) -> str:
    """Name of a task's fine-tuning in keys and among Tune's trials."""
    return f"finetune {task}"


def meant(
    entry: MethodSpec, task: str, seed: int, context: Fingerprint, results: Iterable[Trained]
) -> list[Trained]:
    """Results that a search includes; in the order of its trials, if that is known beforehand.

    Suggestions of TPE and CMA-ES are not known beforehand: for those, every result of the same data
    and base whose parameters the entry allows is included.
    """
    by_key = {result.key: result for result in results}
    if not guided(entry):
        keys = [
            trial_key(method(task), params, context)
            for params in random_points(entry, method(task), seed)
        ]
        return [by_key[key] for key in dict.fromkeys(keys) if key in by_key]
    return [
        result
        for result in by_key.values()
        if result.context == context and allows(entry, result.params)
    ]


def guided(entry: MethodSpec) -> bool:
    """Whether the next candidates depend on results."""
    return entry.searcher != "random" and bool(entry.sampled)


def count(entry: MethodSpec, task: str, seed: int) -> int:
    """Maximum number of trials of an entry."""
    if guided(entry):
        return planned_trials(entry)
    points = random_points(entry, method(task), seed)
    return len({canonical(params) for params in points})


def allows(entry: MethodSpec, params: Mapping[str, Any]) -> bool:
    """Whether parameters could be a trial of an entry."""
    return params.keys() == entry.params.keys() and all(
        within(given, params[name]) for name, given in entry.params.items()
    )


def within(given: Any, value: Any) -> bool:
    """Whether a value equals the fixed one, or is in a search space; in mappings each field."""
    if isinstance(given, Mapping) and isinstance(value, Mapping):
        return given.keys() == value.keys() and all(within(given[k], value[k]) for k in given)
    if not isinstance(given, Space):
        return canonical(given) == canonical(value)
    if isinstance(given, Grid | Choice):
        return canonical(value) in map(canonical, given.values)
    return bool(given.low <= value <= given.high)


class TaskSearch(Searcher):  # type: ignore[misc]  # ray is untyped
    """Suggest `{"task", "method", "params", "trial_key", "seed"}`, taking turns between tasks.

    Each task has its own `MethodSearch`, because keys depend on the task's data.
    """

    def __init__(self, searches: Mapping[str, MethodSearch]) -> None:
        """`searches`: task -> its search."""
        super().__init__(metric="select", mode="max")
        self.searches = dict(searches)
        self.turns = deque(self.searches)
        self.owner: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial; None: wait for results; FINISHED: there are no more."""
        waiting = False
        for _ in range(len(self.turns)):
            task = self.turns.popleft()
            found = self.searches[task].suggest(trial_id)
            if found == Searcher.FINISHED:
                continue
            self.turns.append(task)
            if isinstance(found, dict):
                self.owner[trial_id] = task
                return {**found, "task": task}
            waiting = True
        return None if waiting else str(Searcher.FINISHED)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Pass a result to the task's search."""
        if task := self.owner.pop(trial_id, None):
            self.searches[task].on_trial_complete(trial_id, result, error)

    def left(self) -> bool:
        """Whether a trial is running or still to be suggested."""
        return any(search.left() for search in self.searches.values())

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a second run reads the results of training."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was saved."""

    def __getstate__(self) -> dict[str, Any]:
        return {}
