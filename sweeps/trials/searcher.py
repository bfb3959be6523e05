"""One Tune searcher for a whole sweep: it takes turns between the methods.

Suggestions depend on the sweep file and on results, never on time. Random search draws from a seed.
TPE and CMA-ES suggest a batch; when all trials of the batch have finished, they receive the results
in the order of suggestion, and suggest the next batch. So a killed sweep that runs again, with its
finished trials as `known`, suggests exactly the missing trials.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from typing_extensions import TypedDict

from actors.files.documents import checked, parse_json, read_bytes
from actors.files.fingerprint import NOTHING, Fingerprint
from fusion.registry import METHODS
from sweeps.spec.candidates import grid_points, planned, raced_points, random_points
from sweeps.spec.method import MethodSpec
from sweeps.spec.search_space import Choice, LogUniform, Space, Uniform, fill
from sweeps.spec.sweep import SweepSpec
from sweeps.spec.trial_key import Context, derive_seed, races, trial_key

__all__ = ["BATCH", "MethodSearch", "planned", "trial_key"]

BATCH = 4
"""Trials that TPE and CMA-ES suggest at once. Another number makes other suggestions, so this
is one for all machines: more than 4 workers are kept busy by the other methods and grid points.
In the same way a raced candidate is compared with those that are at least as many places before it,
and waits for them: so its bar does not depend on time."""

Results = dict[str, float | None]
"""Trial key -> the metric; None: the trial failed."""

Suggestion = tuple[str, dict[str, Any], str]
"""Method, parameters, trial key."""


class Saved(TypedDict):
    """Content of the file of `MethodSearch.save`."""

    results: dict[str, float | None]
    running: dict[str, str]


class MethodSearch(Searcher):  # type: ignore[misc]  # ray is untyped
    """Suggest `{"method", "params", "trial_key", "seed"}` for every trial of a sweep.

    `save` writes results, not the state of samplers: `restore` starts over and replays the results,
    as a new run with `known` does.
    """

    _ahead: Suggestion | None
    """The next suggestion, where it was looked at already."""

    def __init__(
        self,
        spec: SweepSpec,
        context: Fingerprint | Context = NOTHING,
        known: Mapping[str, float | None] | None = None,
        *,
        batch: int = BATCH,
        metric: str | None = None,
        on_suggest: Callable[[str], object] | None = None,
    ) -> None:
        """A searcher without suggestions yet.

        Args:
            spec: The sweep.
            context: What else decides a trial's numbers; see `trial_key`.
            known: Results of finished trials, which are not suggested again; None for a failed one.
            batch: number of trials that TPE and CMA-ES suggest at once.
            metric: The metric's name in reported results, when it is not the spec's.
            on_suggest: called with the key of each suggested trial; not saved.
        """
        super().__init__(metric=metric or spec.metric, mode=spec.mode)
        self._spec, self._context, self._batch = spec, context, batch
        self._results: Results = {key: _finite(value) for key, value in (known or {}).items()}
        self._running: dict[str, str] = {}
        self._bars: dict[str, float | None] = {}
        """Trial key of a raced candidate -> the best value that it is compared with."""
        self._on_suggest = on_suggest
        self._start()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial; None: wait for results; FINISHED: there are no more."""
        found, self._ahead = self._ahead or self._next(), None
        if found is None:  # Tune does not ask again after FINISHED, and a trial may have to repeat
            return None if self._turns or self._running else str(Searcher.FINISHED)
        method, params, key = found
        self._running[trial_id] = key
        if self._on_suggest is not None:
            self._on_suggest(key)
        seed = derive_seed(self._spec.seed, key)
        given = {"method": method, "params": params, "trial_key": key, "seed": seed}
        racing = self._spec.racing
        if racing is None or not races(METHODS[method]):
            return given
        terms = {"metric": self._spec.metric, "bar": self._bars.get(key)}
        terms |= {"confidence": racing.confidence, "seed": derive_seed(self._spec.seed, "racing")}
        return given | {"race": terms}

    def left(self) -> bool:
        """Whether a trial is running or still to be suggested."""
        self._ahead = self._ahead or self._next()
        return self._ahead is not None or bool(self._turns) or bool(self._running)

    def repeat(self, config: Mapping[str, Any]) -> None:
        """Suggest a trial again, which ended without having run; its failure is forgotten.

        Args:
            config: as `suggest` gave it.
        """
        key = config["trial_key"]
        self._results.pop(key, None)
        self._repeats.append((config["method"], config["params"], key))

    def _next(self) -> Suggestion | None:
        """The next candidate; None: wait for results, or there are no more."""
        if self._repeats:
            return self._repeats.popleft()
        for _ in range(len(self._turns)):
            method, candidates = self._turns.popleft()
            for params in candidates:
                self._turns.append((method, candidates))
                if params is None:
                    break  # this one waits; the next method's turn
                return method, params, trial_key(method, params, self._context)
        return None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record a trial's result; without a finite number it counts as failed."""
        key = self._running.pop(trial_id, None)
        if key is not None:
            self._results[key] = None if error else _finite((result or {}).get(self.metric))

    def save(self, checkpoint_path: str) -> None:
        """Write results and running trials as JSON."""
        Path(checkpoint_path).write_text(
            json.dumps({"results": self._results, "running": self._running})
        )

    def restore(self, checkpoint_path: str) -> None:
        """Load a saved state: Tune itself restarts the trials that were running."""
        data = read_bytes(Path(checkpoint_path))
        state = checked(Saved, parse_json(data, checkpoint_path), checkpoint_path)
        self._results, self._running = state["results"], state["running"]
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_turns", "_ahead", "_repeats", "_on_suggest")
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._on_suggest = None
        self._start()

    def _start(self) -> None:
        """Start all methods anew; candidates that are known or running are skipped."""
        self._ahead = None
        self._repeats: deque[Suggestion] = deque()
        self._turns = deque(
            (method, self._fresh(method, candidates))
            for method, entry in self._spec.methods.items()
            for candidates in self._candidates(method, entry)
        )

    def _candidates(
        self, method: str, entry: MethodSpec
    ) -> Iterator[Iterator[dict[str, Any] | None]]:
        """Candidates of a method in one stream, or in one for each grid point if guided."""
        unguided = entry.searcher == "random" or not entry.sampled
        if unguided and self._spec.racing and races(METHODS[method]):
            yield self._raced(method, entry)
            return
        if unguided:
            yield random_points(entry, method, self._spec.seed)
            return
        for point, params in grid_points(entry):
            seed = derive_seed(self._spec.seed, entry.searcher, method, point)
            yield self._guided(method, entry.model_copy(update={"params": params}), seed)

    def _fresh(
        self, method: str, candidates: Iterator[dict[str, Any] | None]
    ) -> Iterator[dict[str, Any] | None]:
        """Candidates that are neither known nor running."""
        for params in candidates:
            if params is None:
                yield None
                continue
            key = trial_key(method, params, self._context)
            if key not in self._results and key not in self._running.values():
                yield params

    def _raced(self, method: str, entry: MethodSpec) -> Iterator[dict[str, Any] | None]:
        """Candidates in the order of `raced_points`; None: wait for the results of earlier ones."""
        keys: list[str] = []
        for params in raced_points(entry, method, self._spec.seed):
            key = trial_key(method, params, self._context)
            if key in keys:
                continue
            keys.append(key)
            earlier = keys[: -self._batch]
            while not all(each in self._results for each in earlier):
                yield None
            known = [self._results[each] for each in earlier]
            self._bars[key] = max((value for value in known if value is not None), default=None)
            yield params

    def _guided(self, method: str, entry: MethodSpec, seed: int) -> Iterator[dict[str, Any] | None]:
        """Candidates of an Optuna sampler, batch by batch; None: wait for results."""
        search = _optuna_search(entry, seed, self.metric, self.mode)
        trials = entry.trials or 1
        for start in range(0, trials, self._batch):
            names = [str(number) for number in range(start, min(start + self._batch, trials))]
            asked = {name: _settled(entry, search.suggest(name)) for name in names}
            yield from asked.values()
            keys = {name: trial_key(method, asked[name], self._context) for name in names}
            if names[-1] == str(trials - 1):
                return  # no batch follows the last one, so its results are not awaited
            while not all(key in self._results for key in keys.values()):
                yield None
            for name, key in keys.items():
                value = self._results[key]
                result = None if value is None else {self.metric: value}
                search.on_trial_complete(name, result, error=value is None)


