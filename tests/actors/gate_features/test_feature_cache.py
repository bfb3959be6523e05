import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.data.images.pixel_cache import open_pixels, prepare
from actors.data.task import Task, TaskSource, open_task
from actors.files.matrix_file import mapped, write_matrix
from actors.gate_features import feature_cache
from actors.gate_features.extractor import Extractor, load_extractor, open_extractor
from actors.gate_features.feature_cache import features_path, open_features, prepare_features
from fusion.errors import InputError
from tests.actors.conftest import DIM, Tiny
from tests.actors.gate_features.test_extractor import write_resnet

NEEDED = [("pets", "train"), ("pets", "test")]


@pytest.fixture
def task(animals: Path) -> Task:
    return open_task(TaskSource("pets", str(animals)))


@pytest.fixture
def extractor(tmp_path: Path) -> Extractor:
    return open_extractor(str(write_resnet(tmp_path / "resnet")), "gate.extractor")


def expected(extractor: Extractor, task: Task, split: str, root: Path) -> torch.Tensor:
    (path,) = prepare({"pets": task}, [("pets", split)], extractor.inputs.preprocess, root).values()
    return load_extractor(extractor)({"pixels": open_pixels(path).images})


def left_behind(root: Path) -> list[str]:
    return [file.name for file in (root / "features").iterdir() if file.suffix != ".arrow"]


def test_computed_once_in_order(extractor: Extractor, task: Task, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = prepare_features(
        extractor, {"pets": task}, NEEDED, tmp_path, lambda *at: seen.append(at)
    )
    assert list(found) == NEEDED
    for (_, split), path in found.items():
        values = open_features(path)
        rows = {"train": 20, "test": 6}[split]
        assert (values.shape, values.dtype) == ((rows, 20), torch.float32)
        torch.testing.assert_close(values, expected(extractor, task, split, tmp_path))
        assert path.parent == tmp_path / "features"
        assert mapped(path)[0].tolist() == list(range(rows))
    assert seen.count((0, 26)) == 2  # images, then features
    assert seen[-1] == (26, 26)
    times = [path.stat().st_mtime_ns for path in found.values()]
    seen.clear()
    again = prepare_features(
        extractor, {"pets": task}, NEEDED, tmp_path, lambda *at: seen.append(at)
    )
    assert again == found
    assert [path.stat().st_mtime_ns for path in found.values()] == times
    assert not seen
    assert not left_behind(tmp_path)


def test_chunks_and_batches_lose_no_row(
    extractor: Extractor, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "BATCH", 3)
    monkeypatch.setattr(feature_cache, "CHUNK", 6)
    (path,) = prepare_features(extractor, {"pets": task}, NEEDED[:1], tmp_path).values()
    torch.testing.assert_close(
        open_features(path), expected(extractor, task, "train", tmp_path), rtol=1e-5, atol=1e-6
    )


def test_of_the_base_itself_and_squashed(task: Task, tiny: Tiny, tmp_path: Path) -> None:
    base = tiny.base(tmp_path / "base")
    found = []
    for squash in (False, True):
        extractor = open_extractor(str(base), "gate.extractor", squash=squash)
        (path,) = prepare_features(extractor, {"pets": task}, NEEDED[1:], tmp_path).values()
        found.append(open_features(path))
        assert found[-1].shape == (6, DIM)
        torch.testing.assert_close(found[-1], expected(extractor, task, "test", tmp_path))
    assert not torch.allclose(*found)  # the images are not square


def test_the_name_follows_extractor_and_pixels(
    extractor: Extractor, task: Task, tmp_path: Path
) -> None:
    from dataclasses import replace

    one = features_path(extractor, Path("a.arrow"), tmp_path)
    assert one == features_path(extractor, Path("elsewhere/a.arrow"), tmp_path)
    assert one != features_path(extractor, Path("b.arrow"), tmp_path)
    assert one != features_path(replace(extractor, fingerprint="x"), Path("a.arrow"), tmp_path)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-40],
    "longer": lambda content: content + b"0",
    "empty": lambda content: b"",
    "other": lambda content: b"x" * 200,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_again(
    extractor: Extractor, task: Task, tmp_path: Path, damage: str
) -> None:
    (path,) = prepare_features(extractor, {"pets": task}, NEEDED[1:], tmp_path).values()
    whole = path.read_bytes()
    path.write_bytes(DAMAGE[damage](whole))
    said = r"\.arrow: not a file of features: .*; delete it"
    with pytest.raises(InputError, match=said) as caught:
        open_features(path)
    assert "\n" not in str(caught.value)
    prepare_features(extractor, {"pets": task}, NEEDED[1:], tmp_path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("shape", [(5, 20), (6, 19), (0, 20)])
def test_a_file_of_something_else_is_made_again(
    extractor: Extractor, task: Task, tmp_path: Path, shape: tuple[int, int]
) -> None:
    (path,) = prepare_features(extractor, {"pets": task}, NEEDED[1:], tmp_path).values()
    write_matrix(path, np.arange(shape[0]), shape[1], [np.zeros(shape, np.float32)])
    prepare_features(extractor, {"pets": task}, NEEDED[1:], tmp_path)
    assert open_features(path).shape == (6, 20)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.arrow: not a file of features: .*No such file"):
        open_features(tmp_path / "none.arrow")


def test_features_must_be_finite(extractor: Extractor, task: Task, tmp_path: Path) -> None:
    file = extractor.folder / "model.safetensors"
    state = load_file(file)
    state["resnet.embedder.embedder.convolution.weight"][0] = float("nan")
    save_file(state, file, {"format": "pt"})
    bad = open_extractor(str(extractor.folder), "gate.extractor")
    with pytest.raises(InputError) as caught:
        prepare_features(bad, {"pets": task}, NEEDED, tmp_path)
    said = f"extractor {bad.source!r}: task 'pets': split 'train': row 0: features that are not"
    assert str(caught.value).startswith(said)
    assert not list((tmp_path / "features").iterdir())


def test_weights_that_vanish(extractor: Extractor, task: Task, tmp_path: Path) -> None:
    (extractor.folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="resnet") as caught:
        prepare_features(extractor, {"pets": task}, NEEDED, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "features").iterdir())


