import os
from pathlib import Path

import pytest

from actors.files import hashes
from actors.files.checksums import TICK_NS, sealed_json
from actors.files.hashes import hash_files, states


def test_content_and_name_are_hashed_and_place_is_not(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("x")
    two.write_text("x")
    assert hash_files({"a": one}) == hash_files({"a": two}) != hash_files({"b": one})


def test_remembered_until_the_file_changes(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    before = hash_files({"a": file})
    (entry,) = (cache / "hashes").iterdir()
    forged = sealed_json({"sha256": "remembered", "files": 1})
    entry.write_text(forged)
    assert hash_files({"a": file}) == before  # written a moment ago: it may have changed since
    entry.write_text(forged)
    later = file.stat().st_ctime_ns + 2 * TICK_NS
    os.utime(entry, ns=(later, later))
    assert hash_files({"a": file}) == "remembered"
    for damage in ("damaged", forged.replace("remembered", before), "[" * 100_000, "{}", "[]"):
        entry.write_text(damage)
        os.utime(entry, ns=(later, later))
        assert hash_files({"a": file}) == before


def test_a_change_that_leaves_no_trace_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    same = states({"a": file})
    monkeypatch.setattr(hashes, "states", lambda files: same)
    before = hash_files({"a": file})
    file.write_text("y")  # within one tick of the file system's clock
    assert hash_files({"a": file}) != before


def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    before, stat = hash_files({"a": file}), file.stat()
    file.write_text("y")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hash_files({"a": file}) != before
