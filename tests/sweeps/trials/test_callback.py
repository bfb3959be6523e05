"""The recorder: which deaths of trial processes are failures."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.results.ledger import Entry
from sweeps.trials.callback import RESTARTS, Recorder

CONFIG = {"trial_key": "k1", "method": "ties", "params": {"scale": 0.5}, "seed": 3}


@pytest.fixture
def recorded() -> list[Entry]:
    return []


@pytest.fixture
def repeated() -> list[Mapping[str, Any]]:
    return []


@pytest.fixture
def recorder(recorded, repeated) -> Recorder:
    return Recorder(recorded.append, repeated.append)


def trial(failures: int) -> SimpleNamespace:
    return SimpleNamespace(config=CONFIG, num_failures=failures)


def test_a_trial_whose_process_died_before_it_ran_is_suggested_again(recorder, recorded, repeated):
    """Tune starts it again only where it ran already: with its node, a starting process dies."""
    for _ in range(RESTARTS):
        recorder.on_trial_error(0, [], trial(1))
    assert (recorded, repeated) == ([], [CONFIG] * RESTARTS)
    recorder.on_trial_error(0, [], trial(1))
    assert [(each.trial_key, each.status) for each in recorded] == [("k1", "failed")]
    assert len(repeated) == RESTARTS


def test_a_trial_that_tune_started_again_in_vain_has_failed(recorder, recorded, repeated):
    recorder.on_trial_error(0, [], trial(RESTARTS + 1))
    assert [each.error for each in recorded] == ["the trial's process died"]
    assert repeated == []


def test_a_trial_that_has_reported_is_not_failed_by_a_later_death(recorder, recorded, repeated):
    entry = {**CONFIG, "status": "done", "split": "select"}
    recorder.on_trial_result(0, [], trial(0), {"entry": entry})
    recorder.on_trial_error(0, [], trial(1))
    assert [each.status for each in recorded] == ["done"]
    assert repeated == []