@pytest.mark.ray
@pytest.mark.slow
def test_through_ray_data(
    extractor: Extractor,
    task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    ray_cluster: None,
) -> None:
    monkeypatch.setattr(feature_cache, "CHUNK", 4)
    here = prepare_features(extractor, {"pets": task}, NEEDED, tmp_path / "here")
    monkeypatch.setattr(feature_cache, "FEW", 0)
    free = feature_cache.workers
    monkeypatch.setattr(feature_cache, "workers", lambda *about: min(free(*about), 2))
    # Workers import modules of their own, so this forbids only to compute in this process.
    monkeypatch.setattr(Extractor, "load", None)
    seen: list[tuple[int, int]] = []
    capfd.readouterr()
    there = prepare_features(
        extractor, {"pets": task}, NEEDED, tmp_path / "there", lambda *at: seen.append(at)
    )
    for at, path in there.items():
        torch.testing.assert_close(open_features(path), open_features(here[at]))
        assert path.name == here[at].name
    assert seen[-1] == (26, 26)
    assert not left_behind(tmp_path / "there")
    said = capfd.readouterr()
    assert "Dataset" not in said.out + said.err


def test_preprocessing_has_pixel_files_of_its_own(
    extractor: Extractor, task: Task, tmp_path: Path
) -> None:
    prepare_features(extractor, {"pets": task}, NEEDED, tmp_path)
    config = extractor.folder / "preprocessor_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"image_mean": [0.0, 0.0, 0.0]}))
    other = open_extractor(str(extractor.folder), "gate.extractor")
    prepare_features(other, {"pets": task}, NEEDED, tmp_path)
    count = {name: len(list((tmp_path / name).iterdir())) for name in ("pixels", "features")}
    assert count == {"pixels": 2, "features": 4}  # the mean comes after the pixels
