import errno
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.data.images import pixel_cache
from actors.data.images.pixel_cache import open_pixels, pixel_path, prepare
from actors.data.images.preprocessor_config import clip_preprocess
from actors.data.readers import read
from actors.data.task import Task, TaskSource, open_task
from fusion.errors import InputError

PREPROCESS = clip_preprocess(32)


@pytest.fixture
def task(animals: Path) -> Task:
    return open_task(TaskSource("pets", str(animals)))


def expected(task: Task, split: str) -> tuple[torch.Tensor, list[int]]:
    from io import BytesIO

    from PIL import Image

    images, labels = [], []
    for _, rows in task.split(split).chunks(1000):
        for content, _, label in read(rows):
            assert isinstance(content, bytes)
            images.append(torch.from_numpy(PREPROCESS.to_uint8(Image.open(BytesIO(content)))))
            labels.append(label)
    return torch.stack(images), labels


def check(task: Task, split: str, path: Path) -> None:
    images, labels = expected(task, split)
    found = open_pixels(path)
    assert found.images.dtype == torch.uint8
    assert found.images.is_contiguous()
    assert torch.equal(found.images, images)
    assert found.labels.tolist() == labels


def left_behind(root: Path) -> list[str]:
    return [file.name for file in (root / "pixels").iterdir() if not file.name.endswith(".arrow")]


def test_decoded_once_in_order(task: Task, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    needed = [("pets", "train"), ("pets", "test")]
    tasks = {"pets": task}
    paths = prepare(tasks, needed, PREPROCESS, tmp_path, lambda *at: seen.append(at))
    assert list(paths) == needed
    for (_, split), path in paths.items():
        check(task, split, path)
    assert (seen[0], seen[-1]) == ((0, 26), (26, 26))
    times = [path.stat().st_mtime_ns for path in paths.values()]
    seen.clear()
    assert prepare(tasks, needed, PREPROCESS, tmp_path, lambda *at: seen.append(at)) == paths
    assert [path.stat().st_mtime_ns for path in paths.values()] == times
    assert not seen
    assert not left_behind(tmp_path)


def test_the_file_is_arrow_and_says_what_it_is(task: Task, tmp_path: Path) -> None:
    (path,) = prepare({"pets": task}, [("pets", "test")], PREPROCESS, tmp_path).values()
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        table.validate(full=True)
        assert table.schema.field("image").type == pa.list_(pa.uint8(), 3 * 32 * 32)
        assert table.schema.metadata[b"shape"] == b"3,32,32"
        assert table.schema.metadata[b"data"] == task.split("test").fingerprint.encode()


def test_name_follows_data_and_preprocessing(task: Task, tmp_path: Path) -> None:
    one = pixel_path(task, "train", PREPROCESS, tmp_path)
    assert one != pixel_path(task, "test", PREPROCESS, tmp_path)
    assert one != pixel_path(task, "train", clip_preprocess(16), tmp_path)


def test_a_damaged_cache_file_is_made_again(task: Task, tmp_path: Path) -> None:
    (path,) = prepare({"pets": task}, [("pets", "test")], PREPROCESS, tmp_path).values()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="not a pixel file"):
        open_pixels(path)
    prepare({"pets": task}, [("pets", "test")], PREPROCESS, tmp_path)
    check(task, "test", path)


def test_fewer_names_than_cached_labels(task: Task, tmp_path: Path) -> None:
    from dataclasses import replace

    prepare({"pets": task}, [("pets", "test")], PREPROCESS, tmp_path)
    fewer = replace(task, classnames=("cat",))
    with pytest.raises(InputError, match="task 'pets': split 'test': row 0: label 1; the 1 class"):
        prepare({"pets": fewer}, [("pets", "test")], PREPROCESS, tmp_path)


def broken(folder: Path, parquet: Callable[..., Path], encode: Callable[..., bytes]) -> Task:
    images = [encode(0), encode(1), encode(2)[:60]]
    parquet(folder / "train.parquet", [0, 1, 0], names=["cat", "dog"], images=images)
    return open_task(TaskSource("pets", str(folder)))


