"""The searches of `sweeps train`: turns between tasks, what is known, what is still missing."""

from types import SimpleNamespace

import pytest

from sweeps.spec.trial_key import trial_key
from sweeps.train.ingredients import Trained
from sweeps.train.run_trials import scheduler
from sweeps.train.searcher import TaskSearch, as_sweep, count, meant, method
from sweeps.trials.searcher import MethodSearch
from tests.actors.training.fine_tuning import image_search

TASKS = ("a", "b")
GRID = image_search({"learning_rate": {"grid": [1e-4, 1e-3, 1e-2]}})
TPE = image_search(
    {"learning_rate": {"loguniform": [1e-5, 1e-2]}, "epochs": 2, "trials": 9, "searcher": "tpe"}
)


def result(task, params, select, **changes) -> Trained:
    key = trial_key(method(task), params, task)
    return Trained(key, task, params, select, select, 1.0, context=task, **changes)


def searched(entry, known=()) -> TaskSearch:
    return TaskSearch(
        {
            task: MethodSearch(
                as_sweep({method(task): entry}, 0),
                task,
                {each.key: each.select for each in known if each.task == task},
            )
            for task in TASKS
        }
    )


def run(search, most=1000) -> list[Trained]:
    """Trials to their end, one at a time; the score is a function of the parameters."""
    found = []
    while len(found) < most:
        config = search.suggest(str(len(found)))
        if config == TaskSearch.FINISHED:
            break
        assert config is not None  # with nothing running, nobody is awaited
        select = 1 - abs(config["params"]["learning_rate"] - 3e-3) * 50
        found.append(result(config["task"], config["params"], select))
        assert found[-1].key == config["trial_key"]
        search.on_trial_complete(str(len(found) - 1), {"select": select})
    return found


@pytest.mark.parametrize(("entry", "each"), [(GRID, 3), (TPE, 9)])
@pytest.mark.parametrize("after", [0, 1, 7])
def test_a_second_run_suggests_what_is_missing(entry, each, after):
    whole = run(searched(entry))
    assert [sum(one.task == task for one in whole) for task in TASKS] == [each, each]
    assert {one.task for one in whole[:2]} == set(TASKS)  # in turn
    assert sum(count(entry, task, 0) for task in TASKS) == len(whole)
    done = whole[:after]
    search = searched(entry, done)
    assert search.left() == (after < len(whole))
    missing = {one.key for one in run(search)}
    assert missing == {one.key for one in whole} - {one.key for one in done}
    assert not searched(entry, whole).left()


def test_tpe_learns_from_results():
    rates = [one.params["learning_rate"] for one in run(searched(TPE))]
    other = [
        one.params["learning_rate"]
        for one in run(searched(TPE.model_copy(update={"searcher": "random"})))
    ]
    assert rates != other


def test_what_a_file_means_of_results():
    grid = [result("a", {"learning_rate": rate}, 0.5) for rate in (1e-2, 1e-4, 1e-3, 1e-1)]
    found = meant(GRID, "a", 0, "a", grid)
    assert [one.params["learning_rate"] for one in found] == [1e-4, 1e-3, 1e-2]
    guided = [
        result("a", {"learning_rate": 1e-3, "epochs": 2.0}, 0.5),
        result("a", {"learning_rate": 1e-1, "epochs": 2.0}, 0.5),  # out of the space
        result("a", {"learning_rate": 1e-3, "epochs": 3.0}, 0.5),  # another fixed value
        result("a", {"learning_rate": 1e-3}, 0.5),
        result("b", {"learning_rate": 2e-3, "epochs": 2.0}, 0.5),  # other data
    ]
    assert meant(TPE, "a", 0, "a", guided) == guided[:1]


def test_the_scheduler_is_told_of_what_was_reported_before():
    entry = image_search({"learning_rate": {"grid": [1, 2]}, "scheduler": "asha"})
    known = {"a": [result("a", {"learning_rate": 1.0}, 0.9, rungs={"1": 0.9})], "b": []}

    def asked(task: str, select: float, halving) -> str:
        trial = SimpleNamespace(trial_id=f"new {task}", config={"method": method(task)})
        halving.on_trial_add(None, trial)
        return halving.on_trial_result(None, trial, {"rung": 1, "select": select})

    assert asked("a", 0.5, scheduler(entry, known, 0)) == "STOP"
    assert asked("a", 0.95, scheduler(entry, known, 0)) == "CONTINUE"
    assert asked("b", 0.5, scheduler(entry, known, 0)) == "CONTINUE"
    assert asked("a", 0.5, scheduler(entry, {"a": [], "b": []}, 0)) == "CONTINUE"
    plain = scheduler(image_search({}), known, 0)
    assert asked("a", 0.5, plain) == "CONTINUE"
