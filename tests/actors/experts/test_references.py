"""Finished models beside a pool: evaluated as they are, whole or cut into shards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from actors.artifacts.recipe import Recipe
from actors.data.task import Splits, TaskSource, open_task
from actors.data.task_rows import TaskData
from actors.experts.embedding_cache import embedding_cache
from actors.experts.local import LocalExperts, local_experts
from actors.experts.prepare_data import prepare_data
from actors.experts.requests import Time
from actors.families.registry import inspect
from actors.pool.merge_folders import open_folders
from actors.pool.pool import Pool, open_pool
from actors.pool.reference_models import load_references
from actors.pool.vectors_in_memory import unflatten
from fusion.errors import InputError
from fusion.kinds import MergeInputs
from fusion.registry import METHODS
from tests.actors.checkpoints.adapter_folders import write_adapter
from tests.tiny_bert import make_models
from tests.tiny_pool import TinyPool

NAMES = ("lines", "tones")
BLOCKS = ((None,), ((0, 2), (2, 4)))


def written(folder: Path, base: Path, tensors: Mapping[str, Tensor]) -> Path:
    """A copy of the base's folder with these weights."""
    shutil.copytree(base, folder)
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def folders(tiny_pool: TinyPool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Reference -> its folder: a merge, an expert, the base, an adapter of the base."""
    root, place = tiny_pool.root, tmp_path_factory.mktemp("references")
    experts = {name: str(root / "experts" / name) for name in NAMES}
    opened = open_folders(str(root / "base"), experts)
    merged = opened.complete(METHODS["simple_average"].merge(opened.vectors, MergeInputs()))
    found = {
        "averaged": written(place / "averaged", root / "base", merged),
        "twin": shutil.copytree(root / "experts" / "tones", place / "twin"),
        "start": root / "base",
        "adapter": write_adapter(place / "adapter", root / "base", seed=3),
    }
    return {name: str(folder) for name, folder in found.items()}


def opened(root: Path, references: Mapping[str, str]) -> Pool:
    experts = {name: str(root / "experts" / name) for name in NAMES}
    return open_pool(str(root / "base"), experts, references)


@pytest.fixture(scope="module")
def data(tiny_pool: TinyPool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TaskData]:
    root = tiny_pool.root
    # `blobs` has no expert here: a reference is measured on it, too.
    tasks = {n: open_task(TaskSource(n, str(root / "data" / n))) for n in (*NAMES, "blobs")}
    base = inspect(str(root / "base"), "base")
    cache = tmp_path_factory.mktemp("rows")
    return prepare_data(base, tasks, Splits(), ["select", "report"], cache, unseen=("blobs",))


@pytest.fixture(scope="module", params=BLOCKS, ids=("whole", "cut"))
def experts(
    request: pytest.FixtureRequest,
    tiny_pool: TinyPool,
    folders: dict[str, str],
    data: dict[str, TaskData],
    tmp_path_factory: pytest.TempPathFactory,
) -> LocalExperts:
    pool = opened(tiny_pool.root, folders)
    cache = embedding_cache(tmp_path_factory.mktemp("embeddings"), pool, "cpu", {})
    return local_experts(pool, data, cache, blocks=request.param)


def test_a_merge_of_another_tool_has_the_rows_bits(experts: LocalExperts) -> None:
    for role, tasks in (("select", NAMES), ("report", (*NAMES, "blobs"))):
        wanted = experts.logits(Recipe("simple_average"), role)
        found = experts.logits(Recipe("averaged"), role)
        assert found.keys() == wanted.keys() == {*tasks}
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert (
        experts.evaluate(Recipe("averaged"), "report").metrics()
        == experts.evaluate(Recipe("simple_average"), "report").metrics()
    )


def test_an_expert_has_its_own_numbers(experts: LocalExperts) -> None:
    own = experts.logits(Recipe("experts"), "report")["tones"]
    assert torch.equal(experts.logits(Recipe("twin"), "report")["tones"], own)
    everywhere = experts.expert_scores("report")["tones"]
    found = experts.evaluate(Recipe("twin"), "report")
    assert found.scores["blobs"].accuracy == everywhere["blobs"]["acc"]
    base = experts.logits(Recipe("pretrained"), "report")
    start = experts.logits(Recipe("start"), "report")
    assert all(torch.equal(start[name], base[name]) for name in base)


def test_rows_stay_as_they_are_after_a_reference(experts: LocalExperts) -> None:
    recipe = Recipe("ties", {"density": 0.3})
    before = experts.logits(recipe, "report")
    for name in ("averaged", "adapter", "averaged"):
        experts.evaluate(Recipe(name), "report")
    after = experts.logits(recipe, "report")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_weights_are_the_files(
    experts: LocalExperts, tiny_pool: TinyPool, folders: dict[str, str]
) -> None:
    file = load_file(Path(folders["averaged"]) / "model.safetensors")
    merged = experts.merge(Recipe("averaged"))
    assert len(merged) > 20
    for name, tensor in merged.items():
        assert torch.equal(tensor, file[f"vision_model.{name}"]), name


def test_an_adapter_is_the_base_and_its_product(
    experts: LocalExperts, tiny_pool: TinyPool, folders: dict[str, str]
) -> None:
    """θ = θ₀ + (α/r)·BA, in float64."""
    base = load_file(tiny_pool.root / "base" / "model.safetensors")
    low = load_file(Path(folders["adapter"]) / "adapter_model.safetensors")
    merged = experts.merge(Recipe("adapter"))
    key = "encoder.layers.0.self_attn.q_proj"
    start = f"base_model.model.vision_model.{key}.lora_"
    product = 2 * low[f"{start}B.weight"].double() @ low[f"{start}A.weight"].double()
    wanted = base[f"vision_model.{key}.weight"].double() + product
    torch.testing.assert_close(merged[f"{key}.weight"].double(), wanted)
    assert torch.equal(merged[f"{key}.bias"], base[f"vision_model.{key}.bias"])


def test_a_reference_is_timed_as_one_model(experts: LocalExperts) -> None:
    found = Time(Recipe("averaged"), "report").run(experts)
    assert found.merge_s is None
    assert 0 < found.input_s < 60


def test_only_models_of_their_own_are_loaded(tiny_pool: TinyPool, folders: dict[str, str]) -> None:
    pool = opened(tiny_pool.root, folders)
    assert pool.members_of == {
        "averaged": None, "twin": "tones", "start": "pretrained", "adapter": None,
    }  # fmt: skip
    loaded = load_references(pool)
    assert set(loaded) == {"averaged", "adapter"}
    part = [name for name in pool.names if "layers.1" in name]
    assert set(unflatten(load_references(pool, only=part)["averaged"]).base) == set(part)
    assert opened(tiny_pool.root, {}).members_of == {}


def test_half_precision_is_kept(tiny_pool: TinyPool, tmp_path: Path) -> None:
    root = tiny_pool.root
    halved = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(root / "base" / "model.safetensors").items()
    }
    folder = written(tmp_path / "half", root / "base", halved)
    found = unflatten(load_references(opened(root, {"half": str(folder)}))["half"]).base
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}


def changed(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path, Path], None]:
    """A fault: the base's tensors, changed."""

    def write(folder: Path, base: Path) -> None:
        tensors = load_file(base / "model.safetensors")
        change(tensors)
        written(folder, base, tensors)

    return write


def another_size(folder: Path, base: Path) -> None:
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))


