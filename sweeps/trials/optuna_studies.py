"""Optuna storage file of a sweep's trials: history, importance and slices in optuna-dashboard.

A copy of the ledger that nothing reads back. One study a method that has several trials, named
`<sweep>/<method>`; its parameters are those that differ between trials, nested ones with dotted
names. A single trial has no history, importance or slice.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from actors.files.atomic import replacing
from sweeps.report.charts.hyperparameter_profiles import flat
from sweeps.results.ledger import Entry
from sweeps.spec.search_space import LogUniform
from sweeps.spec.sweep import SweepSpec

FILE = "optuna.journal"
"""Name in a sweep's folder; `optuna-dashboard FILE` shows it."""


def write_studies(entries: Iterable[Entry], spec: SweepSpec, path: Path) -> None:
    """Write the trials of all methods with several as Optuna studies into one file.

    The file is replaced; it is removed where no method has several trials.

    Args:
        entries: trials of the ledger.
        spec: the sweep, whose metric is the value of a trial.
        path: the file.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.method, []).append(entry)
    groups = {method: found for method, found in groups.items() if len(found) > 1}
    if not groups:
        path.unlink(missing_ok=True)
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with replacing(path) as part:
        storage = JournalStorage(JournalFileBackend(str(part)))
        for method, found in groups.items():
            study = optuna.create_study(
                storage=storage,
                study_name=f"{spec.name}/{method}",
                direction="minimize" if spec.mode == "min" else "maximize",
            )
            with warnings.catch_warnings():  # "experimental": the name of an axis
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names([spec.metric])
            study.add_trials(trials_of(found, spec))


ENDED = {"stopped": TrialState.PRUNED, "failed": TrialState.FAIL, "done": TrialState.FAIL}
"""Optuna's state of a trial without a value."""


def trials_of(entries: Iterable[Entry], spec: SweepSpec) -> list[FrozenTrial]:
    """Trials of one method, in the order in which they started."""
    ordered = sorted(entries, key=lambda entry: (entry.started, entry.trial_key))
    params = [flat(entry.params) for entry in ordered]
    method = spec.methods.get(ordered[0].method)
    spaces = {} if method is None else method.sampled
    logs = {
        ".".join(map(str, path)) for path, space in spaces.items() if isinstance(space, LogUniform)
    }
    kinds = distributions(params, logs)
    found = []
    for entry, given in zip(ordered, params, strict=True):
        value = entry.metrics.get(spec.metric)
        done = entry.status == "done" and value is not None
        own = {name: kinds[name] for name in given if name in kinds}
        trial = create_trial(
            state=TrialState.COMPLETE if done else ENDED[entry.status],
            value=value if done else None,
            params={name: shown(given[name], kind) for name, kind in own.items()},
            distributions=own,
            user_attrs={
                "trial_key": entry.trial_key,
                **entry.metrics,
                **({"error": entry.error} if entry.error else {}),
            },
        )
        trial.datetime_start = datetime.fromisoformat(entry.started).replace(tzinfo=None)
        trial.datetime_complete = trial.datetime_start + timedelta(seconds=entry.trial_s)
        found.append(trial)
    return found


def distributions(
    params: Iterable[Mapping[str, Any]], logs: Iterable[str]
) -> dict[str, BaseDistribution]:
    """Distribution of each parameter that has more than one value.

    Args:
        params: of all trials.
        logs: names of those that are searched on a logarithmic scale.
    """
    values: dict[str, list[Any]] = {}
    for given in params:
        for name, value in given.items():
            values.setdefault(name, []).append(value)
    found: dict[str, BaseDistribution] = {}
    for name, each in values.items():
        if len({str(value) for value in each}) < 2:
            continue
        if all(is_number(value) for value in each):
            log = name in logs and min(each) > 0
            found[name] = FloatDistribution(float(min(each)), float(max(each)), log=log)
        else:
            found[name] = CategoricalDistribution(sorted({str(value) for value in each}))
    return found


def shown(value: Any, kind: BaseDistribution) -> float | str:
    """A parameter's value as its distribution has it."""
    return float(value) if isinstance(kind, FloatDistribution) else str(value)


def is_number(value: Any) -> bool:
    """Whether a value is a number; truth values are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
