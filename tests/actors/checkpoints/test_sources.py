import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from actors.checkpoints.sources import complete, resolve, resolve_data
from actors.files.cache_dir import cache_dir
from fusion.errors import InputError


def install_pool(monkeypatch: pytest.MonkeyPatch, located: object) -> None:
    monkeypatch.setattr("actors.checkpoints.sources.locate", lambda **of: located)


def test_cache_dir_from_the_environment_and_from_xdg(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_dir() == cache
    monkeypatch.delenv("FUSION_SWEEPS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_dir() == Path("/elsewhere/fusion-sweeps")


def test_a_folder(tmp_path: Path) -> None:
    assert resolve(str(tmp_path), what="pool.base") == tmp_path
    assert resolve_data(str(tmp_path), what="tasks.a") == (tmp_path, None)
    assert resolve_data(f"{tmp_path}:en", what="tasks.a") == (tmp_path, "en")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such", r"pool.base: '/no/such': no such folder"),
        ("./no/such", r"pool.base: './no/such': no such folder"),
        ("a/b/c", r"pool.base: 'a/b/c': neither a folder nor a hub id; allowed: .*embedded:NAME"),
        ("", r"pool.base: '': neither a folder"),
    ],
)
def test_wrong_sources(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        resolve(source, what="pool.base")
    assert "\n" not in str(caught.value)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file; a folder"):
        resolve(str(tmp_path / "file"), what="pool.base")


def test_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experts, data = ({"digits": tmp_path / name / "digits"} for name in ("experts", "data"))
    pool = SimpleNamespace(base=tmp_path / "base", experts=experts, data=data)
    install_pool(monkeypatch, pool)
    assert resolve("embedded:base", what="pool.base") == tmp_path / "base"
    assert resolve("embedded:digits", what="x") == tmp_path / "experts" / "digits"
    assert resolve_data("embedded:digits", what="x") == (tmp_path / "data" / "digits", None)
    with pytest.raises(InputError, match=r"no such task in the embedded pool; there: \['digits'\]"):
        resolve("embedded:letters", what="x")


def test_embedded_before_quickstart(monkeypatch: pytest.MonkeyPatch) -> None:
    install_pool(monkeypatch, None)
    with pytest.raises(InputError, match="run `sweeps quickstart` first"):
        resolve("embedded:base", what="pool.base")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def snapshot(hub: Path, name: str, revision: str, files: dict[str, str]) -> Path:
    home = hub / f"models--{name.replace('/', '--')}"
    folder = home / "snapshots" / revision
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(text)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text(revision)
    return folder


@pytest.mark.parametrize("name", ["org/model", "model"])
def test_hub_cache_offline(hub: Path, name: str) -> None:
    commit = "a" * 40
    folder = snapshot(hub, name, commit, {"config.json": "{}", "model.safetensors": ""})
    assert resolve(name, what="pool.base") == folder
    assert resolve(f"{name}@{commit}", what="pool.base") == folder


def test_hub_offline_and_not_cached(hub: Path) -> None:
    with pytest.raises(InputError, match=r"pool.experts.a: 'org/model': no such folder") as caught:
        resolve("org/model", what="pool.experts.a")
    assert "\n" not in str(caught.value)


def test_an_adapter_in_the_hub_cache(hub: Path) -> None:
    files = {"adapter_config.json": "{}", "linearized_adapter_model.safetensors": ""}
    folder = snapshot(hub, "org/lora", "b" * 40, files)
    assert resolve("org/lora", what="pool.experts.a") == folder
    snapshot(hub, "org/half", "c" * 40, {"adapter_config.json": "{}"})
    assert not complete(hub / "models--org--half" / "snapshots" / ("c" * 40))


class ModelScopeHub:
    """A stand-in for `modelscope.hub.snapshot_download`, with the arguments of version 1.40."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.online, self.calls = cache, True, list[dict[str, object]]()

    def snapshot_download(
        self,
        model_id: str | None = None,
        revision: str | None = None,
        cache_dir: str | None = None,
        local_files_only: bool | None = False,
        allow_patterns: list[str] | None = None,
    ) -> str:
        given = {"model_id": model_id, "revision": revision, "local_files_only": local_files_only}
        self.calls.append(given)
        assert allow_patterns is not None
        assert not any("bin" in pattern for pattern in allow_patterns)
        folder = self.cache / "models" / str(model_id)
        if not folder.exists():
            if local_files_only or not self.online:
                raise ValueError(f"Cannot find {model_id}\nin the cached path")
            if model_id != "org/model":
                raise FileNotFoundError(f"{model_id}: 404")
            folder.mkdir(parents=True)
            (folder / "config.json").write_text("{}")
            (folder / "model.safetensors").write_text("")
        return str(folder)


@pytest.fixture
def modelscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelScopeHub:
    hub = ModelScopeHub(tmp_path / "modelscope")
    module = ModuleType("modelscope.hub.snapshot_download")
    module.snapshot_download = hub.snapshot_download  # type: ignore[attr-defined]
    for name in ("modelscope", "modelscope.hub"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return hub


def test_a_model_of_modelscope_is_downloaded_once(modelscope: ModelScopeHub) -> None:
    folder = modelscope.cache / "models/org/model"
    assert resolve("modelscope:org/model@v2", what="pool.base") == folder
    assert [call["local_files_only"] for call in modelscope.calls] == [True, False]
    assert {call["revision"] for call in modelscope.calls} == {"v2"}
    modelscope.online = False
    assert resolve("modelscope:org/model", what="pool.base") == folder
    assert modelscope.calls[-1] == {
        "model_id": "org/model", "revision": None, "local_files_only": True,
    }  # fmt: skip
    (folder / "model.safetensors").unlink()  # incomplete: asked again
    assert resolve("modelscope:org/model", what="pool.base") == folder
    assert modelscope.calls[-1]["local_files_only"] is False


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("modelscope:org/other", r"pool\.base: 'modelscope:org/other': ModelScope: org/other: 404"),
        ("modelscope:model", r"'modelscope:model': modelscope:org/name\[@revision\] needed"),
        ("modelscope:", r"'modelscope:': modelscope:org/name\[@revision\] needed"),
    ],
)
def test_no_model_of_modelscope(modelscope: ModelScopeHub, source: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        resolve(source, what="pool.base")
    assert "\n" not in str(refused.value)


def test_modelscope_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("modelscope", "modelscope.hub", "modelscope.hub.snapshot_download"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"pip install 'fusion-sweeps\[modelscope\]'") as refused:
        resolve("modelscope:org/model", what="pool.experts.a")
    assert str(refused.value).startswith(
        "pool.experts.a: 'modelscope:org/model': needs the library"
    )
