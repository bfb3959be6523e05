"""The ledger: whole files, found again, failed ones forgotten."""

import json

import pytest

from fusion.errors import InputError
from sweeps.results.comparison import Header, compare
from sweeps.results.comparison_file import read, write
from sweeps.results.ledger import Ledger, Stopped, fields_of
from sweeps.results.rows.winners import winners
from tests.sweeps.conftest import entry


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


STOPPED = Stopped("acc/mean", best=0.9, at_most=0.8, rows=40, of=100)


def test_a_stopped_trial_need_not_run_again_and_never_wins(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add(entry("good", metrics={"acc/mean": 0.9}, n={"x": 100}))
    ledger.add(entry("poor", status="stopped", metrics={}, n={}, stopped=STOPPED))
    entries = list(ledger)
    assert entries[1].stopped == STOPPED
    assert set(ledger.done()) == {"good", "poor"}
    assert ledger.clear_failed() == 0
    (row,) = winners(entries)
    assert (row.trial_key, row.trials) == ("good", 2)
    assert row.notes == (
        "racing stopped 1 of 2 trials, which could not win; 70 % of the rows were evaluated",
    )
    header = Header("s", "", "val")
    write(compare(header, [row], {}, (), fields_of(entries, "stopped")), tmp_path)
    (stopped,) = read(tmp_path).stopped
    assert (stopped["trial_key"], stopped["stopped"]["rows"]) == ("poor", 40)


def test_failed_trials_are_forgotten_so_that_they_run_again(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add(entry("good"))
    ledger.add(entry("bad", status="failed", error="boom"))
    assert set(ledger.done()) == {"good"}
    assert ledger.clear_failed() == 1
    assert [found.trial_key for found in ledger] == ["good"]


def test_a_damaged_entry_counts_as_none_and_is_said(tmp_path, caplog):
    ledger = Ledger(tmp_path)
    ledger.add(entry("good"))
    (tmp_path / "x.json").write_text(json.dumps({"trial_key": "x"}))
    assert [found.trial_key for found in ledger] == ["good"]
    assert "x.json" in caplog.text
    assert ledger.set_aside() == ["x.json"]
    assert [path.name for path in sorted(tmp_path.iterdir())] == [".x.json.damaged", "good.json"]


def test_an_entry_of_another_name_deletes_nothing_elsewhere(tmp_path):
    victim, folder = tmp_path / "victim.json", tmp_path / "ledger"
    victim.write_text("precious")
    Ledger(folder).add(entry("k", status="failed"))
    told = json.loads((folder / "k.json").read_text())
    for key in ("../victim", str(tmp_path / "victim"), "other"):
        told = {**{name: value for name, value in told.items() if name != "check"},
                "trial_key": key}  # fmt: skip
        (folder / "k.json").write_text(json.dumps(told))
        assert Ledger(folder).clear_failed() == 0
        assert victim.read_text() == "precious"


def test_an_entry_whose_numbers_changed_since_is_none(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add(entry("k", metrics={"acc/mean": 0.25}))
    file = tmp_path / "k.json"
    file.write_text(file.read_text().replace("0.25", "0.75"))
    assert ledger.done() == {}


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    from pathlib import Path

    def full(self, *_args, **_options):
        self.touch()
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match=r"a1\.json: cannot be written: No space left on device"):
        Ledger(tmp_path).add(entry("a1"))
    assert list(tmp_path.iterdir()) == []
