"""Model folders: damaged headers, indices and configurations are refused, or change nothing."""

import copy
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from actors.checkpoints.checkpoint import read
from actors.data.images.preprocessor_config import read_convnext, read_preprocess
from actors.families.clip.build import check_towers
from actors.gate_features.extractor import open_extractor
from actors.pool.pool import load_flat, open_pool, unflatten
from tests.actors.checkpoints.adapter_folders import write_adapter
from tests.actors.conftest import tiny as tiny
from tests.fuzz.damage import altered, mutated, only_input_errors
from tests.sweeps.learning_pool import make_extractor

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSION_SWEEPS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folders(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a full expert, an expert in two shards, an adapter, an extractor."""
    root = tmp_path_factory.mktemp("models")
    tiny.base(root / "base")
    tiny.expert(root / "expert", 1)
    sharded = tiny.write(root / "sharded", tiny.vision(1))
    tensors = load_file(sharded / "model.safetensors")
    names = list(tensors)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, sharded / file)
    where = {name: file for file, part in parts.items() for name in part}
    (sharded / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (sharded / "model.safetensors").unlink()
    write_adapter(root / "adapter", root / "base", rank=2)
    make_extractor(root / "resnet")
    return root


@contextmanager
def replaced(folders: Path, file: str, data: bytes) -> Iterator[Path]:
    """A copy of the folders in which one file has this content."""
    with tempfile.TemporaryDirectory() as made:
        root = Path(made) / "models"
        root.mkdir()
        for folder in folders.iterdir():
            (root / folder.name).mkdir()
            for each in folder.iterdir():
                (root / folder.name / each.name).hardlink_to(each)
        (root / file).unlink()
        (root / file).write_bytes(data)
        yield root


def vectors(root: Path, expert: str) -> dict[str, Tensor]:
    """All that is read of a pool: base, task vectors, and what is not fused."""
    pool = open_pool(str(root / "base"), {"a": str(root / expert)})
    check_towers(pool.base)
    found = unflatten(load_flat(pool))
    rest = {f"rest {name}": tensor.clone() for name, tensor in read(pool.base, pool.base.rest)}
    deltas = {f"delta {name}": tensor for name, tensor in found.deltas.items()}
    return {**dict(found.base), **deltas, **rest}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def damaged_header(data: bytes) -> st.SearchStrategy[bytes]:
    """Damage within length and header; the tensors' bytes stay."""
    size = 8 + int.from_bytes(data[:8], "little")
    return altered(data[:size]).map(lambda head: head + data[size:])


def lying_header(data: bytes) -> st.SearchStrategy[bytes]:
    """Another header that is JSON: an offset, a shape, a dtype or a name is another."""
    size = 8 + int.from_bytes(data[:8], "little")

    def built(content: Any) -> bytes:
        text = json.dumps(content).encode()
        return len(text).to_bytes(8, "little") + text + data[size:]

    return mutated(json.loads(data[8:size])).map(built)


WEIGHTS = [
    ("base/model.safetensors", "expert"),
    ("expert/model.safetensors", "expert"),
    ("sharded/two.safetensors", "sharded"),
    ("adapter/adapter_model.safetensors", "adapter"),
]


@given(chosen=st.data())
def test_headers(chosen: st.DataObject, folders: Path) -> None:
    file, expert = chosen.draw(st.sampled_from(WEIGHTS))
    damage = chosen.draw(st.sampled_from([damaged_header, lying_header]))
    data = chosen.draw(damage((folders / file).read_bytes()))
    with replaced(folders, file, data) as root, only_input_errors():
        assert same(vectors(root, expert), vectors(folders, expert))


@given(chosen=st.data())
def test_an_index(chosen: st.DataObject, folders: Path) -> None:
    content = json.loads((folders / "sharded" / INDEX).read_text())
    data = json.dumps(chosen.draw(mutated(content))).encode()
    with replaced(folders, f"sharded/{INDEX}", data) as root, only_input_errors():
        assert same(vectors(root, "sharded"), vectors(folders, "sharded"))


SCALES = {"lora_alpha", "r", "use_rslora", "alpha_pattern", "rank_pattern"}
"""Fields of an adapter that its task vectors do depend on."""


CONFIGS = [
    ("base/config.json", "expert"),
    ("expert/config.json", "expert"),
    ("adapter/adapter_config.json", "adapter"),
]


@given(chosen=st.data())
def test_configurations(chosen: st.DataObject, folders: Path) -> None:
    file, expert = chosen.draw(st.sampled_from(CONFIGS))
    content = json.loads((folders / file).read_text())
    other = chosen.draw(mutated(content))
    with replaced(folders, file, json.dumps(other).encode()) as root, only_input_errors():
        found = vectors(root, expert)
        scaled = any(other.get(name) != content.get(name) for name in SCALES)
        assert scaled or same(found, vectors(folders, expert))
        assert all(tensor.isfinite().all() for tensor in found.values())


@given(chosen=st.data())
def test_damaged_configurations(chosen: st.DataObject, folders: Path) -> None:
    file = chosen.draw(st.sampled_from(["base/config.json", "adapter/adapter_config.json"]))
    data = chosen.draw(altered((folders / file).read_bytes()))
    with replaced(folders, file, data) as root, only_input_errors():
        vectors(root, "adapter")


@given(chosen=st.data())
def test_extractors(chosen: st.DataObject, folders: Path) -> None:
    name = chosen.draw(
        st.sampled_from(["config.json", "preprocessor_config.json", "model.safetensors"])
    )
    data = (folders / "resnet" / name).read_bytes()
    if name.endswith("json"):
        data = json.dumps(chosen.draw(mutated(json.loads(data)))).encode()
    else:
        data = chosen.draw(chosen.draw(st.sampled_from([damaged_header, lying_header]))(data))
    with replaced(folders, f"resnet/{name}", data) as root, only_input_errors():
        assert open_extractor(str(root / "resnet"), "methods.dawe.extractor").width == 8


@given(chosen=st.data())
def test_preprocessing(chosen: st.DataObject, folders: Path) -> None:
    folder, call = chosen.draw(
        st.sampled_from([("base", read_preprocess), ("resnet", read_convnext)])
    )
    file = f"{folder}/preprocessor_config.json"
    content = json.loads((folders / file).read_text())
    other = chosen.draw(mutated(copy.deepcopy(content)))
    with replaced(folders, file, json.dumps(other).encode()) as root, only_input_errors():
        found = call(root / folder)
        assert all(each > 0 for each in found.shape)  # `prepare` compares it with the model's
        assert all(torch.tensor(found.mean).isfinite())
        assert all(torch.tensor(found.std).isfinite())


def test_the_folders_are_as_they_should_be(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders, tmp_path / "copy")
    for expert in ("expert", "sharded", "adapter"):
        assert same(vectors(tmp_path / "copy", expert), vectors(folders, expert))
