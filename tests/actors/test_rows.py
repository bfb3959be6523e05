from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.preprocess import clip_preprocess
from actors.rows import Chunk, FileRows, ParquetRows, decode, decode_row

PREPROCESS = clip_preprocess(32)


def test_a_chunk_of_parquet(animals: Path, encode: Callable[..., bytes]) -> None:
    rows = ParquetRows(str(animals / "train.parquet"), 1, 2, 4, "image", "label")
    table = decode(Chunk(3, 9, rows, 2, "task 'a': split 'train'"), PREPROCESS)
    assert table.column("label").to_pylist() == [1, 0, 1, 0]
    assert table.column("row").to_pylist() == [9, 10, 11, 12]
    assert set(table.column("part").to_pylist()) == {3}
    assert table.column("error").null_count == 4
    assert len(table.column("image")[0]) == 3 * 32 * 32


def test_files(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    for index in range(2):
        (tmp_path / f"{index}.png").write_bytes(encode(index))
    rows = FileRows((str(tmp_path / "1.png"), str(tmp_path / "0.png")), (0, 1))
    table = decode(Chunk(0, 0, rows, 2, "x"), PREPROCESS)
    out = np.zeros((3, 32, 32), dtype=np.uint8)
    assert decode_row(encode(1), 0, 2, PREPROCESS, out) is None
    assert table.column("image")[0].as_py() == out.reshape(-1).tolist()


def test_a_bad_row_ends_its_chunk(
    tmp_path: Path, parquet: Callable[..., Path], encode: Callable[..., bytes]
) -> None:
    images = [encode(0), encode(1)[:-40], encode(2)]
    file = parquet(tmp_path / "a.parquet", [0, 1, 0], images=images)
    chunk = Chunk(0, 5, ParquetRows(str(file), 0, 0, 3, "image", "label"), 2, "task 'a'")
    (fault,) = decode(chunk, PREPROCESS).column("error").drop_null().to_pylist()
    assert fault.startswith("task 'a': row 6 (1.png): broken image: ")


@pytest.mark.parametrize(
    ("content", "label", "message"),
    [
        (None, 0, "no image"),
        (b"text", 0, "broken image: not an image file that Pillow knows"),
        (b"", 0, "broken image"),
        (b"any", 2, "label 2; the 2 class names allow 0 to 1"),
        (b"any", -1, "label -1"),
        (b"any", None, "label None"),
        (b"any", 0.5, "label 0.5"),
    ],
)
def test_what_is_wrong_with_a_row(content: bytes | None, label: Any, message: str) -> None:
    out = np.zeros((3, 32, 32), dtype=np.uint8)
    assert message in str(decode_row(content, label, 2, PREPROCESS, out))
