import errno
import os
from pathlib import Path

import pytest

from actors.atomic import replacing
from fusion.errors import InputError


def test_a_file_appears_whole(tmp_path: Path) -> None:
    with replacing(tmp_path / "a" / "file") as part:
        part.write_text("new")
        assert not (tmp_path / "a" / "file").exists()
    assert (tmp_path / "a" / "file").read_text() == "new"
    assert len(list((tmp_path / "a").iterdir())) == 1


def write_half(file: Path, error: Exception) -> None:
    with replacing(file) as part:
        part.write_text("half")
        raise error


def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(RuntimeError):
        write_half(file, RuntimeError())
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(InputError, match="file: cannot be written: No space"):
        write_half(tmp_path / "file", full)
    assert list(tmp_path.iterdir()) == []
