"""Recipes rebuild a row as a model that transformers loads, to the bit."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from actors.artifacts.coding_file import dump_coding
from actors.artifacts.recipe import Recipe as What
from actors.artifacts.statistics_file import place, write
from actors.checkpoints.checkpoint import read
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.experts.recipe import merged
from actors.families.clip.segments import clip_segments
from actors.files.cache_dir import cache_dir
from actors.pool.pool import open_pool, task_vectors
from fusion.errors import InputError
from fusion.kinds import MergeInputs
from fusion.registry import METHODS
from sweeps.results import recipe
from sweeps.results.export import from_recipe
from sweeps.results.export.from_recipe import export
from tests.fusion.laws import assert_same_bits

IDS = "vision_model.embeddings.position_ids"


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

    export(written, tmp_path / "out")
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


def test_others_may_read_an_export(written, tmp_path):
    export(written, tmp_path / "out")
    mode = (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o777
    (tmp_path / "plain").touch()
    assert mode == (tmp_path / "plain").stat().st_mode & 0o777


@pytest.mark.parametrize(
    ("file", "field", "value", "what"),
    [
        ("preprocessor_config.json", "image_mean", [0.1, 0.2, 0.3], "preprocessing"),
        ("preprocessor_config.json", "rescale_factor", 0.01, "preprocessing"),
        ("tokenizer.json", "padding", None, "tokenizer"),
    ],
)
def test_an_export_is_refused_once_what_decides_the_row_has_changed(
    pool, tmp_path, file, field, value, what
):
    base = tmp_path / "base"
    shutil.copytree(pool.base.folder, base)
    experts = {task: str(expert.folder) for task, expert in pool.experts.items()}
    changed = open_pool(str(base), experts)
    written = recipe.write(tmp_path / "recipes", "ties", changed, {}, "s", {})
    content = json.loads((base / file).read_text())
    assert content.get(field, 0) != value
    (base / file).write_text(json.dumps({**content, field: value}))
    with pytest.raises(InputError, match=f"its {what} has changed since the recipe"):
        export(written, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    old = yaml.safe_load(written.read_text())
    del old["preprocessing"], old["tokenizer"]  # as earlier versions wrote recipes
    written.write_text(yaml.safe_dump(old))
    export(written, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_one_model_a_task_is_one_folder_a_task(pool, tmp_path):
    written = recipe.write(tmp_path / "recipes", "emr", pool, {}, "s", {})
    export(written, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["lines", "tones"]
    vectors = task_vectors(pool)
    for task in pool.tasks:
        wanted = METHODS["emr"].merge(vectors, MergeInputs(task=task))
        found = open_pool(str(tmp_path / "out" / task), {"it": str(tmp_path / "out" / task)})
        assert_same_bits({n: t for n, t in read(found.base, wanted)}, wanted)


def test_models_a_task_are_there_all_or_none(pool, tmp_path, monkeypatch):
    written = recipe.write(tmp_path / "recipes", "emr", pool, {}, "s", {})
    done, real = [], from_recipe.merged

    def fails(vectors, what):
        if done:
            raise InputError("an expert is gone")
        done.append(what)
        return real(vectors, what)

    monkeypatch.setattr(from_recipe, "merged", fails)
    with pytest.raises(InputError, match="an expert is gone"):
        export(written, tmp_path / "out")
    assert len(done) == 1
    assert left(tmp_path) == []


def test_an_ingredient_that_changed_is_refused(pool, tmp_path, tiny_pool):
    moved = tmp_path / "tones"
    shutil.copytree(tiny_pool.root / "experts" / "tones", moved)
    changed = open_pool(str(tiny_pool.root / "base"), {"tones": str(moved)})
    path = recipe.write(tmp_path, "ties", changed, {}, "s", {})
    shutil.copy(tiny_pool.root / "experts" / "lines" / "model.safetensors", moved)
    with pytest.raises(InputError, match=r"tones: .* has changed: sha256"):
        export(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_beta_goes_into_the_head_of_an_export(pool, tmp_path, tiny_pool):
    """Oracle 7 of soups: β folded into the head keeps every answer, and the NLL it had outside."""
    beta, coding = 2.5, torch.tensor([0.75, 0.25]).view(1, 2, 1)
    (tmp_path / "x").write_bytes(data := dump_coding(coding, pool.tasks, pool.groups, beta))
    written = recipe.write(tmp_path, "learned_soup", pool, {}, "s", {}, tmp_path / "x")
    export(written, tmp_path / "out")
    again = open_pool(str(tmp_path / "out"), {"it": str(tmp_path / "out")})
    tasks = {"lines": open_task(TaskSource("lines", str(tiny_pool.root / "data" / "lines")))}

    def logits(pool, what):
        data = prepare_data(pool.base, tasks, Splits(), ["report"], cache_dir())
        experts = local_experts(pool, data, EmbeddingCache(tmp_path / what.method, {}))
        return experts.logits(what, "report")["lines"], experts.runner.labels("lines", "report")

    plain, labels = logits(pool, What("weighted_average", {"weights": [0.75, 0.25]}))
    folded, _ = logits(again, What("simple_average"))
    outside, _ = logits(pool, What("learned_soup", {}, data))
    torch.testing.assert_close(folded, beta * plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(folded.argmax(1), plain.argmax(1))
    nll = torch.nn.functional.cross_entropy(beta * plain.double(), labels)
    for z in (folded, outside):
        torch.testing.assert_close(
            torch.nn.functional.cross_entropy(z.double(), labels), nll, rtol=1e-5, atol=0
        )
    assert abs(torch.nn.functional.cross_entropy(plain.double(), labels) - nll) > 1e-3


def halved(source, folder, sign=1):
    """A checkpoint in float16, with an integer buffer as old files have one."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    half = {name: tensor.half() for name, tensor in tensors.items()}
    half[IDS] = torch.arange(5)[None] * sign
    save_file(half, folder / "model.safetensors", {"format": "pt"})
    return half


