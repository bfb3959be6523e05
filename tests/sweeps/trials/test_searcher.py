"""The searcher: the same suggestions whatever the timing, and nothing twice after a restart."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from fusion.methods.static.scales import scaled_shares
from fusion.task_vectors.task_vectors import TaskVectors
from sweeps.spec.candidates import planned, random_points
from sweeps.spec.sweep import SweepSpec, validate
from sweeps.spec.trial_key import trial_key
from sweeps.trials.searcher import MethodSearch

METHODS: dict[str, Any] = {
    "task_arithmetic": {"scale": {"grid": [0.1, 0.2, 0.3]}},
    "ties": {
        "density": {"grid": [0.1, 0.2]},
        "scale": {"uniform": [0.2, 1.0]},
        "merge": {"choice": ["mean", "sum"]},
        "trials": 5,
    },
    "simple_average": {},
    "wise_ft": {"alpha": {"uniform": [0, 1]}, "trials": 14, "searcher": "tpe"},
    "weighted_average": {
        "weights": {"a": {"uniform": [0, 1]}, "b": {"loguniform": [0.01, 1]}},
        "trials": 10,
        "searcher": "cmaes",
    },
}
GUIDED = {
    "ties": {
        "granularity": {"grid": ["model", "tensor"]},
        "scale": {"uniform": [0.2, 1.0]},
        "density": {"loguniform": [0.01, 1.0]},
        "trials": 18,
    }
}


def sweep(methods: dict[str, Any] | None = None, **changes: Any) -> SweepSpec:
    data = {
        "name": "s",
        "pool": {"base": "b", "experts": {"a": "x", "b": "y"}},
        "methods": METHODS if methods is None else methods,
    }
    return validate({**data, **changes}, "f")


def score(trial: dict[str, Any]) -> float | None:
    """What a trial reports: smooth in its numbers; some trials fail, always the same ones."""
    numbers = json.dumps(trial["params"], sort_keys=True)
    if random.Random(numbers).random() < 0.1:
        return None
    flat = [float(v) for v in numbers.replace("}", " ").replace(",", " ").split() if is_number(v)]
    return -sum((value - 0.4) ** 2 for value in flat)


def is_number(text: str) -> bool:
    return text.replace(".", "").replace("e-", "").isdigit()


def drive(
    search: MethodSearch, rng: random.Random, workers: int, stop: int | None = None
) -> tuple[dict[str, dict[str, Any]], dict[str, float | None]]:
    """Run a search with completions in random order: all suggestions, and the results."""
    suggested: dict[str, dict[str, Any]] = {}
    results: dict[str, float | None] = {}
    running: dict[str, dict[str, Any]] = {}
    for number in itertools.count():
        trial = search.suggest(str(number)) if len(running) < workers else None
        if trial == Searcher.FINISHED and not running:
            return suggested, results
        if isinstance(trial, dict):
            assert trial["trial_key"] not in suggested
            suggested[trial["trial_key"]] = running[str(number)] = trial
            if rng.random() < 0.7:
                continue
        assert running, "nothing runs, and the searcher waits"
        name = rng.choice(sorted(running))
        done = running.pop(name)
        value = score(done)
        result = {"acc/mean": value} if value is not None else None
        search.on_trial_complete(name, result, error=value is None)
        results[done["trial_key"]] = value
        if stop is not None and len(results) >= stop:
            return suggested, results
    raise AssertionError


def everything(spec: SweepSpec, **options: Any) -> dict[str, dict[str, Any]]:
    return drive(MethodSearch(spec, "c", **options), random.Random(0), 1)[0]


def test_a_suggestion_is_all_a_trial_needs() -> None:
    spec = sweep()
    trial = MethodSearch(spec, "context").suggest("0")
    assert isinstance(trial, dict)
    assert set(trial) == {"method", "params", "trial_key", "seed"}
    assert (trial["method"], trial["params"]) == ("task_arithmetic", {"scale": 0.1})
    assert trial["trial_key"] == trial_key("task_arithmetic", {"scale": 0.1}, "context")
    assert 0 <= trial["seed"] < 2**32
    other = MethodSearch(sweep(seed=1), "context").suggest("0")
    assert isinstance(other, dict)
    assert (other["trial_key"], other["params"]) == (trial["trial_key"], trial["params"])
    assert other["seed"] != trial["seed"]


def test_methods_take_turns_in_the_order_of_the_file() -> None:
    search = MethodSearch(sweep())
    names = [trial["method"] for n in range(7) if isinstance(trial := search.suggest(str(n)), dict)]
    assert names == [*METHODS, "task_arithmetic", "ties"]


def test_everything_planned_is_suggested() -> None:
    trials = everything(sweep()).values()
    counts = Counter(trial["method"] for trial in trials)
    assert counts == planned(sweep()) == {
        "task_arithmetic": 3, "ties": 10, "simple_average": 1, "wise_ft": 14,
        "weighted_average": 10,
    }  # fmt: skip
    ties = [trial["params"] for trial in trials if trial["method"] == "ties"]
    assert Counter(params["density"] for params in ties) == {0.1: 5, 0.2: 5}
    assert all(0.2 <= params["scale"] <= 1.0 for params in ties)
    assert {params["merge"] for params in ties} == {"mean", "sum"}


@pytest.mark.parametrize("searcher", ["random", "tpe", "cmaes"])
def test_the_order_of_completions_changes_nothing(searcher: str) -> None:
    spec = sweep({"ties": {**GUIDED["ties"], "searcher": searcher}})
    known = everything(spec)
    assert len(known) == 36
    for seed in range(4):
        rng = random.Random(seed)
        assert drive(MethodSearch(spec, "c"), rng, rng.choice([1, 2, 5, 50]))[0] == known


def test_the_order_of_completions_changes_nothing_for_all_at_once() -> None:
    known = everything(sweep())
    for seed in range(4):
        assert drive(MethodSearch(sweep(), "c"), random.Random(seed), seed + 2)[0] == known


@pytest.mark.parametrize("searcher", ["random", "tpe", "cmaes"])
@pytest.mark.parametrize("stop", [1, 7, 16, 30])
def test_a_killed_sweep_suggests_exactly_the_rest(searcher: str, stop: int) -> None:
    spec = sweep({"ties": {**GUIDED["ties"], "searcher": searcher}})
    known = everything(spec)
    rng = random.Random(stop)
    suggested, results = drive(MethodSearch(spec, "c"), rng, 3, stop)
    assert suggested.items() <= known.items()
    results = json.loads(json.dumps(results))  # as a ledger keeps them
    rest, _ = drive(MethodSearch(spec, "c", results), rng, 2)
    assert rest == {key: trial for key, trial in known.items() if key not in results}


def test_a_finished_sweep_suggests_nothing() -> None:
    _, results = drive(MethodSearch(sweep(), "c"), random.Random(0), 4)
    assert MethodSearch(sweep(), "c", results).suggest("0") == Searcher.FINISHED
    assert isinstance(MethodSearch(sweep(), "other", results).suggest("0"), dict)


def test_more_trials_only_add_trials() -> None:
    for searcher in ("random", "tpe", "cmaes"):
        few, many = (
            everything(sweep({"ties": {**GUIDED["ties"], "searcher": searcher, "trials": trials}}))
            for trials in (6, 11)
        )
        assert few.items() < many.items()


def test_the_order_of_keys_in_the_file_changes_nothing() -> None:
    backwards = {
        name: {key: entry[key] for key in reversed(entry)}
        for name, entry in reversed(METHODS.items())
    }
    weights = backwards["weighted_average"]["weights"]
    backwards["weighted_average"]["weights"] = {key: weights[key] for key in reversed(weights)}
    assert everything(sweep(backwards)) == everything(sweep())


def test_seeds_and_batches_change_what_is_drawn() -> None:
    spec = sweep({"wise_ft": METHODS["wise_ft"]})
    known = set(everything(spec))
    assert set(everything(spec, batch=4)) == known
    assert set(everything(spec, batch=1)) != known
    assert not known & set(everything(sweep({"wise_ft": METHODS["wise_ft"]}, seed=1)))


def test_grid_points_do_not_share_draws() -> None:
    for searcher in ("random", "tpe"):
        spec = sweep({"ties": {**GUIDED["ties"], "searcher": searcher}})
        drawn = Counter(trial["params"]["scale"] for trial in everything(spec).values())
        assert max(drawn.values()) == 1


@pytest.mark.parametrize("workers", [1, 3, 20])
@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_duplicates_are_suggested_once(searcher: str, workers: int) -> None:
    entry = {
        "merge": {"choice": ["mean", "sum"]},
        "scale": {"grid": [1, 1.0]},  # twice the same draws
        "trials": 12,
        "searcher": searcher,
    }
    spec = sweep({"ties": entry, "wise_ft": {"alpha": {"grid": [0.5, 0.5, 1, 1.0]}}})
    trials = drive(MethodSearch(spec), random.Random(0), workers)[0].values()
    assert Counter(trial["method"] for trial in trials) == {"ties": 2, "wise_ft": 2}
    assert planned(spec) == {"ties": 2, "wise_ft": 2}


def test_a_guided_search_waits_for_its_batch_and_for_nothing_else() -> None:
    spec = sweep({"wise_ft": METHODS["wise_ft"], "task_arithmetic": METHODS["task_arithmetic"]})
    search = MethodSearch(spec, batch=2)
    names = [search.suggest(str(number)) for number in range(7)]
    methods = [trial["method"] if isinstance(trial, dict) else trial for trial in names]
    wise, other = "wise_ft", "task_arithmetic"
    assert methods == [wise, other, wise, other, other, None, None]
    search.on_trial_complete("2", {"acc/mean": 0.5})
    assert search.suggest("7") is None
    search.on_trial_complete("0", error=True)  # a failed trial counts as told
    trial = search.suggest("8")
    assert isinstance(trial, dict)
    assert trial["method"] == wise


def test_each_suggestion_is_told_and_who_hears_is_not_pickled() -> None:
    heard: list[str] = []
    search = MethodSearch(sweep(), "c", on_suggest=lambda key: heard.append(key))
    first = search.suggest("0")
    assert isinstance(first, dict)
    assert heard == [first["trial_key"]]
    assert isinstance(pickle.loads(pickle.dumps(search)).suggest("1"), dict)
    assert len(heard) == 1


def test_nobody_waits_for_the_last_batch() -> None:
    search = MethodSearch(sweep({"wise_ft": {**METHODS["wise_ft"], "trials": 3}}))
    told = [search.suggest(str(number)) for number in range(4)]
    assert [isinstance(trial, dict) for trial in told] == [True, True, True, False]
    for number in range(3):
        assert search.suggest("probe") is None  # a trial that runs may have to be repeated
        search.on_trial_complete(str(number), {"acc/mean": 0.5})
    assert search.suggest("probe") == Searcher.FINISHED


def test_a_repeated_trial_is_suggested_as_it_was_and_changes_no_other_suggestion() -> None:
    spec = sweep({"wise_ft": {**METHODS["wise_ft"], "trials": 6}})
    plain, lossy = MethodSearch(spec, batch=2), MethodSearch(spec, batch=2)
    repeated = 0
    for number in itertools.count():
        expected = plain.suggest(str(number))
        found = lossy.suggest(f"{number}")
        assert found == expected
        if expected == Searcher.FINISHED:
            break
        assert isinstance(expected, dict)
        if number % 2 == 0:
            lossy.on_trial_complete(str(number), error=True)
            lossy.repeat(expected)
            assert lossy.left()
            assert lossy.suggest(f"{number} again") == expected
            lossy.on_trial_complete(f"{number} again", {"acc/mean": score(expected)})
            repeated += 1
        else:
            lossy.on_trial_complete(str(number), {"acc/mean": score(expected)})
        plain.on_trial_complete(str(number), {"acc/mean": score(expected)})
    assert repeated == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "0.5", True])
def test_a_result_that_is_no_finite_number_counts_as_failed(value: Any) -> None:
    spec = sweep({"wise_ft": {**METHODS["wise_ft"], "trials": 2}})
    search = MethodSearch(spec, batch=1)
    first = search.suggest("0")
    search.on_trial_complete("0", {"acc/mean": value})
    second = search.suggest("1")
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    known = {first["trial_key"]: value if isinstance(value, float) else None}
    assert MethodSearch(spec, known=known, batch=1).suggest("0") == second


@pytest.mark.parametrize(("metric", "mode"), [("acc/mean", "max"), ("nll/mean", "min")])
@pytest.mark.parametrize("searcher", ["tpe", "cmaes"])
def test_guided_searches_find_the_optimum(metric: str, mode: str, searcher: str) -> None:
    entry = {"density": {"uniform": [0, 1]}, "scale": {"uniform": [0, 1]}, "trials": 60}
    search = MethodSearch(sweep({"ties": {**entry, "searcher": searcher}}, metric=metric))
    assert (search.metric, search.mode) == (metric, mode)
    drawn = []
    for number in itertools.count():
        trial = search.suggest(str(number))
        if not isinstance(trial, dict):
            break
        params = trial["params"]
        loss = (params["density"] - 0.3) ** 2 + (params["scale"] - 0.8) ** 2
        search.on_trial_complete(str(number), {metric: loss if mode == "min" else -loss})
        drawn.append(loss)
    assert sorted(drawn[-15:])[7] < 0.3 * sorted(drawn[:15])[7]


SCALES: dict[str, tuple[dict[str, Any], list[list[float]]]] = {
    "a task": ({"a": {"uniform": [0, 1]}, "b": {"uniform": [0, 1]}}, [[0.3, 0.8], [0.3, 0.8]]),
    "over depth": (
        {"start": {"uniform": [0, 1]}, "end": {"uniform": [0, 1]}},
        [[0.3, 0.3], [0.8, 0.8]],
    ),
    "a task and layer": (
        {"a": {"uniform": [0, 1]}, "b": {"start": 0.8, "end": {"uniform": [0, 1]}}},
        [[0.3, 0.8], [0.3, 0.1]],
    ),
}
"""Form -> scale, and the best λ of the tasks in the first and the last layer."""


@pytest.mark.parametrize("searcher", ["tpe", "cmaes"])
@pytest.mark.parametrize("form", SCALES)
def test_numbers_inside_a_scale_are_searched(searcher: str, form: str) -> None:
    """The suggested scales are merged, and the search finds the best numbers."""
    vectors = TaskVectors(("a", "b"), {}, {}, groups=("layers.0.w", "layers.1.w"))
    scale, best = SCALES[form]
    search = MethodSearch(sweep({"ties": {"scale": scale, "trials": 60, "searcher": searcher}}))
    drawn: list[float] = []
    while isinstance(trial := search.suggest(str(len(drawn))), dict):
        shares = scaled_shares(vectors, trial["params"]["scale"])
        made = [shares(name) for name in vectors.groups]
        found = [mine.scale * each for mine in made for each in mine.coefficients]
        loss = sum((x - wish) ** 2 for x, wish in zip(found, (*best[0], *best[1]), strict=True))
        search.on_trial_complete(str(len(drawn)), {"acc/mean": -loss})
        drawn.append(loss)
    assert len(drawn) == 60
    assert sorted(drawn[-15:])[7] < 0.3 * sorted(drawn[:15])[7]


def test_forms_of_a_scale_are_a_grid() -> None:
    forms = [0.3, {"start": 0.1, "end": 0.5}, {"a": 0.2, "b": 0.4}]
    found = everything(sweep({"magmax": {"scale": {"grid": forms}}}))
    assert [trial["params"]["scale"] for trial in found.values()] == forms


def test_what_is_not_known_is_ignored() -> None:
    search = MethodSearch(sweep())
    search.on_trial_complete("never suggested", {"acc/mean": 1.0})
    assert isinstance(search.suggest("0"), dict)


def test_a_saved_search_goes_on(tmp_path: Path) -> None:
    known = everything(sweep())
    search, rng = MethodSearch(sweep(), "c"), random.Random(3)
    suggested, results = drive(search, rng, 4, 12)
    running = {key for key in suggested if key not in results}
    assert len(running) > 1
    search.save(str(tmp_path / "state"))
    restored = MethodSearch(sweep(), "c")
    restored.restore(str(tmp_path / "state"))
    for again in (restored, copy.deepcopy(search), pickle.loads(pickle.dumps(search))):
        left = [again.suggest(f"again {number}") for number in range(3)]
        assert not running & {trial["trial_key"] for trial in left if isinstance(trial, dict)}
        for name, key in list(again._running.items()):  # Tune runs again what it had begun
            value = score(known[key])
            again.on_trial_complete(name, {"acc/mean": value}, error=value is None)
        rest, _ = drive(again, rng, 3)
        begun = suggested.keys() | {t["trial_key"] for t in left if isinstance(t, dict)}
        assert rest == {k: trial for k, trial in known.items() if k not in begun}


def test_random_points_do_not_depend_on_other_spaces() -> None:
    ties = {"scale": {"uniform": [0, 1]}, "density": {"uniform": [0, 1]}, "trials": 5}
    other = {**ties, "density": {"uniform": [0.2, 0.3]}}
    drawn = [
        [point["scale"] for point in random_points(sweep({"ties": e}).methods["ties"], "ties", 0)]
        for e in (ties, other)
    ]
    assert drawn[0] == drawn[1]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_tune_runs_what_is_suggested(tmp_path: Path) -> None:
    from ray import tune

    def trainable(config: dict[str, Any]) -> None:
        if config["params"].get("scale") == 0.2:
            raise RuntimeError("fails on purpose")
        tune.report({"acc/mean": len(config["trial_key"]) + config["params"].get("alpha", 0.0)})

    methods = {
        "task_arithmetic": METHODS["task_arithmetic"],
        "wise_ft": {"alpha": {"uniform": [0, 1]}, "trials": 3, "searcher": "tpe"},
        "weighted_average": {"weights": {"a": 0.25, "b": {"grid": [0.5, 0.75]}}},
    }
    spec = sweep(methods)
    search = MethodSearch(spec, "c", batch=2)
    results = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 0.5}),
        tune_config=tune.TuneConfig(
            search_alg=search, num_samples=-1, max_concurrent_trials=2, reuse_actors=True
        ),
        run_config=tune.RunConfig(name="t", storage_path=str(tmp_path), verbose=0),
    ).fit()
    ran = {result.config["trial_key"]: result.config for result in results}
    assert sorted(c["method"] for c in ran.values()) == sorted(
        ["task_arithmetic"] * 3 + ["wise_ft"] * 3 + ["weighted_average"] * 2
    )
    weights = [c["params"] for c in ran.values() if c["method"] == "weighted_average"]
    assert sorted(weights, key=str) == [
        {"weights": {"a": 0.25, "b": 0.5}}, {"weights": {"a": 0.25, "b": 0.75}},
    ]  # fmt: skip
    assert [str(error).count("on purpose") > 0 for error in results.errors] == [True]
    assert search.suggest("probe") == Searcher.FINISHED


def test_looking_ahead_changes_no_suggestion():
    plain, looked = MethodSearch(sweep()), MethodSearch(sweep())
    for number in itertools.count():
        assert looked.left() is looked.left()
        expected = plain.suggest(str(number))
        left = looked.left()
        assert looked.suggest(str(number)) == expected
        if expected == Searcher.FINISHED:
            assert not left
            return
        assert left
        assert isinstance(expected, dict)
        for each in (plain, looked):
            each.on_trial_complete(str(number), {"acc/mean": score(expected)})


def test_what_was_looked_at_survives_a_copy():
    looked = MethodSearch(sweep())
    assert looked.left()
    assert pickle.loads(pickle.dumps(looked)).suggest("0") == MethodSearch(sweep()).suggest("0")


def test_a_trial_that_runs_is_left():
    """Else Ctrl-C while the last trials run would pass for the end of the search."""
    search = MethodSearch(sweep({"task_arithmetic": {"scale": {"grid": [0.1, 0.2]}}}))
    assert {search.suggest(name)["params"]["scale"] for name in ("a", "b")} == {0.1, 0.2}
    assert search.suggest("c") is None
    assert search.left()
    search.on_trial_complete("a", {"acc/mean": 0.5})
    assert search.left()
    search.on_trial_complete("b", error=True)
    assert not search.left()
    assert search.suggest("c") == Searcher.FINISHED


RACED = {
    "ties": {"density": {"grid": [0.1, 0.2, 0.5]}, "scale": {"grid": [0.2, 0.4, 0.6, 0.8, 1.0]}},
    "simple_average": {},
    "wise_ft": METHODS["wise_ft"],
}


@pytest.mark.parametrize("seed", range(4))
def test_the_bar_of_a_raced_candidate_does_not_depend_on_time(seed: int) -> None:
    spec = sweep(RACED, evaluate="racing")
    known = everything(spec)
    rng = random.Random(seed)
    assert drive(MethodSearch(spec, "c"), rng, seed + 2)[0] == known
    some, results = drive(MethodSearch(spec, "c"), rng, 3, stop=4 * seed + 3)
    assert some.items() <= known.items()
    rest, _ = drive(MethodSearch(spec, "c", json.loads(json.dumps(results))), rng, 2)
    assert rest == {key: trial for key, trial in known.items() if key not in results}


def test_a_bar_is_the_best_of_the_candidates_long_before() -> None:
    trials = [each for each in everything(sweep(RACED, evaluate="racing")).values()]
    ties = [trial for trial in trials if trial["method"] == "ties"]
    assert [trial["race"]["bar"] for trial in ties[:4]] == [None] * 4
    for at, trial in enumerate(ties[4:], 4):
        values = [value for each in ties[: at - 3] if (value := score(each)) is not None]
        assert trial["race"]["bar"] == max(values, default=None)
    assert len({trial["race"]["seed"] for trial in ties}) == 1
    assert ties[0]["params"] == {"density": 0.2, "scale": 0.6}  # from coarse to fine
    others = {trial["method"]: trial.get("race") for trial in trials if trial not in ties}
    assert others["simple_average"] is None
    assert others["wise_ft"]["bar"] is None  # its searcher needs every result


def test_confidence_is_passed_on() -> None:
    spec = sweep(RACED, evaluate={"racing": {"confidence": 0.99}})
    (first, *_) = everything(spec).values()
    assert first["race"]["confidence"] == 0.99
    assert set(everything(spec)) == set(everything(sweep(RACED)))