BROKEN = r"task 'pets': split 'train': row 2 \(2\.png\): broken image"


def test_a_broken_image(
    tmp_path: Path, parquet: Callable[..., Path], encode: Callable[..., bytes]
) -> None:
    task = broken(tmp_path / "data", parquet, encode)
    with pytest.raises(InputError, match=BROKEN):
        prepare({"pets": task}, [("pets", "train")], PREPROCESS, tmp_path)
    assert not list((tmp_path / "pixels").iterdir())


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_full_disk(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(InputError, match=r"\.arrow: cannot be written: No space") as caught:
        prepare({"pets": task}, [("pets", "train"), ("pets", "test")], PREPROCESS, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "pixels").iterdir())


def prepare_here(task: Task, root: Path) -> None:
    prepare({"pets": task}, [("pets", "train"), ("pets", "test")], PREPROCESS, root)


def test_two_processes_at_once(task: Task, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=prepare_here, args=(task, tmp_path)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    for split in ("train", "test"):
        check(task, split, pixel_path(task, split, PREPROCESS, tmp_path))
    assert not left_behind(tmp_path)


@pytest.mark.ray
def test_through_ray_data(
    task: Task,
    tmp_path: Path,
    parquet: Callable[..., Path],
    encode: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    ray_cluster: None,
) -> None:
    monkeypatch.setattr(pixel_cache, "FEW", 0)
    monkeypatch.setattr(pixel_cache, "CHUNK_ROWS", 4)
    seen: list[tuple[int, int]] = []
    needed = [("pets", "train"), ("pets", "test")]
    capfd.readouterr()
    found = prepare({"pets": task}, needed, PREPROCESS, tmp_path, lambda *at: seen.append(at))
    for (_, split), path in found.items():
        check(task, split, path)
    assert seen[-1] == (26, 26)
    bad = broken(tmp_path / "data", parquet, encode)
    with pytest.raises(InputError, match=BROKEN):
        prepare({"pets": bad}, [("pets", "train")], PREPROCESS, tmp_path)
    assert not left_behind(tmp_path)
    said = capfd.readouterr()
    assert "Dataset" not in said.out + said.err


def test_large_files_are_written_without_their_size_in_memory(tmp_path: Path) -> None:
    from actors.data.images.pixel_cache_writer import PixelWriter

    rows, width, path = 3000, 3 * 64 * 64, tmp_path / "a.arrow"
    with PixelWriter([(path, rows, {"shape": "3,64,64"})], width) as writer:
        for start in (1500, 0):  # in any order
            values = np.repeat((np.arange(start, start + 1500) % 251).astype(np.uint8), width)
            table = {
                "image": pa.FixedSizeListArray.from_arrays(pa.array(values), width),
                "label": pa.array(np.arange(start, start + 1500)),
                "part": pa.array(np.zeros(1500, dtype=np.int32)),
                "row": pa.array(np.arange(start, start + 1500)),
            }
            writer.write(pa.table(table))
        assert path.exists()  # complete, so already in place
    found = open_pixels(path)
    assert found.labels.tolist() == list(range(rows))
    assert torch.equal(found.images[:, 2, 63, 63].long(), torch.arange(rows) % 251)
    assert torch.equal(found.images.amin((1, 2, 3)), found.images.amax((1, 2, 3)))


def test_16_bit_images_are_said(
    tmp_path: Path, parquet: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.full((9, 9), 40000, dtype=np.uint16)).save(file, "PNG")
    images = [file.getvalue()] * 3
    parquet(tmp_path / "d/train.parquet", [0, 1, 0], names=["a", "b"], images=images)
    task = open_task(TaskSource("deep", str(tmp_path / "d")))
    (path,) = prepare({"deep": task}, [("deep", "train")], PREPROCESS, tmp_path).values()
    said = "task 'deep': split 'train': 3 images of 16-bit grey were scaled to 8 bits"
    assert said in caplog.messages
    assert set(open_pixels(path).images.flatten().tolist()) == {round(40000 / 257)}
