"""Recipes and what lies beside ingredients: refused in one line, nothing written elsewhere."""

import json
import os
from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fusion.errors import InputError
from sweeps.planning.provenance import ancestry_of
from sweeps.results.export.from_recipe import export
from sweeps.results.export.model_folder import check_new, companion_files, new_folder
from sweeps.results.ingredient_recipes import chains, recipe_of
from sweeps.results.recipe import learned_data, load
from sweeps.train.ingredients import Trained, read_results, read_scores, result_file, write_result
from tests.fuzz.damage import altered, mutated, only_input_errors

HASH = "0" * 64
RECIPE = {
    "method": "ties",
    "params": {"density": 0.2, "scale": 0.3},
    "base": {"source": "/nowhere/base", "sha256": HASH},
    "experts": {"mnist": {"source": "/nowhere/mnist", "sha256": HASH}},
    "code": "1",
    "sweep": "s",
    "selected": {"split": "val", "metric": "acc/mean", "value": 0.5},
    "learned": {"source": "ties.safetensors", "sha256": HASH},
    "statistics": ["abc"],
}
OWN = {"task": "digits", "key": "k", "kind": "expert", "params": {"lr": 1e-5, "wd": 0.1},
       "seed": 1, "base": HASH, "head": {"kind": "zero_shot", "identity": "i", "classnames": ["a"]},
       "twins": []}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("recipes")
    (root / "in").mkdir()
    (root / "victim").write_text("precious")
    return root


def written(root, content):
    file = root / "in" / "ties.yaml"
    file.write_bytes(content if isinstance(content, bytes) else yaml.safe_dump(content).encode())
    return file


@given(mutated(RECIPE))
def test_any_field_of_a_recipe(place, content):
    with suppress(yaml.YAMLError, UnicodeEncodeError):  # PyYAML cannot write all that is tried
        file = written(place, content)
        with only_input_errors():
            learned_data(load(file), file)
        with only_input_errors():
            export(file, place / "out")
    assert sorted(path.name for path in place.iterdir()) == ["in", "victim"]


@given(altered(yaml.safe_dump(RECIPE).encode()))
def test_damaged_bytes_of_a_recipe(place, data):
    file = written(place, data)
    with only_input_errors():
        load(file)
    assert sorted(path.name for path in place.iterdir()) == ["in", "victim"]


@pytest.mark.parametrize("name", ["../victim", "/abs", "a/b", "..", ".x", "", "a\0b"])
def test_names_that_would_be_paths(place, name):
    expert = {"source": "/nowhere", "sha256": HASH}
    for content in (
        RECIPE | {"experts": {name: expert}},
        RECIPE | {"method": name},
        RECIPE | {"statistics": [name]},
    ):
        with pytest.raises(InputError, match=r"not a recipe|not YAML"):
            load(written(place, content))
    content = RECIPE | {"learned": {"source": name, "sha256": HASH}}
    file = written(place, content)
    with pytest.raises(InputError):
        learned_data(load(file), file)


@given(mutated(OWN))
def test_any_field_of_an_ingredients_recipe(place, content):
    with suppress(yaml.YAMLError, UnicodeEncodeError):
        (place / "in" / "recipe.yaml").write_text(yaml.safe_dump(content))
    with only_input_errors():
        found = recipe_of(place / "in")
        chains({"a": found or {}, "b": {"lr": 1.0, "wd": 0.1}})
    str(ancestry_of(place / "in"))
    (place / "in" / "recipe.yaml").unlink(missing_ok=True)


@given(st.data())
def test_any_field_of_a_result_and_of_scores(place, data):
    out = place / "in"
    write_result(out, Trained("k", "digits", {"lr": 1.0}, 0.5, 0.5, 1.0,
                              made=[{"kind": "expert", "select": 0.5, "report": 0.5}]))  # fmt: skip
    file = result_file(out, "digits", "k")
    file.write_text(json.dumps(data.draw(mutated(json.loads(file.read_text())))))
    for result in read_results(out, "digits"):
        assert (result.key, result.task) == ("k", "digits")
    scores = {"select": 0.5, "report": 0.5, "shifts": {"a": {"acc": 0.1}}}
    (out / "scores.json").write_text(json.dumps(data.draw(mutated(scores))))
    assert set(read_scores(out)) <= set(scores)


class Base:
    name = "pool.base"

    def __init__(self, folder):
        self.folder = folder


def test_export_copies_named_files_and_follows_no_link_out(tmp_path):
    model, secret = tmp_path / "model", tmp_path / "secret"
    model.mkdir()
    secret.write_text("secret")
    (model / "config.json").write_text("{}")
    (model / "notes.txt").write_text("private")
    (model / "other.json").symlink_to(secret)
    assert companion_files(Base(model)) == {"config.json": b"{}"}
    (model / "vocab.json").symlink_to(secret)
    with pytest.raises(InputError, match=r"vocab.json: a link out of its folder"):
        companion_files(Base(model))
    (model / "vocab.json").unlink()
    (model / "merges.txt").mkdir()
    with pytest.raises(InputError, match="not a regular file"):
        companion_files(Base(model))


def test_export_follows_links_of_a_hub_cache(tmp_path):
    root = tmp_path / "models--a--b"
    (root / "blobs").mkdir(parents=True)
    (root / "blobs" / "x").write_text("{}")
    folder = root / "snapshots" / "rev"
    folder.mkdir(parents=True)
    (folder / "config.json").symlink_to("../../blobs/x")
    assert companion_files(Base(folder)) == {"config.json": b"{}"}


def test_nothing_that_is_there_is_overwritten(tmp_path):
    out = tmp_path / "out"
    out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is there already"):
        check_new(out)
    out.unlink()

    def late():
        with new_folder(out) as part:
            (part / "a").touch()
            out.mkdir()
            (out / "mine").touch()

    with pytest.raises(InputError, match="is there already"):
        late()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(out) == ["mine"]
