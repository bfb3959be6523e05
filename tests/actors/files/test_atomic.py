import errno
import os
from pathlib import Path

import pytest

from actors.files.atomic import replacing
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


def test_content_is_on_disk_before_the_name_is_and_then_the_name(tmp_path, monkeypatch) -> None:
    done: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(handle: int) -> None:
        done.append(
            f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).name.partition('.part')[1]}"
        )
        real_sync(handle)

    def rename(self: Path, target: Path) -> Path:
        done.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    with replacing(tmp_path / "file") as part:
        part.write_text("new")
    assert done == ["sync .part", "rename", "sync "]


def test_the_umask_says_who_may_read(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    with replacing(tmp_path / "plain") as part:
        part.write_text("x")
    with replacing(tmp_path / "tensors") as part:
        save_file({"a": torch.ones(2)}, part)
    (tmp_path / "own").write_text("x")
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("plain", "tensors", "own")}
    assert len(set(modes.values())) == 1, modes