BAD = {
    "no such folder": (lambda folder, base: None, r"references\.bad: '.*': no such folder"),
    "another architecture": (another_size, r"references\.bad: .*"),
    "a broken number": (
        changed(lambda t: t["vision_model.post_layernorm.bias"].fill_(float("nan"))),
        r"references\.bad: .*model\.safetensors: tensor 'post_layernorm\.bias': .*NaN",
    ),
    "another text tower": (
        changed(lambda t: t["text_model.final_layer_norm.bias"].add_(1)),
        r"references\.bad: .*text_model\.final_layer_norm\.bias': differs from the base's",
    ),
    "another projection": (
        changed(lambda t: t["visual_projection.weight"].add_(1)),
        r"references\.bad: .*'visual_projection\.weight': differs from the base's; it is fused only"
        " where an expert has its own",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_models_that_do_not_fit_are_refused_by_name(
    fault: str, tiny_pool: TinyPool, tmp_path: Path
) -> None:
    write, message = BAD[fault]
    write(tmp_path / "bad", tiny_pool.root / "base")
    with pytest.raises(InputError, match=message) as refused:
        load_references(opened(tiny_pool.root, {"bad": str(tmp_path / "bad")}))
    assert "\n" not in str(refused.value)


def test_another_family_is_refused(tiny_pool: TinyPool, tmp_path: Path) -> None:
    bert = make_models(tmp_path)["bert"].write(tmp_path / "bert")
    with pytest.raises(InputError, match=r"references\.bad: .*: a bert model; the base is clip"):
        opened(tiny_pool.root, {"bad": str(bert)})


def test_a_classifier_that_no_task_would_use_is_refused(tmp_path: Path) -> None:
    """Outputs of BERT's encoder are read by the classifiers of the experts."""
    bert = make_models(tmp_path)["bert"]
    base = str(bert.write(tmp_path / "base", encoder=True))
    experts = {name: str(bert.write(tmp_path / name, seed)) for seed, name in ((1, "a"), (2, "b"))}
    encoder = str(bert.write(tmp_path / "encoder", 3, encoder=True))
    whole = str(bert.write(tmp_path / "whole", 4))
    assert load_references(open_pool(base, experts, {"mtl": encoder})).keys() == {"mtl"}
    with pytest.raises(InputError, match=r"references\.mtl: .*has a classifier of its own"):
        open_pool(base, experts, {"mtl": whole})
    # Where classifiers are fused, a reference has one as the base does.
    fused = str(bert.write(tmp_path / "fused", 5))
    assert open_pool(whole, {"a": fused}, {"mtl": experts["a"]}).members_of == {"mtl": None}
