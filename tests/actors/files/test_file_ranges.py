"""Bytes of files read into given memory."""

import os

import pytest

from actors.checkpoints.checkpoint import read
from actors.families.registry import inspect
from actors.files.file_ranges import fill, opened, stamp_of
from fusion.errors import InputError


@pytest.fixture
def file(tmp_path):
    there = tmp_path / "numbers"
    there.write_bytes(bytes(range(200)))
    return there


def test_what_is_read_and_where_it_ends(file):
    with file.open("rb") as handle:
        into = bytearray(5)
        fill(memoryview(into), handle.fileno(), 100)
        assert list(into) == [100, 101, 102, 103, 104]
        with pytest.raises(EOFError, match="ends too early"):
            fill(memoryview(into), handle.fileno(), 198)


def test_a_short_read_goes_on(file, monkeypatch):
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: whole(fd, [into[0][:3]], at))
    with file.open("rb") as handle:
        into = bytearray(8)
        fill(memoryview(into), handle.fileno(), 10)
    assert list(into) == list(range(10, 18))


def test_another_file_in_its_place_is_refused(file):
    with file.open("rb") as handle:
        stamp = stamp_of(handle.fileno())
    with opened(file, stamp, "pool.base") as descriptor:
        assert os.pread(descriptor, 2, 7) == bytes([7, 8])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    os.utime(file, ns=(0, stamp[1] + 1))
    with (
        pytest.raises(InputError, match=r"^pool\.base: .*numbers: changed while in use$"),
        opened(file, stamp, "pool.base"),
    ):
        pass
    file.unlink()
    with (
        pytest.raises(InputError, match=r"numbers: No such file or directory$"),
        opened(file, stamp, "pool.base"),
    ):
        pass


def test_offsets_of_headers_are_where_the_numbers_are(tiny_pool):
    checkpoint = inspect(str(tiny_pool.root / "base"), "pool.base")
    infos = {**checkpoint.tensors, **checkpoint.rest}
    for name, tensor in read(checkpoint, infos):
        info = infos[name]
        with opened(info.file, info.stamp, "pool.base") as descriptor:
            there = os.pread(descriptor, info.nbytes, info.offset)
        assert there == tensor.numpy().tobytes(), name
