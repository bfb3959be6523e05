"""Matrices in Arrow files: features and embeddings, by sample id."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.experts.embedding_cache import EmbeddingCache
from actors.files.arrow import HOLE
from actors.files.matrix_file import mapped, matrix_shape, open_matrix, write_matrix
from fusion.errors import InputError

IDS = np.array([7, 3, 5, 11, 2])
VALUES = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)


def written(path: Path) -> Path:
    write_matrix(path, IDS, 6, [VALUES[:2], VALUES[2:]])
    return path


def test_any_reader_of_arrow_reads_it(tmp_path: Path) -> None:
    table = pa.ipc.open_file(pa.memory_map(str(written(tmp_path / "m.arrow")))).read_all()
    assert table.schema == pa.schema([("id", pa.int64()), ("values", pa.list_(pa.float32(), 6))])
    assert table["id"].to_pylist() == IDS.tolist()
    assert table["values"].to_pylist() == VALUES.tolist()
    table.validate(full=True)


def test_it_is_mapped_and_not_copied(tmp_path: Path) -> None:
    path = written(tmp_path / "m.arrow")
    values = open_matrix(path, "numbers")
    assert torch.equal(values, torch.from_numpy(VALUES))
    assert (values.dtype, values.is_contiguous()) == (torch.float32, True)
    assert mapped(path)[0].tolist() == IDS.tolist()
    start = values.data_ptr()
    spans = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines()
             if line.endswith("m.arrow")]  # fmt: skip
    assert any(int(a, 16) <= start < int(b, 16) for a, b in (s.split("-") for s in spans))
    assert start % 8 == 0


@pytest.mark.parametrize(("rows", "width"), [(0, 6), (1, 1), (5, HOLE), (HOLE // 4, 3)])
def test_sizes(tmp_path: Path, rows: int, width: int) -> None:
    given = np.random.default_rng(rows).standard_normal((rows, width)).astype(np.float32)
    path = tmp_path / "m.arrow"
    write_matrix(path, np.arange(rows)[::-1], width, np.array_split(given, 3))
    assert matrix_shape(path) == (rows, width)
    assert torch.equal(open_matrix(path, "numbers"), torch.from_numpy(given))
    assert mapped(path)[0].tolist() == list(range(rows))[::-1]


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ([VALUES[:4]], "1 of 5 rows missing"),
        ([VALUES, VALUES[:1]], "[1, 6] into 5 rows of 6"),
        ([VALUES[:, :5]], "[5, 5] into 5 rows of 6"),
    ],
)
def test_what_does_not_fit_leaves_nothing(
    tmp_path: Path, blocks: list[np.ndarray], said: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        write_matrix(tmp_path / "m.arrow", IDS, 6, blocks)
    assert not list(tmp_path.iterdir())


def test_a_fault_in_mid_writing_leaves_nothing(tmp_path: Path) -> None:
    def blocks() -> Iterator[np.ndarray]:
        yield VALUES[:2]
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        write_matrix(tmp_path / "m.arrow", IDS, 6, blocks())
    assert not list(tmp_path.iterdir())


def of_other_columns(path: Path) -> None:
    table = pa.table({"id": IDS, "values": VALUES[:, 0]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def of_two_batches(path: Path) -> None:
    values = pa.FixedSizeListArray.from_arrays(pa.array(VALUES.ravel()), 6)
    table = pa.table({"id": IDS, "values": values})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-30]), "Not an Arrow file"),
    "halved": (lambda path: path.write_bytes(path.read_bytes()[:300]), "Not an Arrow file"),
    "empty": (lambda path: path.write_bytes(b""), ""),
    "an old one": (lambda path: np.save(path.open("wb"), VALUES), "Not an Arrow file"),
    "other columns": (of_other_columns, "no checksum"),
    "two batches": (of_two_batches, "2 record batches; 1 needed"),
    "gone": (lambda path: path.unlink(), "No such file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_another_file_is_one_line(tmp_path: Path, fault: str) -> None:
    path = written(tmp_path / "m.arrow")
    spoil, said = FAULTS[fault]
    spoil(path)
    assert matrix_shape(path) is None
    with pytest.raises(InputError, match=rf"m\.arrow: not a file of numbers: .*{said}") as caught:
        open_matrix(path, "numbers")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("; delete it")


def test_embeddings_are_made_once_by_sample_id_and_again_where_damaged(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, {"a": "hash"})
    made = []

    def make() -> torch.Tensor:
        made.append(1)
        return torch.from_numpy(VALUES)

    for _ in range(2):
        assert torch.equal(cache.get("a", Path("p.arrow"), IDS, make), torch.from_numpy(VALUES))
    place = cache.place("a", Path("p.arrow"), IDS)
    assert mapped(place)[0].tolist() == IDS.tolist()
    assert len(made) == 1
    place.write_bytes(place.read_bytes()[:200])
    assert torch.equal(cache.get("a", Path("p.arrow"), IDS, make), torch.from_numpy(VALUES))
    assert len(made) == 2
    cache.get("a", Path("p.arrow"), None, make)
    assert mapped(cache.place("a", Path("p.arrow"), None))[0].tolist() == [0, 1, 2, 3, 4]
