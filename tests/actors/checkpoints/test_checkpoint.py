import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.checkpoints.checkpoint import content_hash, read
from actors.families.clip.architecture import PROJECTION
from actors.families.registry import inspect
from fusion.errors import InputError
from tests.refusals import one_line

KEY = "encoder.layers.0.mlp.fc1.weight"


def refused(folder: Path, *parts: str) -> None:
    with one_line(*parts, start="pool.experts.a: "):
        inspect(str(folder), "pool.experts.a")


def prefixed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"vision_model.{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_vision_tower(tiny: Any, tmp_path: Path, prefix: bool, dtype: torch.dtype) -> None:
    tower = {name: tensor.to(dtype) for name, tensor in tiny.vision().items()}
    tiny.write(tmp_path / "a", prefixed(tower) if prefix else tower)
    checkpoint = inspect(str(tmp_path / "a"), "a")
    assert tuple(checkpoint.tensors) == tiny.vision_order
    assert not checkpoint.rest
    found = dict(read(checkpoint))
    assert tuple(found) == tiny.vision_order
    assert all(torch.equal(found[name], tower[name]) for name in tower)
    assert {tensor.dtype for tensor in found.values()} == {dtype}


def test_a_full_model(tiny: Any, tmp_path: Path) -> None:
    checkpoint = inspect(str(tiny.base(tmp_path / "base")), "pool.base")
    assert tuple(checkpoint.tensors) == (*tiny.vision_order, PROJECTION)
    assert {"logit_scale", "text_projection.weight"} <= set(checkpoint.rest)
    assert all(n.startswith(("text_", "logit_scale")) for n in checkpoint.rest)
    names = ["logit_scale", KEY]
    assert [name for name, _ in read(checkpoint, names)] == [KEY, "logit_scale"]


@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection"])
def test_what_save_pretrained_writes(tiny: Any, tmp_path: Path, kind: str) -> None:
    import transformers

    config = transformers.CLIPConfig(**json.loads(json.dumps(tiny.config)))
    model = getattr(transformers, kind)(config if kind == "CLIPModel" else config.vision_config)
    model.save_pretrained(tmp_path / "a", max_shard_size="40KB")
    assert len(list((tmp_path / "a").glob("model-*.safetensors"))) > 1
    checkpoint = inspect(str(tmp_path / "a"), "a")
    assert tuple(checkpoint.tensors)[: len(tiny.vision_order)] == tiny.vision_order
    assert (PROJECTION in checkpoint.tensors) == (kind != "CLIPVisionModel")
    state = {k.removeprefix("vision_model."): v for k, v in model.state_dict().items()}
    assert all(torch.equal(tensor, state[name]) for name, tensor in read(checkpoint))


def test_legacy_position_ids_are_set_apart(tiny: Any, tmp_path: Path) -> None:
    tower = prefixed(tiny.vision())
    tower["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    checkpoint = inspect(str(tiny.write(tmp_path / "a", tower)), "a")
    assert tuple(checkpoint.tensors) == tiny.vision_order
    assert list(checkpoint.buffers) == ["vision_model.embeddings.position_ids"]


def test_missing_tensor(tiny: Any, tmp_path: Path) -> None:
    tower = tiny.vision()
    del tower[KEY]
    refused(tiny.write(tmp_path / "a", tower), "model.safetensors", repr(KEY), "missing")


def test_unknown_tensor(tiny: Any, tmp_path: Path) -> None:
    tower = tiny.vision() | {"classifier.weight": torch.zeros(2, 2)}
    refused(tiny.write(tmp_path / "a", tower), "'classifier.weight'", "not part of a CLIP model")


def test_a_layer_more_than_the_configuration_says(tiny: Any, tmp_path: Path) -> None:
    extra = KEY.replace("0", "7")
    tower = tiny.vision() | {extra: torch.zeros(48, 32)}
    refused(tiny.write(tmp_path / "a", tower), repr(extra))


def test_mis_shaped_tensor(tiny: Any, tmp_path: Path) -> None:
    tower = tiny.vision() | {KEY: torch.zeros(48, 31)}
    refused(tiny.write(tmp_path / "a", tower), repr(KEY), "[48, 31]", "[48, 32]")


def test_integer_weights(tiny: Any, tmp_path: Path) -> None:
    tower = tiny.vision() | {KEY: torch.zeros(48, 32, dtype=torch.int8)}
    refused(tiny.write(tmp_path / "a", tower), repr(KEY), "int8", "floating point")


def test_an_integer_in_the_text_tower(tiny: Any, tmp_path: Path) -> None:
    name = "text_projection.weight"
    codes = torch.zeros(tiny.state[name].shape)
    folder = tiny.base(tmp_path / "a", torch.float32, **{name: codes})
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name: codes.to(torch.int8)}, folder / "model.safetensors")
    refused(folder, repr(name), "int8", "floating point")


