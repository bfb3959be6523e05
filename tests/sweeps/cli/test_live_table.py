"""The table of a running sweep: here, from a storage, from a cluster; and when it ends."""

import io
import json
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import yaml
from rich.console import Console

from fusion.errors import InputError
from sweeps.cli.live_table import follow, snapshot, view, words
from sweeps.results.comparison import Header, compare
from sweeps.results.comparison_file import write
from sweeps.results.folder import SweepFolder, claim
from sweeps.results.ledger import Entry
from sweeps.results.owner import Owner
from sweeps.results.rows.winners import winners
from sweeps.spec.sweep import spec_hash, validate
from sweeps.storage.mirror import Mirror
from sweeps.storage.store import open_store
from sweeps.storage.watch import watched
from tests.sweeps.cli.test_main import call
from tests.sweeps.conftest import entry

SPEC = {
    "name": "s",
    "pool": {"base": "b", "experts": {"cars": "c", "svhn": "v"}},
    "methods": {
        "ties": {"density": {"grid": [0.1, 0.2]}, "scale": 0.3},
        "task_arithmetic": {"scale": {"grid": [0.1, 0.2, 0.3]}},
    },
}


def trial(key: str, method: str, value: float | None, minute: int = 0, **params) -> Entry:
    known = {"status": "failed", "error": "InputError: too dense"}
    if value is not None:
        known = {"metrics": {"acc/mean": value}}
    ended = f"2026-03-01T09:{minute:02d}:00+00:00"
    return entry(key, method, params=params, ended=ended, **known)


@pytest.fixture
def folder(tmp_path) -> SweepFolder:
    """A sweep that a driver, this process, is running."""
    made = SweepFolder(tmp_path / "outputs" / "s")
    claim(made.path, spec_hash(validate(SPEC, "s")), yaml.safe_dump(SPEC, sort_keys=False))
    (made.path / "owner.json").write_bytes(Owner().dump())
    made.ledger.add(trial("a", "ties", 0.5, 1, density=0.1))
    made.ledger.add(trial("b", "ties", 0.625, 2, density=0.2))
    made.ledger.add(trial("c", "task_arithmetic", None, 3, scale=0.1))
    return made


def ended(folder: SweepFolder, state: str) -> None:
    (folder.path / "owner.json").write_bytes(Owner(state=state).dump())


def compared(folder: SweepFolder, hashed: str) -> None:
    rows = winners(folder.ledger)
    write(compare(Header("s", hashed, "val"), rows, {}), folder.path)


def test_a_snapshot_by_hand(folder):
    now = snapshot(folder.path)
    assert (now.state, now.running) == ("running", True)
    assert (now.done, now.failed, now.planned) == (2, 1, 2 + 2 + 3 + 1 + 1)
    ties, arithmetic = now.lines[2:4]
    assert (ties.method, ties.done, ties.planned, ties.best) == ("ties", 2, 2, 0.625)
    assert ties.params == {"density": 0.2}
    assert (arithmetic.done, arithmetic.failed, arithmetic.best) == (0, 1, None)
    assert [each.trial_key for each in now.last] == ["c", "b", "a"]
    assert words(now) == (
        "s: 2/9 trials, 1 failed; best ties 0.6250 (density=0.2); "
        "last task_arithmetic scale=0.1 InputError: too dense"
    )


def test_the_table_shows_best_and_last(folder):
    console = Console(file=io.StringIO(), width=120)
    console.print(view(snapshot(folder.path), "the storage is silent"))
    said = console.file.getvalue()
    for word in ("s: 2/9 trials, 1 failed", "best acc/mean", "0.6250", "density=0.2", "silent"):
        assert word in said


@pytest.mark.parametrize(
    ("owner", "said"),
    [
        (Owner(state="finished"), "finished"),
        (Owner(state="stopped"), "interrupted"),
        (Owner(state="failed"), "failed"),
        (Owner(host="node-3", beat=-500), "is gone; last sign of life 8 min"),
    ],
)
def test_a_sweep_that_does_not_run_does_not_look_so(folder, owner, said):
    if owner.beat < 0:  # seconds ago
        owner = replace(owner, beat=time.time() + owner.beat)
    (folder.path / "owner.json").write_bytes(owner.dump())
    now = snapshot(folder.path)
    assert not now.running
    assert said in now.state


