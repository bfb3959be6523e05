"""Chosen classes are kept beside right and wrong; files of before have none."""

from __future__ import annotations

import numpy as np
import pytest

from actors.files.checksums import Damaged
from sweeps.results.correctness_file import (
    Kept,
    read_correct,
    read_kept,
    read_predicted,
    write_kept,
)

TASKS, INDEX = np.array(["b", "a", "a"]), np.array([0, 1, 0])
RIGHT, CHOSEN = np.array([True, False, True]), np.array([4, -1, 2], np.int32)


def test_classes_are_kept_in_index_order(tmp_path):
    write_kept(tmp_path / "ties.arrow", Kept("k", {}, TASKS, INDEX, RIGHT, predicted=CHOSEN))
    write_kept(tmp_path / "old.arrow", Kept("k", {}, TASKS, INDEX, RIGHT))
    found = read_predicted(tmp_path)
    assert {task: each.tolist() for task, each in found["ties"].items()} == {"b": [4], "a": [2, -1]}
    assert list(found) == ["ties"]
    right = read_correct(tmp_path)
    assert right["ties"]["a"].tolist() == right["old"]["a"].tolist() == [True, False]


def test_they_are_part_of_the_checksum_and_old_files_keep_theirs(tmp_path):
    one, other = (Kept("k", {}, TASKS, INDEX, RIGHT, predicted=each) for each in (CHOSEN, -CHOSEN))
    assert one.checksum() != other.checksum()
    assert one.checksum() != Kept("k", {}, TASKS, INDEX, RIGHT).checksum()
    file = tmp_path / "ties.arrow"
    write_kept(file, one)
    kept = read_kept(file)
    assert kept.predicted is not None
    assert kept.predicted.tolist() == CHOSEN.tolist()
    file.write_bytes(file.read_bytes().replace(CHOSEN.tobytes(), (-CHOSEN).tobytes()))
    with pytest.raises(Damaged):
        read_kept(file)
    assert read_predicted(tmp_path) == {}