def test_half_precision_is_summed_in_float32_and_written_as_it_came(tmp_path, tiny_pool):
    """Oracle 13 of soups: integer buffers preserved; float16 accumulates in float32; dtypes of
    the exported file's header."""
    root, names = tiny_pool.root, ("lines", "tones", "blobs")
    halved(root / "base", tmp_path / "base")
    states = [halved(root / "experts" / name, tmp_path / name) for name in names]
    pool = open_pool(str(tmp_path / "base"), {name: str(tmp_path / name) for name in names})
    export(recipe.write(tmp_path, "simple_average", pool, {}, "s", {}), tmp_path / "out")
    before = headers(tmp_path / "base" / "model.safetensors")
    assert headers(tmp_path / "out" / "model.safetensors") == before
    assert before[IDS] == ("I64", [1, 5])
    assert {dtype for name, (dtype, _) in before.items() if name != IDS} == {"F16"}
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found[IDS], torch.arange(5)[None])
    naive = 0.0
    for name in states[0].keys() - {IDS}:
        mean = torch.stack([state[name].double() for state in states]).mean(0)
        ulp = 2.0**-11 * mean.abs().clamp(min=2.0**-14) * 1.001
        assert bool(((found[name].double() - mean).abs() <= ulp).all()), name
        running = (states[0][name] + states[1][name] + states[2][name]) / 3
        naive = max(naive, float(((running.double() - mean).abs() / ulp).max()))
    assert naive > 1.2  # sums in float16 would have failed


def test_integer_buffers_that_differ_are_refused(tmp_path, tiny_pool):
    halved(tiny_pool.root / "base", tmp_path / "base")
    halved(tiny_pool.root / "experts" / "lines", tmp_path / "lines", sign=2)
    with pytest.raises(InputError, match=r"position_ids"):
        task_vectors(open_pool(str(tmp_path / "base"), {"lines": str(tmp_path / "lines")}))


def headers(path):
    """Name -> (dtype, shape), as the file's header has them."""
    size = int.from_bytes(path.read_bytes()[:8], "little")
    content = json.loads(path.read_bytes()[8 : 8 + size])
    content.pop("__metadata__")
    return {name: (about["dtype"], about["shape"]) for name, about in content.items()}


def test_there_is_no_model_to_build_of_an_ensemble(pool, tmp_path):
    path = recipe.write(tmp_path, "ensemble", pool, {}, "s", {})
    with pytest.raises(InputError, match="fuses logits; there is no single model to build"):
        export(path, tmp_path / "out")


def test_a_folder_that_is_there_is_not_overwritten(written, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="is there already"):
        export(written, tmp_path / "out")


def test_a_file_that_is_no_recipe(written, tmp_path):
    content = yaml.safe_load(written.read_text())
    for broken in ({**content, "surplus": 1}, {"method": "ties"}, "text", None):
        path = tmp_path / "broken.yaml"
        path.write_text(yaml.safe_dump(broken))
        with pytest.raises(InputError, match=r"broken\.yaml: not a recipe"):
            recipe.load(path)


KEYS = ("ab" * 16, "cd" * 16)
"""Of the two experts' statistics."""


@pytest.fixture
def informed(pool, tmp_path, monkeypatch):
    """A recipe of `fisher`, and its statistics in a cache of its own."""
    monkeypatch.setenv("FUSION_SWEEPS_CACHE", str(tmp_path / "cache"))
    for at, segment in enumerate(clip_segments(pool.base)):
        names = [name for name in segment.names.values() if name in pool.groups]
        found = {name: torch.ones(pool.base.tensors[name].shape) for name in names}
        for key in KEYS:
            write(place(key, at), found, {name: name for name in names})
    return recipe.write(tmp_path, "fisher", pool, {}, "swept", {}, statistics=KEYS)


def left(tmp_path):
    """What an export left behind."""
    return [p.name for p in tmp_path.iterdir() if "out" in p.name]


def test_an_export_reads_the_statistics_that_its_recipe_names(informed, pool, tmp_path):
    export(informed, tmp_path / "out")
    found = open_pool(str(tmp_path / "out"), {"it": str(tmp_path / "out")}).base
    mean = METHODS["simple_average"].merge(task_vectors(pool))  # all weights are equal
    for name, tensor in read(found, mean):
        torch.testing.assert_close(tensor, mean[name], rtol=1e-5, atol=1e-6)


def test_an_export_whose_statistics_are_gone_is_one_line(informed, tmp_path):
    gone = place(KEYS[1], 2)
    gone.unlink()
    with pytest.raises(InputError) as error:
        export(informed, tmp_path / "out")
    assert str(error.value) == (
        f"{informed}: statistics: {gone}: not in this machine's cache; they are of data,"
        " so run the sweep 'swept' here (--resume), then export"
    )
    content = yaml.safe_load(informed.read_text())
    del content["statistics"]
    informed.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="statistics: none named: not in this machine's cache"):
        export(informed, tmp_path / "out")
    assert left(tmp_path) == []


def test_an_export_whose_statistics_are_damaged_is_one_line(informed, tmp_path):
    path = place(KEYS[1], 1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"^[^\n]+-1\.safetensors: damaged statistics \([^\n]+$"):
        export(informed, tmp_path / "out")
    assert left(tmp_path) == []
