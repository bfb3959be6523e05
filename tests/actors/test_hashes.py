import os
from pathlib import Path

from actors.hashes import hash_files


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
    entry.write_text(entry.read_text().replace(before, "remembered"))
    assert hash_files({"a": file}) == "remembered"
    entry.write_text("damaged")
    assert hash_files({"a": file}) == before


def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    before, stat = hash_files({"a": file}), file.stat()
    file.write_text("y")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hash_files({"a": file}) != before
