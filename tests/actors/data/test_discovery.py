"""Image and table folders of many layouts: which files are used, and under which label."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.data.dataset_files import Columns, Layout, open_folder
from actors.data.discovery import BETWEEN, SPLIT_WORDS, discover, patterns
from actors.data.readers import read, table_of
from fusion.errors import InputError

COLUMNS = Columns(("image",), "label")


@pytest.fixture
def tree(tmp_path: Path, encode: Callable[..., bytes]) -> Callable[..., Path]:
    """Write images of these names, each another."""

    def make(*names: str) -> Path:
        folder = tmp_path / "data"
        for index, name in enumerate(names):
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(index))
        return folder

    return make


def labelled(layout: Layout, folder: Path) -> dict[str, dict[str, int]]:
    """Split -> file -> label."""
    found: dict[str, dict[str, int]] = {}
    for name, split in layout.splits.items():
        rows = [row for _, rows in split.chunks(3) for row in read(rows)]
        assert len(rows) == split.rows
        found[name] = {os.path.relpath(str(content), folder): label for content, _, label in rows}
    return found


def opened(folder: Path, config: str | None = None) -> Layout:
    return open_folder(folder, COLUMNS, "tasks.a", config)


def test_what_editors_and_archives_leave(tree: Callable[..., Path]) -> None:
    good = ["train/cat/1.png", "train/dog/2.png", "test/cat/3.png"]
    bad = [
        *("train/.cat/1.png", "train/cat/.2.png", "train/cat/._1.png", "train/.DS_Store"),
        *("train/.ipynb_checkpoints/1.png", "__MACOSX/train/cat/._1.png", "__MACOSX/train/x/1.png"),
        *("train/cat/1.png~", "train/cat/Thumbs.db", "train/cat/desktop.ini", "train/cat~/1.png"),
        *("train/@eaDir/1.png", "train/cat/@eaDir/1.png/thumb.jpg", "train/__pycache__/a.png"),
        *("train/cat/#1.png#", ".git/train/cat/1.png", "train/$RECYCLE.BIN/1.png"),
        *("train/#recycle/1.png", "train/#snapshot/1.png", "train/_gsdata_/1.png"),
    ]
    folder = tree(*good, *bad)
    layout = opened(folder)
    assert layout.classnames == ("cat", "dog")
    assert labelled(layout, folder) == {
        "train": {"train/cat/1.png": 0, "train/dog/2.png": 1},
        "test": {"test/cat/3.png": 0},
    }
    assert layout.used == 3
    assert list(layout.left) == ["hidden, or left by an editor or archive"]


@pytest.mark.parametrize("names", [[str(n) for n in range(43)], [f"{n:05}" for n in range(43)]])
def test_folders_named_by_numbers(tree: Callable[..., Path], names: list[str]) -> None:
    folder = tree(*(f"train/{name}/a.png" for name in names))
    layout = opened(folder)
    assert layout.classnames == tuple(names)
    assert labelled(layout, folder)["train"][f"train/{names[10]}/a.png"] == 10


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train/{}/1.png", "test/{}/1.png"),
        ("Train/{}/1.png", "Test/{}/1.png"),
        ("data/train/{}/1.png", "data/test/{}/1.png"),
        ("archive/Animals 10/train/{}/1.png", "archive/Animals 10/test/{}/1.png"),
        ("train/animals/{}/1.png", "test/animals/{}/1.png"),
        ("training/{}/1.png", "evaluation/{}/1.png"),
        ("animals_train/{}/1.png", "animals_test/{}/1.png"),
        ("train-images/{}/1.png", "test-images/{}/1.png"),
        ("my_training_data/train/{}/1.png", "my_training_data/test/{}/1.png"),
        ("{}/train_1.png", "{}/test_1.png"),
        ("train/{}/1.PNG", "test/{}/1.jfif"),
        ("train/{}/1.avif", "test/{}/1.ppm"),
    ],
)
def test_places_of_splits(tree: Callable[..., Path], train: str, test: str) -> None:
    wanted = {
        "train": {train.format("cat"): 0, train.format("dog"): 1},
        "test": {test.format("cat"): 0, test.format("dog"): 1},
    }
    folder = tree(*wanted["train"], *wanted["test"])
    layout = opened(folder)
    assert layout.classnames == ("cat", "dog")
    assert labelled(layout, folder) == wanted
    assert not layout.left


def test_classes_that_are_called_like_splits(tree: Callable[..., Path]) -> None:
    folder = tree(
        *(f"{split}/{name}/1.png" for split in ("train", "test") for name in ("bus", "train"))
    )
    layout = opened(folder)
    assert layout.classnames == ("bus", "train")
    assert labelled(layout, folder)["test"] == {"test/bus/1.png": 0, "test/train/1.png": 1}


@pytest.mark.parametrize("name", ["val", "valid", "dev", "validation"])
def test_validation_by_any_name(tree: Callable[..., Path], name: str) -> None:
    folder = tree(*(f"{split}/{each}/1.png" for split in ("train", name) for each in "ab"))
    assert list(opened(folder).splits) == ["train", "validation"]


@pytest.mark.parametrize("tests", [["1.png", "2.png"], ["unknown/1.png", "unknown/2.png"]])
def test_a_test_folder_without_labels(tree: Callable[..., Path], tests: list[str]) -> None:
    folder = tree("train/cat/1.png", "train/dog/2.png", *(f"test/{name}" for name in tests))
    layout = opened(folder)
    assert list(layout.splits) == ["train"]
    assert layout.unlabelled == ("test",)
    assert layout.classnames == ("cat", "dog")


def test_loose_images_are_said(tree: Callable[..., Path]) -> None:
    layout = opened(tree("cat/1.png", "dog/1.png", "montage.png", "LICENSE", "labels.txt"))
    assert layout.splits["train"].rows == 2
    assert layout.left == {
        "no data, or of a format that is not read": (2, "LICENSE"),
        "in no class folder of split train": (1, "montage.png"),
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/cat/1.png", "train/cat/crops/2.png"], "class folders at different depths"),
        (["cat/1.png", "cat/test 1.png", "dog/2.png"], "named like split 'test'"),
        (["train_test/cat/1.png", "x/cat/1.png"], r"folder 'train_test' means the splits"),
        (["1.png", "2.png"], "no labels: split train of images without"),
        (["train/1.png"], "no labels"),
        (["a/train/x/1.png", "b/train/x/1.png"], r"several configurations: a, b; choose one"),
        (["a.parquet/1.txt"], "empty"),
    ],
)
def test_refused(tree: Callable[..., Path], names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        opened(tree(*names))
    assert "\n" not in str(caught.value)


def test_images_of_no_split_are_said(tree: Callable[..., Path]) -> None:
    folder = tree("train/cat/1.png", "train/dog/1.png", "extra/cat/2.png", "extra/dog/2.png")
    layout = opened(folder)
    assert layout.splits["train"].rows == 2
    assert layout.left == {"in no split by its name": (2, "extra/cat/2.png")}


def test_configurations(tree: Callable[..., Path]) -> None:
    folder = tree(
        *(f"{c}/{s}/{n}/1.png" for c in ("v1", "v2") for s in ("train", "test") for n in "ab")
    )
    with pytest.raises(InputError, match="several configurations: v1, v2; choose one: FOLDER:NAME"):
        opened(folder)
    with pytest.raises(InputError, match="no configuration 'v3'; there: v1, v2"):
        opened(folder, "v3")
    layout = opened(folder, "v2")
    assert labelled(layout, folder)["train"] == {"v2/train/a/1.png": 0, "v2/train/b/1.png": 1}
    assert layout.config == "v2"
    assert layout.left == {"not of the configuration 'v2'": (4, "v1/test/a/1.png")}


def test_configurations_of_tables(tmp_path: Path, parquet: Callable[..., Path]) -> None:
    for index, name in enumerate(("en", "fr")):
        for split in ("train", "test"):
            parquet(tmp_path / name / f"{split}-00000-of-00001.parquet", [index] * 2)
    with pytest.raises(InputError, match="several configurations: en, fr"):
        opened(tmp_path)
    assert opened(tmp_path, "fr").splits["train"].labels == 2


CARD = """---
configs:
- config_name: small
  data_files:
  - split: train
    path: parts/a-*.parquet
  - split: extra
    path: [parts/b-0.parquet]
