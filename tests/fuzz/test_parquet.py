"""Parquet files: damaged in metadata or data pages, or with columns of odd types."""

import functools
import io
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from actors.data.images.preprocess import Preprocess
from actors.data.readers import Chunk, decode
from actors.data.task import TaskSource, open_task
from fusion.errors import InputError
from tests.fuzz.damage import altered, only_input_errors

PREPROCESS = Preprocess(8, None, (8, 8))


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@functools.cache
def valid(compression: str = "snappy", *, statistics: bool = True) -> bytes:
    """Four labelled images in two row groups."""
    about = '{"info": {"features": {"label": {"names": ["a", "b"]}}}}'
    images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(4)]
    table = pa.table({"image": images, "label": [0, 1, 0, 1]})
    file = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({"huggingface": about}),
        file,
        row_group_size=2,
        compression=compression,
        write_statistics=statistics,
    )
    return file.getvalue()


def use(data: bytes) -> int:
    """Open a task of this one file and decode what it says it has: how many rows were good."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train.parquet").write_bytes(data)
        task = open_task(TaskSource("x", folder, classnames=["a", "b"]))
        done = 0
        for start, rows in task.split("train").chunks(3):
            if rows.count > 1000:  # a row count that is damaged; refused where it is allocated
                raise InputError("rows")
            table = decode(Chunk(0, start, rows, 2, "x"), PREPROCESS)
            for error in table.column("error").drop_null().to_pylist():
                raise InputError(error)
            done += table.num_rows
        return done


FILES = st.sampled_from([("snappy", True), ("none", True), ("none", False), ("zstd", False)])


@given(st.data())
def test_damaged_parquet(data: st.DataObject) -> None:
    compression, statistics = data.draw(FILES)
    content = data.draw(altered(valid(compression, statistics=statistics)))
    with only_input_errors():
        use(content)


ODD_LABELS = [
    pa.array([0.0, 1.0]),
    pa.array(["0", "1"]),
    pa.array([None, None], pa.int64()),
    pa.array([0, 2**63 - 1]),
    pa.array([2**64 - 1, 0], pa.uint64()),
    pa.array([-1, 0]),
    pa.array([0, None]),
    pa.array([[0], [1]]),
    pa.array([0, 1]).dictionary_encode(),
    pa.array([b"0", b"1"]),
    pa.array([0, 1], pa.date32()),
    pa.array([0, 1], pa.timestamp("s")),
    pa.nulls(2),
]
ODD_IMAGES = [
    pa.array([b"", b"x"]),
    pa.array([None, None], pa.binary()),
    pa.array(["a.png", "b.png"]),
    pa.array([{"bytes": None, "path": None}] * 2),
    pa.array([{"bytes": "text", "path": 3}] * 2),
    pa.array([{"path": "/etc/passwd"}] * 2),
    pa.array([{"bytes": [1, 2]}] * 2),
    pa.array([[1], [2]]),
    pa.array([{"bytes": b"x", "path": "..\0"}] * 2),
    pa.array([{"x": 1}] * 2),
    pa.nulls(2),
]


def written(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


@given(st.sampled_from(ODD_LABELS), st.sampled_from(ODD_IMAGES), st.booleans())
def test_odd_columns(label: pa.Array, image: pa.Array, good: bool) -> None:
    if good:
        image = pa.array([png(0), png(1)])
    with only_input_errors():
        done = use(written(pa.table({"image": image, "label": label})))
        assert done == 2
        assert label.to_pylist() == [0, 1], "odd labels were accepted"


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    with only_input_errors():
        use(data)
        raise AssertionError("noise was accepted")


def test_the_valid_one_is_accepted() -> None:
    assert use(valid()) == 4
