"""Recipes of ingredients, and chains that differ in one number."""

import pytest

from fusion.errors import InputError
from sweeps.results.ingredient_recipes import chains, recipe_of


def test_a_recipe_is_read(tmp_path):
    assert recipe_of(tmp_path) is None
    (tmp_path / "recipe.yaml").write_text(
        "kind: ema\nparams: {learning_rate: 1.0e-5, epochs: 4}\nseed: 3\n"
    )
    assert recipe_of(tmp_path) == {"learning_rate": 1e-5, "epochs": 4, "kind": "ema"}


@pytest.mark.parametrize("text", ["params: [1]", "1", "seed: 3", "params: {a", "{a: : b"])
def test_what_is_no_recipe_is_named(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError, match="not the recipe of an ingredient") as caught:
        recipe_of(tmp_path)
    assert str(tmp_path / "recipe.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_chains_by_hand():
    pool = {
        "high": {"lr": 1e-3, "wd": 0.1, "aug": "flip", "seed": 1},
        "low": {"lr": 1e-5, "wd": 0.1, "aug": "flip", "seed": 2},
        "middle": {"lr": 1e-4, "wd": 0.1, "aug": "flip", "seed": 3},
        "again": {"lr": 1e-4, "wd": 0.1, "aug": "flip", "seed": 4},
        "decayed": {"lr": 1e-5, "wd": 0.0, "aug": "flip", "seed": 5},
        "other": {"lr": 1e-2, "wd": 0.1, "aug": "none", "ema": True},
    }
    found = {chain.hyperparameter: chain for chain in chains(pool)}
    assert set(found) == {"lr", "wd"}
    assert found["lr"].names == ("low", "middle", "high")
    assert found["lr"].values == (1e-5, 1e-4, 1e-3)
    assert found["lr"].fixed == "aug=flip wd=0.1"
    assert found["wd"].names == ("decayed", "low")
    assert chains({"one": {"lr": 1.0}}) == []


def test_what_is_the_same_everywhere_is_not_said():
    pool = {"a": {"lr": 1.0, "wd": 0.1, "kind": "run"}, "b": {"lr": 2.0, "wd": 0.1, "kind": "run"}}
    (chain,) = chains(pool)
    assert (chain.hyperparameter, chain.fixed) == ("lr", "")
    pool |= {"c": {"lr": 2.0, "wd": 0.1, "kind": "ema"}, "d": {"lr": 3.0, "wd": 0.1, "kind": "ema"}}
    assert [(c.names, c.fixed) for c in chains(pool)] == [
        (("c", "d"), "kind=ema"), (("a", "b"), "kind=run"),
    ]  # fmt: skip