def test_a_name_twice(tiny: Any, tmp_path: Path) -> None:
    tower = tiny.vision()
    tower |= {f"vision_model.{KEY}": tower[KEY] + 1}
    refused(tiny.write(tmp_path / "a", tower), repr(KEY), "twice")


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-10], lambda b: b[:100], lambda b: b"", lambda b: b"x" * 500]
)
def test_damaged_file(tiny: Any, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    folder = tiny.write(tmp_path / "a", tiny.vision())
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    refused(folder, str(file), "truncated or not a safetensors file")


def test_no_configuration(tiny: Any, tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "a", tiny.vision())
    (folder / "config.json").unlink()
    refused(folder, "config.json: missing")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json: not JSON")
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    refused(folder, "model_type 'gpt2'", "clip_vision_model")


def test_no_weights_and_pickles(tiny: Any, tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "a", tiny.vision())
    (folder / "model.safetensors").unlink()
    refused(folder, "no model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    refused(
        folder,
        "pytorch_model.bin is a pickle",
        f"CLIPVisionModel.from_pretrained('{folder}').save_pretrained(",
    )


@pytest.fixture
def sharded(tiny: Any, tmp_path: Path) -> Path:
    """Two shards and an index."""
    folder: Path = tiny.write(tmp_path / "a", tiny.vision())
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(tensors)
    halves = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    where = {name: file for file, part in halves.items() for name in part}
    write_index(folder, where)
    return folder


def write_index(folder: Path, where: object) -> None:
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def read_index(folder: Path) -> dict[str, str]:
    where: dict[str, str] = json.loads((folder / "model.safetensors.index.json").read_text())[
        "weight_map"
    ]
    return where


def test_shards(tiny: Any, sharded: Path) -> None:
    checkpoint = inspect(str(sharded), "a")
    assert tuple(checkpoint.tensors) == tiny.vision_order
    assert len(checkpoint.files) == 2
    assert all(torch.equal(t, tiny.vision()[name]) for name, t in read(checkpoint))


def test_missing_shard(sharded: Path) -> None:
    (sharded / "two.safetensors").unlink()
    refused(sharded, "two.safetensors: missing")


def test_an_index_that_lies(sharded: Path) -> None:
    where = read_index(sharded)
    write_index(sharded, where | {KEY: "one.safetensors", KEY[:-1]: "two.safetensors"})
    refused(sharded, "safetensors: tensor", "the index")
    write_index(sharded, {name: file for name, file in where.items() if name != KEY})
    refused(sharded, repr(KEY), "not in the index")
    write_index(sharded, where | {KEY: "../one.safetensors"})
    refused(sharded, "'../one.safetensors'")
    write_index(sharded, [1])
    refused(sharded, "index.json: not an index")


def test_changed_while_in_use(tiny: Any, tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "a", tiny.vision())
    checkpoint = inspect(str(folder), "a")
    tiny.write(folder, tiny.vision() | {KEY: torch.zeros(3)})
    with pytest.raises(InputError, match="changed while in use"):
        dict(read(checkpoint))


def test_content_hash(tiny: Any, tmp_path: Path) -> None:
    one = inspect(str(tiny.expert(tmp_path / "one", seed=1)), "a")
    same = inspect(str(tiny.expert(tmp_path / "same", seed=1)), "b")
    other = inspect(str(tiny.expert(tmp_path / "other", seed=2)), "c")
    assert content_hash(one) == content_hash(same) != content_hash(other)
