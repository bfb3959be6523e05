"""What stays of trained models: the best, once each, with their papers; the rest is deleted."""

import json

import pytest
import yaml

from sweeps.spec import sweep as sweepfile
from sweeps.train.ingredients import (
    Trained,
    chosen,
    home,
    is_there,
    made_at,
    read_results,
    settle,
    write_result,
)
from sweeps.train.pools import by_head, pool_yaml

ABOUT = {"base": "b" * 64, "defaults": {"epochs": 10.0, "mixup": 0.0}}


def made(kind="expert", select=0.5, sha="") -> dict:
    return {"kind": kind, "select": select, "report": select - 0.1, "sha256": sha}


def trained(key, *ingredients, **changes) -> Trained:
    first = ingredients[0]["select"] if ingredients else 0.2
    given = {"params": {"epochs": 2.0}, "seed": 7, "made": list(ingredients)} | changes
    return Trained(key, "digits", given.pop("params"), first, first - 0.1, 1.0, **given)


RESULTS = [
    trained("k1", made(select=0.5, sha="s1"), made("ema", 0.7, "s2"), made("swa", 0.7, "s1")),
    trained("k2", made(select=0.7, sha="s3")),
    trained("k3", made(select=0.6, sha="s2")),
    trained("k4", stopped=1),
]


def put(out, results=RESULTS):
    for result in results:
        write_result(out, result)
        for kind in ("expert", "ema", "swa"):
            for each in chosen([result], "all"):
                if each.kind == kind:
                    made_at(out, each).mkdir(parents=True)
                    (made_at(out, each) / "w").write_text(each.name)


def test_the_best_on_select_stay_and_of_equals_the_first():
    names = [each.name for each in chosen(RESULTS, "all")]
    assert names == ["digits-k1-ema", "digits-k1-swa", "digits-k2"]
    assert [each.twins for each in chosen(RESULTS, "all")] == [
        ("digits-k3",), ("digits-k1",), ()]  # fmt: skip
    assert [each.name for each in chosen(RESULTS, 2)] == names[:2]
    assert [each.name for each in chosen(RESULTS, "best")] == names[:1]
    assert [each.name for each in chosen(RESULTS[::-1], "best")] == ["digits-k2"]


def test_a_result_of_an_older_version_is_one_ingredient(tmp_path, caplog):
    write_result(tmp_path, trained("k1"))
    path = tmp_path / "trained" / "digits-k1.json"
    old = json.loads(path.read_text())
    for name in ("made", "seed", "stopped", "rungs", "context"):
        del old[name]
    path.write_text(json.dumps(old))
    (each,) = chosen(read_results(tmp_path, "digits"), "all")
    assert (each.kind, each.select, each.sha256, each.twins) == ("expert", 0.2, "", ())
    path.write_text("{")
    assert read_results(tmp_path, "digits") == []  # it is fine-tuned again
    assert "digits-k1.json" in caplog.text


@pytest.mark.parametrize("key", ["..", "../experts", "/abs", "k2"])
def test_a_result_that_names_another_folder_is_none(tmp_path, key):
    write_result(tmp_path, trained("k1"))
    path = tmp_path / "trained" / "digits-k1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "key": key}))
    assert read_results(tmp_path, "digits") == []


def test_results_are_read_by_task(tmp_path):
    for task in ("digits", "digits-2"):
        write_result(tmp_path, Trained("k", task, {}, 0.5, 0.5, 1.0))
    assert [result.task for result in read_results(tmp_path, "digits")] == ["digits"]


@pytest.mark.parametrize(("keep", "left"), [("all", 3), (2, 2), (1, 1)])
def test_ingredients_are_settled(tmp_path, keep, left):
    put(tmp_path)
    (tmp_path / "trained" / "k4").mkdir()
    (tmp_path / "trained" / "k4" / "state.pt").touch()
    for _ in range(2):
        settle(tmp_path, RESULTS, keep, ABOUT)
        stay = chosen(RESULTS, keep)
        folders = sorted(path.name for path in (tmp_path / "ingredients/digits").iterdir())
        assert folders == sorted(each.folder for each in stay)
        assert len(folders) == left
        assert all(is_there(tmp_path, each, keep) for each in stay)
        assert [p for p in (tmp_path / "trained").iterdir() if p.is_dir()] == []
    place = tmp_path / "ingredients/digits/k1-ema"
    assert (place / "w").read_text() == "digits-k1-ema"
    recipe = yaml.safe_load((place / "recipe.yaml").read_text())
    assert recipe.pop("code")
    assert recipe == {
        "task": "digits", "key": "k1", "kind": "ema", "params": {"epochs": 2.0, "mixup": 0.0},
        "seed": 7, "base": "b" * 64, "sha256": "s2", "twins": ["digits-k3"],
    }  # fmt: skip
    scores = json.loads((place / "scores.json").read_text())
    assert scores == {"shifts": {}, "select": 0.7, "report": pytest.approx(0.6)}


