"""Recipes rebuild a row as a model that transformers loads, to the bit."""

import shutil

import pytest
import torch
import yaml

from actors.experts import Recipe as What
from actors.experts import merged
from actors.pool import open_pool, task_vectors
from fusion.errors import InputError
from sweeps import recipe
from tests.fusion.laws import assert_same_bits


@pytest.fixture
def pool(tiny_pool):
    root = tiny_pool.root
    experts = {task: str(root / "experts" / task) for task in ("lines", "tones")}
    return open_pool(str(root / "base"), experts)


@pytest.fixture
def written(pool, tmp_path):
    return recipe.write(tmp_path / "recipes", "ties", pool, {"density": 0.5}, "s", {"value": 0.9})


def test_an_export_is_the_merge_and_transformers_loads_it(written, pool, tmp_path, tiny_pool):
    from transformers import CLIPModel, CLIPProcessor

    recipe.export(written, tmp_path / "out")
    model, info = CLIPModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    wanted = merged(task_vectors(pool), What("ties", {"density": 0.5}))
    found = model.vision_model.state_dict()
    assert_same_bits({name: found[name] for name in wanted}, wanted)
    base = CLIPModel.from_pretrained(tiny_pool.root / "base")
    for name, tensor in base.text_model.state_dict().items():
        assert torch.equal(model.text_model.state_dict()[name], tensor)
    assert CLIPProcessor.from_pretrained(tmp_path / "out") is not None
    assert (tmp_path / "out" / "recipe.yaml").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_an_ingredient_that_changed_is_refused(pool, tmp_path, tiny_pool):
    moved = tmp_path / "tones"
    shutil.copytree(tiny_pool.root / "experts" / "tones", moved)
    changed = open_pool(str(tiny_pool.root / "base"), {"tones": str(moved)})
    path = recipe.write(tmp_path, "ties", changed, {}, "s", {})
    shutil.copy(tiny_pool.root / "experts" / "lines" / "model.safetensors", moved)
    with pytest.raises(InputError, match=r"tones: .* has changed: sha256"):
        recipe.export(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_there_is_no_model_to_build_of_an_ensemble(pool, tmp_path):
    path = recipe.write(tmp_path, "ensemble", pool, {}, "s", {})
    with pytest.raises(InputError, match="fuses logits; there is no single model to build"):
        recipe.export(path, tmp_path / "out")


def test_a_folder_that_is_there_is_not_overwritten(written, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="is there already"):
        recipe.export(written, tmp_path / "out")


def test_a_file_that_is_no_recipe(written, tmp_path):
    content = yaml.safe_load(written.read_text())
    for broken in ({**content, "surplus": 1}, {"method": "ties"}, "text", None):
        path = tmp_path / "broken.yaml"
        path.write_text(yaml.safe_dump(broken))
        with pytest.raises(InputError, match=r"broken\.yaml: not a recipe"):
            recipe.load(path)
