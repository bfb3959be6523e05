"""Files of statistics: stacked over experts; gone, cut short or of other weights is told apart."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from actors.artifacts.errors import Forgotten
from actors.artifacts.statistics_file import opened, place, write
from tests.refusals import one_line

KEYS = ("a", "b")
SHARED = {"q": "q", "k": "q"}


@pytest.fixture
def files(tmp_path):
    for number, key in enumerate(KEYS):
        write(place(key, 0, tmp_path), {}, {})  # a segment without linear layers
        write(place(key, 1, tmp_path), {"q": torch.full((3, 3), float(number))}, SHARED)
    return tmp_path


def refused(root) -> str:
    with one_line(end="; remove the file, and it is gathered again") as lines:
        opened(KEYS, (0, 1), root)["q"]
    return lines[0]


def test_statistics_are_stacked_and_shared(files):
    found = opened(KEYS, (0, 1), files)
    assert set(found) == {"q", "k"}
    assert found["k"][:, 0, 0].tolist() == [0.0, 1.0]
    assert found.key("k") == "q"


@pytest.mark.parametrize("key", KEYS)
def test_a_file_that_is_cut_short_is_named(files, key):
    path = place(key, 1, files)
    data = path.read_bytes()
    for part in (data[:-5], data[:20], b"", b"x" * 100):
        path.write_bytes(part)
        assert refused(files).startswith(f"{path}: damaged statistics (")
    path.write_bytes(data)
    assert opened(KEYS, (0, 1), files)["q"].shape == (2, 3, 3)


def test_a_file_of_something_else_is_named(files):
    path = place("b", 1, files)
    write(path, {"q": torch.ones(2, 2)}, SHARED)
    assert refused(files).startswith(f"{path}: damaged statistics (q: [2, 2]; others have another")
    write(path, {"other": torch.ones(3, 3)}, {"other": "other"})
    assert refused(files).startswith(f"{path}: damaged statistics (")
    save_file({"q": torch.ones(3, 3)}, place("a", 1, files))  # by another program
    assert refused(files).startswith(f"{place('a', 1, files)}: damaged statistics (")


def test_a_file_that_is_gone_is_no_damage(files):
    place("b", 1, files).unlink()
    found = opened(KEYS, (0, 1), files)
    with pytest.raises(Forgotten, match=r"b-1\.safetensors: statistics that are gone"):
        found["q"]
