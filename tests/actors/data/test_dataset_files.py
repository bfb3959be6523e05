import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.data.dataset_files import Columns, open_folder
from actors.data.readers import read
from fusion.errors import InputError


def test_parquet(animals: Path) -> None:
    layout = open_folder(animals, Columns(("image",), "label"), "tasks.a")
    assert layout.classnames == ("cat", "dog")
    train = layout.splits["train"]
    assert (train.rows, train.labels, layout.splits["test"].rows) == (20, 2, 6)
    chunks = list(train.chunks(4))
    assert [start for start, _ in chunks] == [0, 4, 7, 11, 14, 18]
    labels = [label for _, rows in chunks for _, _, label in read(rows)]
    assert labels == [0, 1] * 10


@pytest.mark.parametrize(
    "files",
    [
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test.parquet"],
        ["data/train-00000-of-00002-ab12.parquet", "data/train-00001-of-00002-cd34.parquet"],
        ["train/0000.parquet", "train/0001.parquet", "test/0000.parquet"],
    ],
)
def test_shards_in_order(tmp_path: Path, parquet: Callable[..., Path], files: list[str]) -> None:
    for index, file in enumerate(files):
        parquet(tmp_path / file, [index, index])
    train = open_folder(tmp_path, Columns(("image",), "label"), "tasks.a").splits["train"]
    assert train.rows == 4
    labels = [label for _, rows in train.chunks(100) for _, _, label in read(rows)]
    assert labels == [0, 0, 1, 1]


def test_fingerprints_are_of_content(tmp_path: Path, parquet: Callable[..., Path]) -> None:
    for name, first in (("train", 0), ("val", 9), ("test", 9)):
        parquet(tmp_path / f"{name}.parquet", [0, 1], first=first)
    splits = open_folder(tmp_path, Columns(("image",), "label"), "tasks.a").splits
    assert (
        splits["validation"].fingerprint
        == splits["test"].fingerprint
        != splits["train"].fingerprint
    )


def test_labels_without_statistics(tmp_path: Path, parquet: Callable[..., Path]) -> None:
    file = parquet(tmp_path / "train.parquet", [0, 4, 1])
    pq.write_table(pq.read_table(file), file, write_statistics=False)
    assert (
        open_folder(tmp_path, Columns(("image",), "label"), "tasks.a").splits["train"].labels == 5
    )


def test_columns(tmp_path: Path, parquet: Callable[..., Path]) -> None:
    parquet(tmp_path / "train.parquet", [0, 1])
    with pytest.raises(InputError, match=r"tasks.a: .*: label: no column 'y'; there: \['image'"):
        open_folder(tmp_path, Columns(("image",), "y"), "tasks.a")
    with pytest.raises(InputError, match="image: column 'label' holds int64"):
        open_folder(tmp_path, Columns(("label",), "label"), "tasks.a")
    with pytest.raises(InputError, match="label: column 'image' holds struct"):
        open_folder(tmp_path, Columns(("image",), "image"), "tasks.a")


def test_damaged_parquet(animals: Path) -> None:
    file = animals / "test.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"test\.parquet: not a parquet file"):
        open_folder(animals, Columns(("image",), "label"), "tasks.a")


def test_splits_with_different_names(animals: Path, parquet: Callable[..., Path]) -> None:
    parquet(animals / "val.parquet", [0, 1], names=["dog", "cat"])
    with pytest.raises(InputError, match="different class names"):
        open_folder(animals, Columns(("image",), "label"), "tasks.a")


def test_image_folders(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    for split, name, count in (("train", "dog", 2), ("train", "cat", 1), ("test", "dog", 1)):
        for index in range(count):
            file = tmp_path / split / name / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(index))
    layout = open_folder(tmp_path, Columns(("image",), "label"), "tasks.a")
    assert layout.classnames == ("cat", "dog")
    ((_, rows),) = layout.splits["train"].chunks(10)
    assert [label for _, _, label in read(rows)] == [0, 1, 1]
    assert layout.splits["test"].rows == 1
    flat = open_folder(tmp_path / "train", Columns(("image",), "label"), "tasks.a")
    assert (flat.splits["train"].rows, flat.classnames) == (3, ("cat", "dog"))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"empty; parquet files or train/<class>"):
        open_folder(tmp_path, Columns(("image",), "label"), "tasks.a")


def test_everything_else_goes_through_datasets(
    tmp_path: Path, encode: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.png").write_bytes(encode(index))
    lines = [json.dumps({"file_name": f"{i}.png", "label": i % 2}) for i in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    layout = open_folder(folder, Columns(("image",), "label"), "tasks.a")
    train = layout.splits["train"]
    assert train.rows == 3
    ((_, rows),) = train.chunks(10)
    assert sorted(label for _, _, label in read(rows)) == [0, 0, 1]


def test_what_nothing_reads(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("no data")
    with pytest.raises(
        InputError, match=r"holds no data that can be read; .* left out: 1 no data, .*notes\.md"
    ) as caught:
        open_folder(tmp_path, Columns(("image",), "label"), "tasks.a")
    assert "\n" not in str(caught.value)


def test_bare_bytes_are_images_too(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    table = pa.table({"image": [encode(0), encode(1)], "label": pa.array([True, False])})
    pq.write_table(table, tmp_path / "train.parquet")
    train = open_folder(tmp_path, Columns(("image",), "label"), "tasks.a").splits["train"]
    ((_, rows),) = train.chunks(10)
    assert [(content, label) for content, _, label in read(rows)] == [
        (encode(0), 1),
        (encode(1), 0),
    ]
