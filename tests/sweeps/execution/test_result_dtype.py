"""What a fused model is rounded to: measured as exported, and as asked for."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from actors.artifacts.coding_file import dump_coding
from actors.artifacts.recipe import Recipe as What
from actors.checkpoints.checkpoint import read
from actors.cluster.planner import Node, Resources
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.pool.pool import open_pool
from fusion.errors import InputError
from sweeps.planning.prepare import prepare
from sweeps.planning.print_plan import rounding, stored
from sweeps.results import recipe
from sweeps.results.export.from_recipe import export, known_pool
from sweeps.spec.sweep import spec_hash, validate

NAMES = ("lines", "tones")
DTYPES = {"base": torch.bfloat16, "float32": torch.float32}


@pytest.fixture(scope="module")
def narrow(tiny_pool, tmp_path_factory):
    """The tiny base in bfloat16; its experts stay in float32."""
    folder = tmp_path_factory.mktemp("narrow") / "base"
    shutil.copytree(tiny_pool.root / "base", folder)
    tensors = load_file(folder / "model.safetensors")
    kinds = {k: v.bfloat16() if v.is_floating_point() else v for k, v in tensors.items()}
    save_file(kinds, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = config["vision_config"]["dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def pool(narrow, tiny_pool):
    return open_pool(str(narrow), {name: str(tiny_pool.root / "experts" / name) for name in NAMES})


@pytest.fixture
def data(pool, tiny_pool, own_cache):
    tasks = {n: open_task(TaskSource(n, str(tiny_pool.root / "data" / n))) for n in NAMES}
    return prepare_data(pool.base, tasks, Splits(), ["select"], own_cache)


def truth(pool, scale: float) -> dict[str, torch.Tensor]:
    """Task arithmetic in float64, from the files."""
    names = list(pool.names)
    base = dict(read(pool.base, names))
    found = {name: tensor.double() for name, tensor in base.items()}
    for expert in pool.experts.values():
        for name, tensor in read(expert, [n for n in names if n in expert.tensors]):
            found[name] += scale * (tensor.double() - base[name].double())
    return found


def exported(path, out):
    export(path, out)
    tensors = load_file(out / "model.safetensors")
    return tensors, {key.removeprefix("vision_model."): tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize("results", DTYPES)
def test_an_export_is_the_merge_rounded_once(results, pool, tmp_path):
    path = recipe.write(
        tmp_path, "task_arithmetic", pool, {"scale": 0.4}, "s", {}, result_dtype=results
    )
    _, found = exported(path, tmp_path / "out")
    for name, wanted in truth(pool, 0.4).items():
        assert found[name].dtype == DTYPES[results], name
        if results == "float32":
            torch.testing.assert_close(found[name].double(), wanted, rtol=1e-6, atol=1e-7)
        else:  # to the nearest, but where float32's own rounding is at a tie
            off = (found[name] != wanted.to(torch.bfloat16)).double().mean()
            assert float(off) < 1e-3, name


CASES = [
    ("task_arithmetic", {"scale": 0.4}),
    ("greedy_soup", {}),
    *(
        pytest.param(name, params, marks=pytest.mark.slow)
        for name, params in (
            ("ties", {"density": 0.4}), ("simple_average", {}), ("dare", {}), ("tsv_m", {}),
            ("pretrained", {}),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("results", DTYPES)
@pytest.mark.parametrize(("name", "params"), CASES)
def test_what_is_measured_is_what_is_exported(name, params, results, compute, pool, data, tmp_path):
    """The resident model holds the exported one's bits, in the dtype that it computes in."""
    learned, file = None, None
    if name == "greedy_soup":  # a chosen coding: rebuilt tensor by tensor from the files
        learned = dump_coding(torch.tensor([[[0.25], [0.6]]]), NAMES, ("w",))
        (file := tmp_path / "learned").write_bytes(learned)
    kept = EmbeddingCache(tmp_path / "e", {key: key for key in (*NAMES, "pretrained")})
    experts = local_experts(pool, data, kept, dtype=compute, results=results)
    experts.logits(What(name, params, learned), "select")
    (shard,) = experts.runner.pipeline.shards
    path = recipe.write(tmp_path, name, pool, params, "s", {}, file, result_dtype=results)
    _, found = exported(path, tmp_path / "out")
    for key in pool.names:
        assert torch.equal(shard.resident.arena[key], found[key].to(compute)), key


def test_experts_themselves_are_not_rounded(pool, data, tmp_path):
    kept = EmbeddingCache(tmp_path / "e", {key: key for key in (*NAMES, "pretrained")})
    experts = local_experts(pool, data, kept)
    experts.embed("tones", "select")
    (shard,) = experts.runner.pipeline.shards
    for key, tensor in read(pool.experts["tones"], list(pool.experts["tones"].tensors)):
        if key in pool.names:
            torch.testing.assert_close(shard.resident.arena[key], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("results", DTYPES)
def test_an_exported_folder_says_its_dtype(results, pool, tmp_path):
    from transformers import CLIPModel

    path = recipe.write(tmp_path, "simple_average", pool, {}, "s", {}, result_dtype=results)
    assert recipe.load(path).result_dtype == results
    tensors, _ = exported(path, tmp_path / "out")
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {DTYPES[results]}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    wanted = str(DTYPES[results]).removeprefix("torch.")
    assert config["dtype"] == config["vision_config"]["dtype"] == wanted
    model = CLIPModel.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == DTYPES[results]
    assert torch.equal(model.text_projection.weight, tensors["text_projection.weight"])


def test_old_recipes_and_wrong_ones(pool, tmp_path):
    path = recipe.write(tmp_path, "simple_average", pool, {}, "s", {})
    content = yaml.safe_load(path.read_text())
    del content["result_dtype"]
    path.write_text(yaml.safe_dump(content))
    assert recipe.load(path).result_dtype == "base"
    path.write_text(yaml.safe_dump({**content, "result_dtype": "float8"}))
    with pytest.raises(InputError, match="result_dtype"):
        recipe.load(path)


def spec_of(tiny_pool, narrow, **placement):
    content = tiny_pool.spec(placement=placement)
    content["pool"]["base"] = str(narrow)
    return validate(content, "s.yaml")


def test_the_plan_says_it_and_keys_depend_on_it(tiny_pool, narrow, tmp_path):
    found = {}
    for base in (narrow, tiny_pool.root / "base"):
        for results in DTYPES:
            spec = spec_of(tiny_pool, base, result_dtype=results)
            prepared = prepare(spec, tmp_path, Resources((Node(2, 0, 10**11),)))
            found[base.parent == narrow.parent, results] = prepared, rounding(prepared)
    assert found[True, "base"][1] == (
        "results are rounded to bfloat16, the base's dtype: placement.result_dtype"
    )
    assert "float32, the base is bfloat16" in found[True, "float32"][1]
    assert found[False, "base"][1] == found[False, "float32"][1] == ""
    spec = spec_of(tiny_pool, tiny_pool.root / "base", delta_dtype="bfloat16")
    prepared = prepare(spec, tmp_path, Resources((Node(2, 0, 10**11),)))
    assert stored(prepared) == "task vectors are bfloat16: placement.delta_dtype"
    assert (rounding(prepared), stored(found[True, "base"][0])) == ("", "")
    path = recipe.write(tmp_path, "simple_average", prepared.pool, {}, "s", {})
    assert known_pool(recipe.load(path), path).deltas == "bfloat16"
    one, two = (found[True, results][0] for results in DTYPES)
    assert one.context() != two.context()
    assert spec_hash(one.spec) != spec_hash(two.spec)
