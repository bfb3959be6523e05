"""The ledger: whole files, found again, failed ones forgotten."""

import json

import pytest

from fusion.errors import InputError
from sweeps.ledger import Entry, Ledger


def entry(key: str, status: str = "done", **more) -> Entry:
    return Entry(key, "ties", "static", {"density": 0.2}, status, "select", **more)


def test_what_is_added_is_found_again_by_another_reader(tmp_path):
    written = entry("a1", metrics={"acc/mean": 0.123456789012345678}, n={"x": 3})
    Ledger(tmp_path).add(written)
    assert list(Ledger(tmp_path)) == [written]
    assert [path.name for path in tmp_path.iterdir()] == ["a1.json"]  # no temporary file


def test_order_is_that_of_keys_not_of_writing(tmp_path):
    ledger = Ledger(tmp_path)
    for key in ("b", "a", "c"):
        ledger.add(entry(key))
    assert [found.trial_key for found in ledger] == ["a", "b", "c"]


def test_failed_trials_are_forgotten_so_that_they_run_again(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add(entry("good"))
    ledger.add(entry("bad", "failed", error="boom"))
    assert set(ledger.done()) == {"good"}
    assert ledger.clear_failed() == 1
    assert [found.trial_key for found in ledger] == ["good"]


def test_a_damaged_entry_is_named(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"trial_key": "x"}))
    with pytest.raises(InputError, match=r"x\.json: not a ledger entry .*; delete it"):
        list(Ledger(tmp_path))


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    from pathlib import Path

    def full(self, *_args, **_options):
        self.touch()
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match=r"a1\.json: cannot be written: No space left on device"):
        Ledger(tmp_path).add(entry("a1"))
    assert list(tmp_path.iterdir()) == []