def _optuna_search(entry: MethodSpec, seed: int, metric: str, mode: str) -> OptunaSearch:
    # Optuna would announce a study for each grid point.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {_label(at): _distribution(space) for at, space in enumerate(entry.sampled.values())}
    if entry.searcher == "cmaes":
        sampler = optuna.samplers.CmaEsSampler(seed=seed)
        return OptunaSearch(space, metric=metric, mode=mode, sampler=sampler)
    return OptunaSearch(space, metric=metric, mode=mode, seed=seed)


def _distribution(space: Space) -> CategoricalDistribution | FloatDistribution:
    if isinstance(space, Choice):
        # Positions, since Optuna's own categories may not be lists or mappings.
        return CategoricalDistribution(tuple(range(len(space.values))))
    if isinstance(space, LogUniform):
        return FloatDistribution(space.low, space.high, log=True)
    assert isinstance(space, Uniform)
    return FloatDistribution(space.low, space.high)


def _settled(entry: MethodSpec, suggested: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of an Optuna suggestion."""
    chosen = {}
    for at, (path, space) in enumerate(entry.sampled.items()):
        value = suggested[_label(at)]
        chosen[path] = space.values[value] if isinstance(space, Choice) else space.settle(value)
    filled: dict[str, Any] = fill(entry.params, chosen)
    return filled


def _label(at: int) -> str:
    """Label of a search space for Optuna, which sorts by name; ours are in order already, and paths
    would need escaping."""
    return f"{at:04d}"


def _finite(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
