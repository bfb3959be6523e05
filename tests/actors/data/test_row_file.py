"""Files of prepared rows: values for all rows, written at once or a part at a time."""

from pathlib import Path

import numpy as np
import torch

from actors.data.row_file import RowWriter, open_lengths, open_rows, write_rows

LABELS = np.array([1, 0, 1])
IDS = np.array([5, 6, 7, 8], np.int32)
OFFSETS = np.array([0, 2, 2, 4])


def test_values_for_all_rows(tmp_path: Path):
    answers = np.array([[3, -1], [4, 9]], np.int32)
    write_rows(
        tmp_path / "a", LABELS, {}, {"ids": (IDS, OFFSETS)}, {"answers": answers}, {"k": "v"}
    )
    found = open_rows(tmp_path / "a")
    assert found.about == {"k": "v"}
    taken = found.take(torch.tensor([2, 0]))
    assert taken["ids"].tolist() == [7, 8, 5, 6]
    assert taken["answers"].tolist() == [answers.tolist()] * 2
    assert taken["answers"].stride(0) == 0  # a view
    assert taken["answers"].dtype == torch.int32


def test_files_without_them_are_the_same_as_before(tmp_path: Path):
    write_rows(tmp_path / "a", LABELS, {"x": np.ones((3, 2))}, {"ids": (IDS, OFFSETS)})
    found = open_rows(tmp_path / "a")
    assert (found.constants, found.about) == ({}, {})
    assert set(found.take(torch.tensor([0]))) == {"x", "ids", "ids.lengths"}
    write_rows(tmp_path / "b", LABELS, {"x": np.ones((3, 2))}, {})
    assert open_lengths(tmp_path / "b") is None
    assert open_rows(tmp_path / "b").lengths is None


def test_a_file_written_in_parts_is_the_same_file(tmp_path: Path):
    writer = RowWriter(tmp_path / "a", {"ids": "int32"})
    writer.write({"ids": (IDS[:2], np.array([2, 0]))}, LABELS[:2])
    writer.write({"ids": (IDS[2:], np.array([2]))}, LABELS[2:])
    writer.finish({}, {})
    write_rows(tmp_path / "b", LABELS, {}, {"ids": (IDS, OFFSETS)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert open_lengths(tmp_path / "a").tolist() == [2, 0, 2]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]


def test_a_file_without_rows(tmp_path: Path):
    writer = RowWriter(tmp_path / "a", {"ids": "int32"})
    writer.finish({}, {})
    found = open_rows(tmp_path / "a")
    assert len(found.labels) == len(found.lengths) == 0
