"""Optuna studies of a sweep's trials, read back by Optuna."""

from dataclasses import replace

import optuna
import pytest
from optuna.importance import get_param_importances
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from sweeps.results.ledger import Entry
from sweeps.spec.sweep import validate
from sweeps.trials.optuna_studies import FILE, write_studies

ENTRY = Entry(
    "k1", "ties", "static", {"density": 0.2, "scale": 1.0, "weights": {"a": 0.1}}, "done", "select",
    metrics={"acc/mean": 0.5, "nll/mean": 2.0}, n={"x": 2}, trial_s=1.5, peak_bytes=7,
    started="2026-01-02T03:04:05+00:00",
)  # fmt: skip
ENTRIES = [
    ENTRY,
    replace(ENTRY, trial_key="k2", params={"density": 0.4, "scale": 2, "weights": {"a": 0.1}},
            metrics={"acc/mean": 0.75, "nll/mean": 3.0}),
    replace(ENTRY, trial_key="k3", params={"density": 0.3, "scale": 1.5}, status="failed",
            metrics={}, error="boom", started="2026-01-02T03:04:00+00:00"),
    replace(ENTRY, trial_key="k4", method="dare", params={"rescale": True}),
    replace(ENTRY, trial_key="k5", method="dare", params={"rescale": False}),
    replace(ENTRY, trial_key="k6", method="pretrained", params={}),
]  # fmt: skip


def spec(**changes):
    searched = {"density": {"loguniform": [0.1, 0.5]}, "scale": {"uniform": [0, 3]}, "trials": 3}
    content = {
        "name": "s",
        "pool": {"base": "b", "experts": {"a": "x", "c": "y"}},
        "tasks": {"a": {"dataset": "a"}, "c": {"dataset": "c"}},
        "methods": {"ties": searched},
    }
    return validate({**content, **changes}, "spec")


def studies(path):
    storage = JournalStorage(JournalFileBackend(str(path)))
    names = optuna.get_all_study_names(storage)
    return {name: optuna.load_study(study_name=name, storage=storage) for name in names}


def test_a_method_is_a_study_with_its_trials_in_the_order_of_their_start(tmp_path):
    for _ in range(2):  # a resumed sweep writes the file again
        write_studies(ENTRIES, spec(), tmp_path / FILE)
    found = studies(tmp_path / FILE)
    assert set(found) == {"s/ties", "s/dare"}  # one trial has no history
    ties = found["s/ties"]
    assert [trial.user_attrs["trial_key"] for trial in ties.trials] == ["k3", "k1", "k2"]
    failed, first, second = ties.trials
    assert (failed.state.name, failed.user_attrs["error"]) == ("FAIL", "boom")
    assert first.params == {"density": 0.2, "scale": 1.0}
    assert second.value == 0.75
    assert second.user_attrs["nll/mean"] == 3.0
    assert second.duration.total_seconds() == 1.5
    assert ties.best_trial.params == {"density": 0.4, "scale": 2.0}
    density = ties.best_trial.distributions["density"]
    assert (density.low, density.high, density.log) == (0.2, 0.4, True)
    assert not ties.best_trial.distributions["scale"].log
    assert found["s/dare"].best_trial.params == {"rescale": "True"}
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    write_studies(ENTRIES[-1:], spec(), tmp_path / FILE)
    assert not list(tmp_path.iterdir())


def test_the_direction_is_that_of_the_metric(tmp_path):
    write_studies(ENTRIES, spec(metric="nll/mean"), tmp_path / FILE)
    ties = studies(tmp_path / FILE)["s/ties"]
    assert ties.direction.name == "MINIMIZE"
    assert ties.best_value == 2.0
    assert ties.metric_names == ["nll/mean"]


@pytest.mark.parametrize("count", [12])
def test_importance_is_found(tmp_path, count):
    entries = [
        replace(
            ENTRY, trial_key=f"k{at}", params={"density": 0.1 + at / 40, "scale": at % 3 / 2},
            metrics={"acc/mean": at / count},
        )
        for at in range(count)
    ]  # fmt: skip
    write_studies(entries, spec(), tmp_path / FILE)
    found = get_param_importances(studies(tmp_path / FILE)["s/ties"])
    assert max(found, key=found.__getitem__) == "density"
