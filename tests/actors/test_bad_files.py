"""Every reader of a user's files: whatever lies in a file's place is one line that names it."""

import contextlib
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.artifacts import gate_file, published_gate
from actors.artifacts.head_file import check_head
from actors.checkpoints.checkpoint import content_hash, read
from actors.data.images.preprocessor_config import read_convnext, read_preprocess
from actors.families.clip.zero_shot_heads import open_tokenizer, read_tokenizer
from actors.families.registry import inspect
from actors.gate_features.extractor import open_extractor
from actors.pool.pool import load_flat, open_pool
from fusion.errors import InputError, reading
from sweeps.cluster.cluster_yaml import of_file
from sweeps.planning.provenance import ancestry_of
from sweeps.results.ingredient_recipes import recipe_of
from sweeps.spec.sweep import load as load_spec
from sweeps.train.spec import load as load_training
from tests.actors.checkpoints.adapter_folders import write_adapter
from tests.sweeps.learning_pool import make_extractor

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.fixture(scope="module")
def folders(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of all kinds, as they should be; each test damages copies."""
    root = tmp_path_factory.mktemp("readers")
    tiny.base(root / "base")
    tiny.expert(root / "expert", 1)
    write_adapter(root / "adapter", root / "base")
    make_extractor(root / "resnet")
    sharded = tiny.write(root / "sharded", tiny.vision(2))
    names = list(tensors := load_file(sharded / "model.safetensors"))
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, sharded / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    (sharded / "model.safetensors").unlink()
    return root


def pool_of(kind: str) -> Callable[[Path], object]:
    return lambda root: open_pool(str(root / "base"), {"a": str(root / kind)})


def tokenizer_of(root: Path) -> Any:
    base = inspect(str(root / "base"), "pool.base")
    return read_tokenizer(base, open_tokenizer(base))


def hashed(folder: str) -> tuple[str, str]:
    return "b", content_hash(inspect(folder, "b"))


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "weights": ("expert/model.safetensors", pool_of("expert")),
    "config": ("expert/config.json", pool_of("expert")),
    "base weights": ("base/model.safetensors", pool_of("expert")),
    "base config": ("base/config.json", pool_of("expert")),
    "index": ("sharded/model.safetensors.index.json", pool_of("sharded")),
    "shard": ("sharded/two.safetensors", pool_of("sharded")),
    "adapter config": ("adapter/adapter_config.json", pool_of("adapter")),
    "adapter": ("adapter/adapter_model.safetensors", pool_of("adapter")),
    "preprocessing": ("base/preprocessor_config.json", lambda r: read_preprocess(r / "base")),
    "convnext": ("resnet/preprocessor_config.json", lambda r: read_convnext(r / "resnet")),
    "extractor": (
        "resnet/model.safetensors", lambda r: open_extractor(str(r / "resnet"), "m.extractor")),
    "extractor config": (
        "resnet/config.json", lambda r: open_extractor(str(r / "resnet"), "m.extractor")),
    "tokenizer": ("base/tokenizer.json", tokenizer_of),
    "gate": ("gate.safetensors", lambda r: gate_file.read(r / "gate.safetensors", "gate")),
    "published gate": (
        "gate.safetensors", lambda r: published_gate.read_published(r / "gate.safetensors")),
    "pickled gate": ("gate.pt", lambda r: published_gate.read_published(r / "gate.pt")),
    "head": (
        "head.safetensors",
        lambda r: check_head(
            r / "head.safetensors", "h", hashed(str(r / "base")), 16, ("x", "y"))),
    "sweep": ("s.yaml", lambda r: load_spec(r / "s.yaml")),
    "training": ("s.yaml", lambda r: load_training(r / "s.yaml")),
    "cluster": ("c.yaml", lambda r: of_file(r / "c.yaml")),
}  # fmt: skip


def folder(path: Path) -> None:
    path.mkdir()


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def circle(path: Path) -> None:
    path.symlink_to(path)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    with contextlib.chdir(path.parent):  # a socket's path must be short
        socket.socket(socket.AF_UNIX).bind(path.name)


def content(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


THINGS = {
    "folder": folder, "dangling": dangling, "circle": circle, "pipe": pipe, "endless": endless,
    "socket": listening, "pointer": content(POINTER), "empty": content(b""),
    "bytes": content(bytes(range(256)) * 9), "null": content(b"null"), "text": content(b"a: [1"),
    "deep": content(b"[" * 99_999), "long": content(b'{"a": ' + b"9" * 9_999 + b"}"),
    "surrogate": content(b'{"model_type": "\\ud800", "peft_type": "\\ud800"}'),
}  # fmt: skip


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """Nothing waits for a pipe."""

    def ring(*_: object) -> None:
        raise TimeoutError("waits")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("thing", THINGS)
def test_whatever_lies_there_is_one_line(thing: str, folders: Path, tmp_path: Path) -> None:
    for reader, (name, call) in READERS.items():
        root = tmp_path / reader.replace(" ", "_")
        shutil.copytree(folders, root)
        (root / name).unlink(missing_ok=True)
        THINGS[thing](root / name)
        with pytest.raises(InputError) as caught:
            call(root)
        said = str(caught.value)
        assert "\n" not in said, (reader, said)
        assert Path(name).name in said or str((root / name).parent) in said, (reader, said)
        if thing == "pointer":
            assert "git lfs pull" in said, (reader, said)
        if thing in ("pipe", "endless", "socket"):
            assert "waits" not in said, (reader, said)
        (root / name).unlink() if thing != "folder" else None


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "x"), RecursionError(), KeyError("a")]
)
def test_whatever_a_file_system_or_a_library_raises(
    error: Exception, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are refused by the system: this user may read all."""

    def refuse(*_: object, **__: object) -> None:
        raise error

    for reader, (name, call) in READERS.items():
        if not (folders / name).exists():
            continue
        with monkeypatch.context() as patched:
            patched.setattr(Path, "open", refuse)
            patched.setattr("builtins.open", refuse)
            with pytest.raises(InputError) as caught:
                call(folders)
        assert "\n" not in str(caught.value), reader


@pytest.mark.parametrize("thing", THINGS)
def test_recipes_of_others_are_left_alone_or_refused(thing: str, tmp_path: Path) -> None:
    THINGS[thing](tmp_path / "recipe.yaml")
    assert ancestry_of(tmp_path).head == ""
    said = None
    with contextlib.suppress(InputError):
        said = recipe_of(tmp_path)
    assert said is None


def test_a_boundary_keeps_the_cause() -> None:
    with pytest.raises(InputError, match=r"^here: 'label'$") as caught, reading("here"):
        {}["label"]
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_file_replaced_between_header_and_data(tiny: Any, tmp_path: Path) -> None:
    base, expert = tiny.base(tmp_path / "base"), tiny.expert(tmp_path / "expert", 1)
    pool = open_pool(str(base), {"a": str(expert)})
    other = tiny.expert(tmp_path / "other", 2)
    os.replace(other / "model.safetensors", expert / "model.safetensors")
    with pytest.raises(InputError, match=r"^pool\.experts\.a: .*safetensors: changed while in use"):
        load_flat(pool)


# Names of wrappers


def renamed(folder: Path, change: Callable[[str], str]) -> Path:
    for file in folder.glob("*.safetensors"):
        save_file({change(name): tensor for name, tensor in load_file(file).items()}, file)
    return folder


@pytest.mark.parametrize("before", ["_orig_mod.", "module.", "model.", "module._orig_mod.model."])
def test_what_wrappers_write_before_all_names_is_left_out(
    before: str, tiny: Any, tmp_path: Path
) -> None:
    plain = inspect(str(tiny.expert(tmp_path / "plain", 1)), "plain")
    folder = renamed(tiny.expert(tmp_path / "a", 1), lambda name: before + name)
    checkpoint = inspect(str(folder), "a")
    assert checkpoint.wrapper == before
    assert plain.wrapper == ""
    found = dict(read(checkpoint))
    assert all(torch.equal(tensor, found[name]) for name, tensor in read(plain))
    base = renamed(tiny.base(tmp_path / "base"), lambda name: before + name)
    assert open_pool(str(base), {"a": str(folder)}).names == tuple(found)
    adapter = write_adapter(tmp_path / "adapter", base)
    wanted = inspect_rank(open_pool(str(base), {"a": str(adapter)}))
    renamed(adapter, lambda name: name.replace("base_model.model.", f"base_model.model.{before}"))
    pool = open_pool(str(base), {"a": str(adapter)})
    assert inspect_rank(pool) == wanted
    assert pool.experts["a"].wrapper == before


def inspect_rank(pool: Any) -> dict[str, int]:
    return {name: low.rank for name, low in pool.experts["a"].factors.items()}


def test_a_prefix_of_some_names_is_refused(tiny: Any, tmp_path: Path) -> None:
    folder = renamed(
        tiny.expert(tmp_path / "a", 1), lambda name: f"module.{name}" if "mlp" in name else name
    )
    with pytest.raises(InputError, match=r"tensor 'module\..*: not part of a CLIP model"):
        inspect(str(folder), "a")


# Folders that are near


@pytest.mark.parametrize("kind", ["expert", "adapter"])
@pytest.mark.parametrize(
    ("below", "given"),
    [
        ("checkpoint-500", ""),
        ("a/b", ""),
        ("models--org--name/snapshots/0a1b", ""),
        ("models--org--name/snapshots/0a1b", "models--org--name"),
    ],
)
def test_the_folder_that_holds_the_model_is_named(
    below: str, given: str, kind: str, tiny: Any, tmp_path: Path, folders: Path
) -> None:
    root = tmp_path / "given"
    shutil.copytree(folders / kind, root / below)
    if below.startswith("checkpoint"):
        shutil.copytree(folders / kind, root / "checkpoint-9")
    if below.startswith("models"):
        shutil.copytree(folders / kind, root / "models--org--name/snapshots/0000")
        (root / "models--org--name/refs").mkdir()
        (root / "models--org--name/refs/main").write_text("0a1b")
    with pytest.raises(InputError) as caught:
        open_pool(str(folders / "base"), {"a": str(root / given)})
    assert f"did you mean {root / below}" in str(caught.value)


def test_a_file_and_other_weights(folders: Path, tmp_path: Path) -> None:
    file = folders / "expert/model.safetensors"
    with pytest.raises(InputError, match=f"a file; .* folder is {file.parent}$"):
        inspect(str(file), "a")
    shutil.copytree(folders / "expert", tmp_path / "a")
    os.rename(tmp_path / "a/model.safetensors", tmp_path / "a/model.fp16.safetensors")
    with pytest.raises(InputError, match=r"no model\.safetensors .*; there: model\.fp16\.safeten"):
        inspect(str(tmp_path / "a"), "a")