def test_the_best_becomes_the_expert_and_a_better_one_replaces_it(tmp_path):
    put(tmp_path)
    settle(tmp_path, RESULTS[1:], "best", ABOUT)
    assert (tmp_path / "experts/digits/w").read_text() == "digits-k2"
    (ema,) = chosen(RESULTS, "best")
    assert is_there(tmp_path, ema, "best")  # where it was made
    settle(tmp_path, RESULTS, "best", ABOUT)
    assert (tmp_path / "experts/digits/w").read_text() == "digits-k1-ema"
    (other,) = chosen(RESULTS[1:], "best")
    assert not is_there(tmp_path, other, "best")  # the folder is another's
    assert sorted(p.name for p in tmp_path.iterdir()) == ["experts", "trained"]


def test_scores_on_shifts_outlive_settling(tmp_path):
    put(tmp_path)
    settle(tmp_path, RESULTS, 1, ABOUT)
    path = tmp_path / "ingredients/digits/k1-ema/scores.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shifts": {"noise": 0.3}}))
    settle(tmp_path, RESULTS, 1, ABOUT)
    assert json.loads(path.read_text())["shifts"] == {"noise": 0.3}


def test_the_pool_file_of_ingredients_is_part_of_a_sweep_file(tmp_path):
    kept = {"digits": chosen(RESULTS, 2)}
    text = pool_yaml(
        tmp_path / "base", kept, tmp_path, 2, {"digits": {"dataset": "d"}, "lost": {}}, {}
    )
    spec = sweepfile.validate({"name": "x", "methods": {"simple_average": {}},
                               **yaml.safe_load(text)}, "x.yaml")  # fmt: skip
    assert list(spec.tasks) == ["digits"]
    assert dict(spec.pool.experts) == {
        each.name: str(home(tmp_path, each, 2)) for each in kept["digits"]
    }
    best = {"digits": chosen(RESULTS, "best")}
    given = {"digits": {"dataset": "data/d", "templates": ["a {}"]}, "lost": {}}
    text = pool_yaml(tmp_path / "base", best, tmp_path, "best", given, {"seed": 3})
    spec = sweepfile.validate({"name": "x", "methods": {"ties": {}}, **yaml.safe_load(text)}, "x")
    assert spec.pool.base == str(tmp_path / "base")
    assert dict(spec.pool.experts) == {"digits": str(tmp_path / "experts/digits")}
    assert spec.tasks["digits"].dataset == "data/d"
    assert list(spec.tasks["digits"].templates) == ["a {}"]
    assert spec.splits.seed == 3


def test_the_same_weights_under_two_heads_are_two_ingredients(tmp_path):
    one = trained("k1", {**made(sha="s"), "head": "h1"})
    other = trained("k2", {**made(sha="s"), "head": "h2"}, params={"head": "linear_probe"})
    again = trained("k3", {**made(sha="s"), "head": "h1"})
    kept = chosen([one, other, again], "all")
    assert [(each.key, each.twins) for each in kept] == [("k1", ("digits-k3",)), ("k2", ())]
    first, others = by_head({"digits": kept})
    assert [each.key for each in first["digits"]] == ["k1"]
    assert [each.key for each in others["digits"]] == ["k2"]
    assert by_head({"digits": kept[:1]}) == [{"digits": kept[:1]}]


def test_an_expert_tuned_under_a_probe_names_its_head(tmp_path):
    best = {"digits": chosen([trained("k", made(), params={"head": "linear_probe"})], "best")}
    text = pool_yaml(tmp_path / "base", best, tmp_path, "best", {"digits": {"dataset": "d"}}, {})
    assert yaml.safe_load(text) == {
        "pool": {"base": str(tmp_path / "base"),
                 "experts": {"digits": str(tmp_path / "experts/digits")}},
        "tasks": {"digits": {
            "dataset": "d", "head": str(tmp_path / "heads/digits/linear_probe.safetensors")}},
    }  # fmt: skip