def test_a_killed_driver_ends_the_table(folder, monkeypatch, capsys, tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (folder.path / "owner.json").write_bytes(Owner(pid=child.pid).dump())
    monkeypatch.chdir(tmp_path)
    status, said, _ = call(monkeypatch, capsys, "report", "s", "--follow", "--every", "0.1")
    assert status == 1
    assert f"its driver (pid {child.pid} on" in said
    assert "best so far" in said


def test_a_line_at_each_change_then_the_comparison(folder, monkeypatch, capsys, tmp_path):
    def go_on() -> None:
        time.sleep(0.5)
        folder.ledger.add(trial("d", "task_arithmetic", 0.75, 4, scale=0.2))
        time.sleep(0.5)
        compared(folder, spec_hash(validate(SPEC, "s")))
        ended(folder, "finished")

    driver = threading.Thread(target=go_on)
    driver.start()
    monkeypatch.chdir(tmp_path)
    status, said, _ = call(monkeypatch, capsys, "report", "s", "--follow", "--every", "0.1")
    driver.join()
    assert status == 0
    changes = [line for line in said.splitlines() if line.startswith("s: ")]
    assert len([line for line in changes if "2/9 trials" in line]) == 1
    assert len([line for line in changes if "3/9 trials" in line]) == 1
    assert "best task_arithmetic 0.7500 (scale=0.2)" in said
    assert "s: accuracy, %" in said


def test_from_a_storage(folder, tmp_path):
    url = f"memory://{uuid.uuid4().hex}"
    store = open_store(url, "s")
    with (
        Mirror(folder, store, {}, print) as mirror,
        watched_when_there(f"{url}/s") as found,
    ):
        console = Console(file=io.StringIO(), width=100)
        assert snapshot(found.folder).running
        folder.ledger.add(trial("d", "task_arithmetic", 0.75, 4, scale=0.2))
        (folder.path / "ledger" / "c.json").unlink()  # a resumed sweep runs it again
        mirror.wake()
        end = time.monotonic() + 20
        while words(snapshot(found.folder)) != (
            "s: 3/9 trials; best task_arithmetic 0.7500 (scale=0.2); "
            "last task_arithmetic scale=0.2 0.7500"
        ):
            assert time.monotonic() < end
            found.refresh()
        store.write("owner.json", Owner(state="finished").dump())
        assert follow(found, console, 0.1).state == "finished"
    assert "task_arithmetic" in console.file.getvalue()


def watched_when_there(url: str):
    end = time.monotonic() + 20
    store = open_store(url, "")
    while "ledger/c.json" not in store.list():
        assert time.monotonic() < end
        time.sleep(0.01)
    return watched(url, Path("outputs"))


def test_a_name_is_looked_for_on_the_storage_unless_it_runs_here(folder, tmp_path):
    url = f"file://{tmp_path}/safe"
    with Mirror(folder, open_store(url, "s"), {}, print):
        pass
    folder.ledger.add(trial("d", "task_arithmetic", 0.75, 4, scale=0.2))
    outputs = folder.path.parent
    with watched("s", outputs, storage=url) as found:
        assert snapshot(found.folder).done == 2
    (folder.path / "owner.json").write_bytes(Owner().dump())
    with watched("s", outputs, storage=url) as found:
        assert snapshot(found.folder).done == 3
    with watched("s", outputs, storage=f"file://{tmp_path}/empty") as found:
        assert found.folder == folder.path


def test_report_of_a_storage_as_json(folder, tmp_path, monkeypatch, capsys):
    url = f"file://{tmp_path}/safe"
    with Mirror(folder, open_store(url, "s"), {}, print):
        pass
    html = tmp_path / "r.html"
    status, said, _ = call(monkeypatch, capsys, "report", f"{url}/s", "--json", "--html", html)
    assert status == 0
    rows = {row["method"]: row for row in json.loads(said)["rows"]}
    assert rows["ties"]["params"] == {"density": 0.2}
    assert "ties" in html.read_text()


@pytest.mark.slow
@pytest.mark.ray
def test_from_the_head_of_a_cluster(folder, ray_cluster):
    outputs = str(folder.path.parent)
    with watched("s", Path("o"), address="auto", outputs_there=outputs) as found:
        assert snapshot(found.folder).done == 2
        folder.ledger.add(trial("d", "task_arithmetic", 0.75, 4, scale=0.2))
        found.refresh()
        assert snapshot(found.folder).done == 3
        (folder.path / "ledger" / "d.json").unlink()
        found.refresh()
        assert snapshot(found.folder).done == 2
    with (
        pytest.raises(InputError, match="nope, on the cluster's head: no sweep there"),
        watched("nope", Path("o"), address="auto", outputs_there=outputs),
    ):
        pass


def test_a_sweep_there_is_not(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fsspec.filesystem("memory").pipe_file("/elsewhere/x", b"")
    for words_ in (("nope",), ("memory://elsewhere/nope",), ("nope", "--storage", "memory://e")):
        status, _, said = call(monkeypatch, capsys, "report", *words_, "--follow")
        assert status == 2
        assert "nope: no sweep there" in said
        assert said.count("\n") == 1


def test_a_comparison_of_before_an_extension_does_not_count(folder, monkeypatch, capsys):
    compared(folder, "of-an-older-spec")
    folder.ledger.add(trial("d", "task_arithmetic", 0.75, 4, scale=0.2))
    status, said, _ = call(monkeypatch, capsys, "report", folder.path, "--json")
    assert status == 0
    rows = {row["method"]: row["val"] for row in json.loads(said)["rows"]}
    assert rows["task_arithmetic"] == {"acc/mean": 0.75}


def test_ctrl_c_leaves(folder, monkeypatch, capsys):
    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    status, said, fault = call(monkeypatch, capsys, "report", folder.path, "--follow")
    assert status == 130
    assert "s: 2/9 trials, 1 failed" in said
    assert "Traceback" not in fault
