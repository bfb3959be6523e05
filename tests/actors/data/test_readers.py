import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.data.images.preprocessor_config import clip_preprocess
from actors.data.readers import (
    Chunk,
    Columns,
    FileRows,
    ParquetRows,
    decode,
    decode_row,
    kept_group,
    table_of,
)

PREPROCESS = clip_preprocess(32)


def test_a_chunk_of_parquet(animals: Path, encode: Callable[..., bytes]) -> None:
    rows = ParquetRows(str(animals / "train.parquet"), 1, 2, 4, Columns(("image",), "label"))
    table = decode(Chunk(3, 9, rows, 2, "task 'a': split 'train'"), PREPROCESS)
    assert table.column("label").to_pylist() == [1, 0, 1, 0]
    assert table.column("row").to_pylist() == [9, 10, 11, 12]
    assert set(table.column("part").to_pylist()) == {3}
    assert table.column("error").null_count == 4
    assert len(table.column("image")[0]) == 3 * 32 * 32


def test_cuts_of_a_row_group_read_it_once_and_a_file_written_again_is_read_again(
    tmp_path: Path,
) -> None:
    file, columns = tmp_path / "a.parquet", Columns(("text",), "label", "text")
    kept_group.cache_clear()

    def texts(offset: int) -> list[str]:
        rows = ParquetRows(str(file), 0, offset, 2, columns)
        found: list[str] = table_of(rows, keep_group=True).column("text").to_pylist()
        return found

    pq.write_table(pa.table({"text": list("abcd"), "label": [0, 1, 0, 1]}), file)
    assert [texts(0), texts(2)] == [["a", "b"], ["c", "d"]]
    assert kept_group.cache_info().misses == 1
    pq.write_table(pa.table({"text": list("efgh"), "label": [0, 1, 0, 1]}), file)
    os.utime(file, ns=(0, 0))
    assert texts(2) == ["g", "h"]


def test_files(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    for index in range(2):
        (tmp_path / f"{index}.png").write_bytes(encode(index))
    rows = FileRows((str(tmp_path / "1.png"), str(tmp_path / "0.png")), (0, 1))
    table = decode(Chunk(0, 0, rows, 2, "x"), PREPROCESS)
    out = np.zeros((3, 32, 32), dtype=np.uint8)
    assert decode_row(encode(1), 0, 2, PREPROCESS, out) == (None, False)
    assert table.column("image")[0].as_py() == out.reshape(-1).tolist()


def test_a_bad_row_ends_its_chunk(
    tmp_path: Path, parquet: Callable[..., Path], encode: Callable[..., bytes]
) -> None:
    images = [encode(0), encode(1)[:-40], encode(2)]
    file = parquet(tmp_path / "a.parquet", [0, 1, 0], images=images)
    chunk = Chunk(
        0, 5, ParquetRows(str(file), 0, 0, 3, Columns(("image",), "label")), 2, "task 'a'"
    )
    (fault,) = decode(chunk, PREPROCESS).column("error").drop_null().to_pylist()
    assert fault.startswith("task 'a': row 6 (1.png): broken image: ")


@pytest.mark.parametrize(
    ("content", "label", "message"),
    [
        (None, 0, "no image"),
        (b"text", 0, "broken image: not an image of these formats: PNG, JPEG,"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", 0, "broken image: not an image of these formats"),
        (b"version https://git-lfs.github.com/spec/v1\noid", 0, "a Git LFS pointer"),
        (b"any", True, "label True"),
        (b"", 0, "broken image"),
        (b"any", 2, "label 2; the 2 class names allow 0 to 1 (do labels start at 1?)"),
        (b"any", -1, "label -1"),
        (b"any", None, "label None"),
        (b"any", 0.5, "label 0.5"),
    ],
)
def test_what_is_wrong_with_a_row(content: bytes | None, label: Any, message: str) -> None:
    out = np.zeros((3, 32, 32), dtype=np.uint8)
    assert message in str(decode_row(content, label, 2, PREPROCESS, out))


@pytest.fixture
def outside(tmp_path: Path, encode: Callable[..., bytes]) -> Path:
    """A data set's folder, and beside it an image that is none of its own."""
    (tmp_path / "secret.png").write_bytes(encode(5))
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "own.png").write_bytes(encode(6))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("images/own.png", None),
        ("../secret.png", "a path inside the data set's folder is needed"),
        ("images/../../secret.png", "a path inside the data set's folder is needed"),
        ("{root}/secret.png", "a path inside the data set's folder is needed"),
        ("file://{root}/secret.png", "a path inside the data set's folder is needed"),
        ("zip://a.png::x.zip", "a path inside the data set's folder is needed"),
        ("http://localhost/a.png", "a path inside the data set's folder is needed"),
        ("link.png", "a link that leaves the data set's folder"),
        ("none.png", "no such file"),
        ("images", "no such file"),
    ],
)
@pytest.mark.parametrize("struct", [True, False])
def test_files_that_rows_name(
    outside: Path, name: str, message: str | None, *, struct: bool
) -> None:
    named = name.format(root=outside.parent)
    images = [{"bytes": None, "path": named}] if struct else [named]
    table = pa.table({"image": images, "label": [0]})
    pq.write_table(table, outside / "train.parquet")
    rows = ParquetRows(
        str(outside / "train.parquet"), 0, 0, 1, Columns(("image",), "label"), str(outside)
    )
    (error,) = decode(Chunk(0, 0, rows, 2, "task 'a'"), PREPROCESS).column("error").to_pylist()
    assert error is None if message is None else message in error


def test_damaged_data_pages_name_the_file(animals: Path) -> None:
    file = animals / "test.parquet"
    data = bytearray(file.read_bytes())
    data[4:400] = bytes(396)
    file.write_bytes(data)
    rows = ParquetRows(str(file), 0, 0, 6, Columns(("image",), "label"))
    table = decode(Chunk(0, 0, rows, 2, "task 'a'"), PREPROCESS)
    (error,) = table.column("error").drop_null().to_pylist()
    assert error.startswith(f"task 'a': row 0 ({file}): ")


def test_pages_with_checksums_are_checked(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    file, label = tmp_path / "a.parquet", 0x0123456789ABCDEF
    table = pa.table({"image": [encode(0)], "label": [label]})
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, file, write_page_checksum=True, **options)
    content = file.read_bytes()
    at = content.index(label.to_bytes(8, "little"))
    file.write_bytes(content[:at] + b"\0" + content[at + 1 :])
    rows = ParquetRows(str(file), 0, 0, 1, Columns(("image",), "label"))
    (error,) = decode(Chunk(0, 0, rows, 2, "x"), PREPROCESS).column("error").to_pylist()
    assert "crc checksum" in error.lower()


def test_rows_that_are_missing(animals: Path) -> None:
    rows = ParquetRows(str(animals / "train.parquet"), 0, 5, 4, Columns(("image",), "label"))
    (error,) = decode(Chunk(0, 5, rows, 2, "x"), PREPROCESS).column("error").drop_null().to_pylist()
    assert error.endswith("4 rows stated, 2 there")
