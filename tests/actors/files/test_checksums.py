"""Checksums: of chunks, tensors and facts; looked at once a process, on a budget."""

import os

import numpy as np
import pytest
import torch

from actors.files import checksums
from actors.files.checksums import Checked, column_sums, differing, sealed, unsealed
from actors.files.matrix_file import matrix_shape, write_matrix


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(checksums, "CHUNK", 64)
    monkeypatch.setattr(checksums, "SAMPLE", 128)
    monkeypatch.setattr(checksums, "WHOLE", 1000)


def test_each_chunk_has_a_sum_and_a_change_is_found_where_it_is(small):
    columns = [np.arange(100, dtype=np.uint8), np.arange(50, dtype=np.int64)]
    found = column_sums(columns)
    assert len(found) == 2 + 7
    assert differing(columns, found, 10**6) is None
    columns[1][20] += 1
    assert differing(columns, found, 10**6) == "column 1: bytes 128 to 192: another checksum"
    assert differing(columns, found[1:], 10**6) == "8 checksums for 9 parts"


def test_a_sample_finds_damage_sooner_or_later(small):
    column = np.zeros(64 * 20, dtype=np.uint8)
    found = column_sums([column])
    column[100] = 1
    said = [differing([column], found, 128) for _ in range(200)]
    assert None in said
    assert "column 0: bytes 64 to 128: another checksum" in said


def test_the_budget_is_of_a_file_and_of_a_process(small, monkeypatch, tmp_path):
    checked = Checked()
    assert checked.budget(1000) == 1000
    assert checked.budget(1001) == 128
    monkeypatch.setattr(checksums, "ALL", 1500)
    checked.bytes = 600
    assert checked.budget(1000) == 128
    assert checked.budget(900) == 900


def test_a_file_is_looked_at_once_a_process_and_again_when_it_changed(monkeypatch, tmp_path):
    path = tmp_path / "m.arrow"
    write_matrix(path, np.arange(9), 4, [np.ones((9, 4), dtype=np.float32)])
    monkeypatch.setattr(checksums, "TICK_NS", 0)
    looked = []
    real = checksums.differing
    monkeypatch.setattr("actors.files.arrow.differing", lambda *a: looked.append(1) or real(*a))
    assert [matrix_shape(path) for _ in range(3)] == [(9, 4)] * 3
    assert len(looked) == 1
    data = path.read_bytes()
    path.write_bytes(data)
    assert matrix_shape(path) == (9, 4)
    assert len(looked) == 2
    with path.open("r+b") as file:
        file.seek(data.index(np.ones(4, dtype=np.float32).tobytes()))
        file.write(b"\1")
    assert matrix_shape(path) is None


def test_damage_right_after_a_look_is_seen(tmp_path):
    path = tmp_path / "m.arrow"
    write_matrix(path, np.arange(9), 4, [np.ones((9, 4), dtype=np.float32)])
    assert matrix_shape(path) == (9, 4)
    told = path.stat()
    data = path.read_bytes()
    with path.open("r+b") as file:  # the same inode, size and, on many file systems, times
        file.seek(data.index(np.ones(4, dtype=np.float32).tobytes()))
        file.write(b"\1")
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert matrix_shape(path) is None


def test_a_sealed_file_of_tensors_is_the_same_each_time_and_safetensors_reads_it():
    from safetensors.torch import load

    tensors = {
        "b": torch.arange(3, dtype=torch.bfloat16),
        "a": torch.tensor(1.0),
        "c": torch.ones(0),
    }
    facts = {name: "é" for name in "zyxw"}
    data = sealed(tensors, facts)
    assert all(sealed(tensors, facts) == data for _ in range(5))
    assert load(data).keys() == tensors.keys()
    found, told = unsealed(data)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert {name: told[name] for name in facts} == facts
    for change in (
        {**tensors, "a": torch.tensor(2.0)},
        {**tensors, "a": torch.tensor([1.0])},
        {**tensors, "b": torch.arange(3, dtype=torch.float16)},
        {name: tensors[name] for name in "bc"},
    ):
        assert checksums.seal(change, facts) != told


def test_a_file_without_a_checksum_is_taken_only_where_it_may_be():
    from safetensors.torch import save

    data = save({"a": torch.ones(2)}, metadata={"x": "y"})
    assert unsealed(data, must=False)[1] == {"x": "y"}
    with pytest.raises(ValueError, match="no checksum"):
        unsealed(data)