- config_name: large
  data_dir: big
---
# A data set
"""


def test_configurations_that_a_card_declares(tmp_path: Path, parquet: Callable[..., Path]) -> None:
    for index, name in enumerate(["parts/a-0", "parts/a-1", "parts/b-0", "big/train", "big/test"]):
        parquet(tmp_path / f"{name}.parquet", [index, index])
    (tmp_path / "README.md").write_text(CARD)
    with pytest.raises(InputError, match="several configurations: large, small"):
        opened(tmp_path)
    small = opened(tmp_path, "small")
    assert {name: split.rows for name, split in small.splits.items()} == {"train": 4, "extra": 2}
    assert list(opened(tmp_path, "large").splits) == ["train", "test"]
    (tmp_path / "README.md").write_text(CARD.replace("small\n", "small\n  default: true\n"))
    assert opened(tmp_path).config == "small"
    (tmp_path / "README.md").write_text(CARD.replace("parts/a-*", "../secret/*"))
    with pytest.raises(InputError, match="nothing matches"):
        opened(tmp_path, "small")


@pytest.mark.parametrize(
    "name", ["my_train.parquet", "train.parquet", "deep/er/train-1.parquet", "Train.parquet"]
)
def test_split_in_the_name_of_a_file(
    tmp_path: Path, parquet: Callable[..., Path], name: str
) -> None:
    parquet(tmp_path / name, [0, 1])
    parquet(tmp_path / "test_set.parquet", [0])
    layout = opened(tmp_path)
    assert {each: split.rows for each, split in layout.splits.items()} == {"train": 2, "test": 1}


def write_metadata(folder: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    import pyarrow.csv
    import pyarrow.parquet

    table, file = pa.Table.from_pylist(rows), folder / f"metadata.{kind}"
    if kind == "csv":
        pyarrow.csv.write_csv(table, file)
    elif kind == "parquet":
        pyarrow.parquet.write_table(table, file)
    else:
        file.write_text("\n".join(json.dumps(row) for row in rows))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_says_the_labels(tree: Callable[..., Path], kind: str) -> None:
    folder = tree("train/a/1.png", "train/a/2.png", "train/b/3.png", "test/4.png")
    rows = [{"file_name": "a/1.png", "label": "dog"}, {"file_name": "b/3.png", "label": "cat"}]
    write_metadata(folder / "train", kind, rows)
    write_metadata(folder / "test", kind, [{"file_name": "4.png", "label": "dog"}])
    layout = opened(folder)
    assert (layout.classnames, layout.named_by) == (("cat", "dog"), "metadata")
    assert labelled(layout, folder) == {
        "train": {"train/a/1.png": 1, "train/b/3.png": 0},
        "test": {"test/4.png": 1},
    }
    assert layout.left == {"named by no metadata file": (1, "train/a/2.png")}


def test_one_metadata_file_for_all_splits(tree: Callable[..., Path]) -> None:
    folder = tree("train/1.png", "train/2.png", "test/3.png")
    rows = [{"file_name": f"{s}.png", "label": n} for s, n in (("train/1", 1), ("train/2", 0))]
    write_metadata(folder, "csv", [*rows, {"file_name": "test/3.png", "label": 1}])
    layout = opened(folder)
    assert layout.classnames is None
    assert labelled(layout, folder) == {
        "train": {"train/1.png": 1, "train/2.png": 0},
        "test": {"test/3.png": 1},
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"file_name": "none.png", "label": 1}], "'none.png': no such image"),
        ([{"file_name": "../1.png", "label": 1}], "a path inside the data set's folder"),
        ([{"file_name": "/etc/passwd", "label": 1}], "a path inside the data set's folder"),
        ([{"name": "1.png", "label": 1}], "one column 'file_name' needed"),
        ([{"file_name": "1.png", "kind": 1}], "one column 'label' needed"),
        ([{"file_name": "1.png", "label": 0.5}], "label 0.5; whole numbers"),
    ],
)
def test_metadata_refused(
    tree: Callable[..., Path], rows: list[dict[str, Any]], message: str
) -> None:
    folder = tree("1.png", "2.png")
    write_metadata(folder, "jsonl", rows)
    with pytest.raises(InputError, match=message):
        opened(folder)


def test_links(tree: Callable[..., Path], tmp_path: Path, encode: Callable[..., bytes]) -> None:
    folder = tree("train/cat/1.png")
    elsewhere = tmp_path / "disk" / "dogs"
    elsewhere.mkdir(parents=True)
    (elsewhere / "1.png").write_bytes(encode(9))
    (folder / "train/dog").symlink_to(elsewhere)
    (folder / "train/cat/2.png").symlink_to(elsewhere / "1.png")
    (folder / "train/cat/loop").symlink_to(folder / "train")
    (folder / "train/cat/3.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "train/cat/4.png")
    layout = opened(folder)
    assert labelled(layout, folder) == {
        "train": {"train/cat/1.png": 0, "train/cat/2.png": 0, "train/dog/1.png": 1}
    }
    assert layout.left == {
        "no regular file, or a link to nothing": (2, "train/cat/3.png"),
        "a link to a folder around it": (1, "train/cat/loop"),
    }


def test_lfs_pointers(tree: Callable[..., Path], animals: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    folder = tree("train/cat/1.png", "train/dog/1.png")
    (folder / "train/cat/1.png").write_bytes(pointer)
    (animals / "train.parquet").write_bytes(pointer)
    others = [animals.parent / name for name in ("train.csv", "train.tar", "train.arrow")]
    for file in others:
        (animals.parent / file.suffix[1:]).mkdir()
        (animals.parent / file.suffix[1:] / file.name).write_bytes(pointer)
    for each in (folder, animals, *(animals.parent / file.suffix[1:] for file in others)):
        with pytest.raises(InputError, match=r"a Git LFS pointer.*git lfs pull"):
            opened(each)


def pets(encode: Callable[..., bytes], count: int = 5) -> Any:
    from datasets import ClassLabel, Dataset, Features, Image

    rows = {"image": [{"bytes": encode(i), "path": None} for i in range(count)]}
    rows["label"] = [i % 2 for i in range(count)]
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    return Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("several", [True, False])
def test_save_to_disk(tmp_path: Path, encode: Callable[..., bytes], *, several: bool) -> None:
    from datasets import DatasetDict

    data = pets(encode)
    data = DatasetDict({"train": data, "test": data.select([3, 4])}) if several else data
    data.save_to_disk(str(tmp_path / "d"))
    layout = opened(tmp_path / "d")
    assert layout.classnames == ("cat", "dog")
    rows = [row for _, rows in layout.splits["train"].chunks(2) for row in read(rows)]
    assert [(content, label) for content, _, label in rows] == [
        (encode(i), i % 2) for i in range(5)
    ]
    if several:
        assert layout.splits["test"].rows == 2
        (tmp_path / "d/dataset_dict.json").write_text('{"splits": ["../x"]}')
        with pytest.raises(InputError, match="a plain name needed"):
            opened(tmp_path / "d")


def test_csv_and_json(tree: Callable[..., Path], hf_cache: None) -> None:
    folder = tree("images/1.png", "images/2.png", "images/3.png")
    shutil.move(folder / "images", folder.parent / "images")
    folder.rmdir()
    for kind in ("csv", "jsonl"):
        home = folder.parent / kind
        shutil.copytree(folder.parent / "images", home / "images")
        if kind == "csv":
            (home / "train.csv").write_text("image,label\nimages/1.png,dog\nimages/2.png,cat\n")
            (home / "test.csv").write_text("image,label\nimages/3.png,dog\n")
        else:
            lines = [{"image": f"images/{i}.png", "label": n} for i, n in ((1, "dog"), (2, "cat"))]
            (home / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
            (home / "test.jsonl").write_text('{"image": "images/3.png", "label": "dog"}')
        layout = opened(home)
        assert layout.classnames == ("cat", "dog")
        assert labelled(layout, home) == {
            "train": {"images/1.png": 1, "images/2.png": 0},
            "test": {"images/3.png": 1},
        }
        assert layout.left == {"in no split by its name": (3, "images/1.png")}
        before = layout.splits["train"].fingerprint
        (home / "images/1.png").write_bytes((home / "images/3.png").read_bytes())
        assert opened(home).splits["train"].fingerprint != before


def test_webdataset(tmp_path: Path, encode: Callable[..., bytes], hf_cache: None) -> None:
    import io
    import tarfile

    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for index in range(4):
            for name, data in (
                (f"{index}.png", encode(index)),
                (f"{index}.cls", b"%d" % (index % 2)),
            ):
                about = tarfile.TarInfo(name)
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
    layout = open_folder(tmp_path, Columns(("png",), "cls"), "tasks.a")
    rows = [row for _, rows in layout.splits["train"].chunks(3) for row in read(rows)]
    assert [(content, label) for content, _, label in rows] == [
        (encode(i), i % 2) for i in range(4)
    ]


@pytest.fixture
def hf_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def test_unlabelled_parquet(tmp_path: Path, parquet: Callable[..., Path]) -> None:
    parquet(tmp_path / "train.parquet", [0, 1], names=["a", "b"])
    parquet(tmp_path / "test.parquet", [-1, -1], names=["a", "b"])
    layout = opened(tmp_path)
    assert (list(layout.splits), layout.unlabelled) == (["train"], ("test",))


def test_the_content_of_named_files_is_part_of_the_fingerprint(
    tmp_path: Path, encode: Callable[..., bytes]
) -> None:
    import pyarrow.parquet as pq

    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(encode(1))
    rows = {"image": [{"bytes": None, "path": "images/1.png"}], "label": [0]}
    pq.write_table(pa.table(rows), tmp_path / "train.parquet")
    before = opened(tmp_path).splits["train"].fingerprint
    (tmp_path / "images/1.png").write_bytes(encode(2))
    assert opened(tmp_path).splits["train"].fingerprint != before
    rows["image"][0]["path"] = "/etc/passwd"
    pq.write_table(pa.table(rows), tmp_path / "train.parquet")
    with pytest.raises(InputError, match="a path inside the data set's folder is needed"):
        opened(tmp_path)


def test_words_are_those_of_datasets() -> None:
    from datasets.data_files import (
        DEFAULT_SPLITS,
        NON_WORDS_CHARS,
        SPLIT_KEYWORDS,
        SPLIT_PATTERN_SHARDED,
    )

    keywords = {str(split): tuple(words) for split, words in SPLIT_KEYWORDS.items()}
    assert keywords == SPLIT_WORDS
    assert f"[{NON_WORDS_CHARS}]" == BETWEEN
    assert list(patterns(folder=True)) == [str(split) for split in DEFAULT_SPLITS]
    assert SPLIT_PATTERN_SHARDED == "data/{split}-" + "[0-9]" * 5 + "-of-" + "[0-9]" * 5 + "*.*"


@pytest.mark.parametrize(
    "names",
    [
        ["train/a/1.png", "train/b/2.png", "val/a/3.png"],
        ["x/train/a/1.png", "x/test/b/2.png", "x/other/b/2.png"],
        ["data_train/a/1.png", "data-test/a/1.png"],
        ["a/1.png", "b/2.png"],
        ["train_1.png", "test_2.png", "dev.png"],
        ["train.parquet", "dev.parquet", "notes.txt"],
        ["data/train-00000-of-00002.parquet", "data/odd-00001-of-00002-ab.parquet"],
        ["train/0.parquet", "test/0.parquet"],
        ["train1/a/1.png", "traina/a/1.png", "test 1/a/2.png"],
    ],
)
def test_the_same_splits_as_datasets(tree: Callable[..., Path], names: list[str]) -> None:
    from datasets.data_files import DataFilesDict, get_data_patterns

    folder = tree(*names)
    found = DataFilesDict.from_patterns(get_data_patterns(str(folder)), base_path=str(folder))
    theirs = {
        split: {os.path.relpath(f, folder) for f in files if not f.endswith(".txt")}
        for split, files in found.items()
    }
    ours = discover(folder, None, "x").splits
    assert {split: {file.path for file in files} for split, files in ours.items()} == theirs


def test_names_that_no_line_can_hold(tree: Callable[..., Path]) -> None:
    folder = tree("cat/1.png", "dog/1.png", "dog/a\nb.png", "bi\x1b[2Jrd/1.png")
    (folder / "cat").joinpath(os.fsdecode(b"\xff.png")).write_bytes(b"")
    layout = opened(folder)
    assert layout.classnames == ("cat", "dog")
    assert layout.used == 2
    assert layout.left == {"control characters in the name": (3, r"bi\x1b[2Jrd")}


def test_tables_without_labels(
    tmp_path: Path, parquet: Callable[..., Path], encode: Callable[..., bytes], hf_cache: None
) -> None:
    import pyarrow.parquet as pq

    parquet(tmp_path / "p/train.parquet", [0, 1])
    pq.write_table(pa.table({"image": [encode(0)]}), tmp_path / "p/test.parquet")
    (tmp_path / "c").mkdir()
    (tmp_path / "c/1.png").write_bytes(encode(0))
    (tmp_path / "c/train.csv").write_text("image,label\n1.png,a\n1.png,b\n")
    (tmp_path / "c/test.csv").write_text("image\n1.png\n")
    for name in "pc":
        layout = opened(tmp_path / name)
        assert (list(layout.splits), layout.unlabelled) == (["train"], ("test",))
    (tmp_path / "p/train.parquet").unlink()
    with pytest.raises(InputError, match="label: no column 'label'; there:"):
        opened(tmp_path / "p")


@pytest.mark.parametrize("statistics", [True, False])
def test_labels_that_are_missing_here_and_there(tmp_path: Path, *, statistics: bool) -> None:
    import pyarrow.parquet as pq

    table = pa.table({"image": [b"x", b"y", b"z"], "label": [0, None, 1]})
    pq.write_table(table, tmp_path / "train.parquet", write_statistics=statistics)
    with pytest.raises(InputError, match="1 rows have no label, others do; all or none needed"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("kind", "line"), [("csv", "{0},{1}\n"), ("jsonl", '{{"text": "{0}", "label": {1}}}\n')]
)
def test_other_rows_under_the_same_path_and_time(
    tmp_path: Path, hf_cache: None, kind: str, line: str
) -> None:
    """The library's own cache knows a file by path and time of change."""
    file = tmp_path / f"data/train.{kind}"
    file.parent.mkdir()
    columns, found = Columns(("text",), "label", "text"), []
    for words in (("one", "two"), ("three", "four")):
        rows = "".join(line.format(word, at) for at, word in enumerate(words))
        file.write_text(("text,label\n" if kind == "csv" else "") + rows)
        os.utime(file, ns=(10**18, 10**18))
        split = open_folder(file.parent, columns, "tasks.a").splits["train"]
        ((piece, _),) = split.pieces
        found.append((table_of(piece).column("text").to_pylist(), split.fingerprint))
    (first, one), (second, two) = found
    assert (first, second) == (["one", "two"], ["three", "four"])
    assert one != two


@pytest.mark.parametrize(("twice", "field"), [("label", "label"), ("text", "text")])
def test_a_column_of_a_csv_file_that_is_there_twice(
    tmp_path: Path, hf_cache: None, twice: str, field: str
) -> None:
    (tmp_path / "train.csv").write_text(f"\ntext,label,{twice}\na,1,0\nb,0,1\n")
    with pytest.raises(InputError, match=rf"{field}: column '{twice}' is there more than once"):
        open_folder(tmp_path, Columns(("text",), "label", "text"), "tasks.a")


def test_an_image_that_metadata_give_two_labels(tmp_path: Path, tree: Callable[..., Path]) -> None:
    folder = tree("train/1.png", "train/2.png")
    (folder / "train/metadata.csv").write_text("file_name,label\n1.png,cat\n2.png,dog\n")
    (folder / "metadata.csv").write_text("file_name,label\ntrain/1.png,cat\n")
    opened(folder)
    (folder / "metadata.csv").write_text("file_name,label\ntrain/1.png,dog\n")
    with pytest.raises(InputError, match=r"'train/1.png': label '\w+' here, '\w+' in another row"):
        opened(folder)
