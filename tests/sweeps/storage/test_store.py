"""A sweep's copy on a storage: what is sent, in which order, what comes back, and who may write."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from fusion.errors import InputError
from sweeps.console.signals import Stopped
from sweeps.results import owner
from sweeps.results.folder import SweepFolder, claim
from sweeps.results.ledger import Entry
from sweeps.results.owner import Owner, read_owner
from sweeps.storage import mirror as mirroring
from sweeps.storage.fetch import check_there, take_up
from sweeps.storage.mirror import Mirror, scan
from sweeps.storage.store import open_store, reach
from tests.sweeps.conftest import entry
from tests.sweeps.program import comparison, sweeps

TEXT = "name: s\n"


class Recording(MemoryFileSystem):
    """A memory file system that keeps the order of writes, and can be made to fail."""

    protocol = "recording"
    written: ClassVar[list[str]] = []
    failing: ClassVar[list[str]] = []
    """Parts of paths whose writing raises; "" is part of all."""

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if any(part in path for part in self.failing):
            raise OSError("the bucket is out of reach")
        self.written.append(path)
        super().pipe_file(path, value, mode, **kwargs)


fsspec.register_implementation("recording", Recording, clobber=True)


@pytest.fixture
def url() -> str:
    """A place of its own; memory file systems are one for the process."""
    Recording.written, Recording.failing = [], []
    return f"recording://{uuid.uuid4().hex}"


def ended(key: str, minute: int = 0, **known) -> Entry:
    return entry(key, ended=datetime(2026, 3, 1, 9, minute, tzinfo=UTC).isoformat(), **known)


def started(path: Path, *keys: str) -> SweepFolder:
    """A sweep with finished trials."""
    claim(path, "h", TEXT)
    folder = SweepFolder(path)
    for key in keys:
        folder.ledger.add(ended(key))
    return folder


def mirrored(folder: SweepFolder, url: str, said=None, sent=None) -> Mirror:
    lines = [] if said is None else said
    return Mirror(folder, open_store(url, folder.path.name), sent or {}, lines.append)


def until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def names(url: str, name: str = "s") -> set[str]:
    return set(open_store(url, name).list())


def going_on(url: str, folder: SweepFolder, **words) -> dict:
    """What `run` does with a storage before it claims the folder."""
    store = reach(url, folder.path)
    asked = {"resume": False, "fresh": False, "extend": False} | words
    check_there(store, folder, "h", TEXT, **asked)
    return take_up(store, folder, fresh=asked["fresh"])


def test_every_file_is_sent_and_a_removed_one_is_removed(tmp_path, url):
    folder = started(tmp_path / "s", "a")
    (folder.path / "tune").mkdir()
    (folder.path / "tune" / "big").write_text("x")
    (folder.path / "report.html.part").write_text("x")
    folder.learned.mkdir()
    (folder.learned / "b.state").write_text("half")
    with mirrored(folder, url) as mirror:
        store = open_store(url, "s")
        until(lambda: "ledger/a.json" in names(url))
        assert "learned/b.state" in names(url)
        folder.ledger.add(ended("b"))
        (folder.learned / "b.state").unlink()
        (folder.learned / "b.safetensors").write_text("whole")
        mirror.wake()
        until(lambda: "learned/b.state" not in names(url))
        assert {"ledger/b.json", "learned/b.safetensors"} <= names(url)
        assert read_owner(store.read("owner.json")).alive
    assert names(url) == {
        "ledger/a.json", "ledger/b.json", "learned/b.safetensors",
        "spec.yaml", "specs/h.yaml", "sweep.json",
    }  # fmt: skip
    assert read_owner(store.read("owner.json")).state == "finished"
    assert json.loads((folder.path / "owner.json").read_text())["state"] == "finished"


def test_what_is_counted_on_is_there_first(tmp_path, url):
    folder = started(tmp_path / "s", "a")
    for name in ("learned/a.safetensors", "correct/ties.arrow", "recipes/ties.yaml"):
        (folder.path / name).parent.mkdir()
        (folder.path / name).write_text("x")
    (folder.path / "comparison.json").write_text("{}")
    order = list(scan(folder.path))
    assert order == [
        "specs/h.yaml", "spec.yaml", "sweep.json", "learned/a.safetensors", "ledger/a.json",
        "correct/ties.arrow", "recipes/ties.yaml", "comparison.json",
    ]  # fmt: skip
    with mirrored(folder, url):
        pass
    sent = [path.partition("/s/")[2] for path in Recording.written]
    assert [name for name in sent if name != "owner.json"] == order


def test_only_what_changed_is_sent_again(tmp_path, url):
    folder = started(tmp_path / "s", "a")
    folder.learned.mkdir()
    (folder.learned / "a.safetensors").write_text("megabytes")
    with mirrored(folder, url):
        pass
    sent = going_on(url, folder, resume=True)
    Recording.written.clear()
    folder.ledger.add(ended("b"))
    with mirrored(folder, url, sent=sent):
        pass
    assert {path.rpartition("/s/")[2] for path in Recording.written} >= {"ledger/b.json"}
    again = ("ledger/a.json", "learned/a.safetensors")
    assert not [path for path in Recording.written if path.endswith(again)]


def test_a_local_storage_never_shows_half_a_file(tmp_path):
    folder = started(tmp_path / "outputs" / "s", "a")
    with mirrored(folder, f"file://{tmp_path}/safe"):
        pass
    assert (tmp_path / "safe/s/ledger/a.json").read_bytes() == (
        folder.path / "ledger/a.json"
    ).read_bytes()
    assert not list((tmp_path / "safe").rglob("*.part"))


def test_a_storage_that_fails_is_said_once_and_catches_up(tmp_path, url, monkeypatch):
    monkeypatch.setattr(mirroring, "PAUSES", (0.01, 0.02))
    folder, said = started(tmp_path / "s", "a"), []
    with mirrored(folder, url, said) as mirror:
        until(lambda: "ledger/a.json" in names(url))
        Recording.failing = [""]
        folder.ledger.add(ended("b"))
        mirror.wake()
        until(lambda: mirror.retry and mirror.fault)
        time.sleep(0.2)  # several tries
        assert len(said) == 1
        Recording.failing = []
        until(lambda: "ledger/b.json" in names(url))
        until(lambda: mirror.fault is None)
    place = open_store(url, "s").url
    assert said == [
        f"storage {place}: the bucket is out of reach; the sweep goes on without it",
        f"storage {place}: is reached again",
    ]


@pytest.mark.parametrize(
    ("error", "state"),
    [(KeyboardInterrupt(), "stopped"), (Stopped(), "stopped"), (OSError("x"), "failed")],
)
def test_how_it_ended_is_kept_with_everything(tmp_path, url, error, state):
    folder = started(tmp_path / "s")

    def ends_badly():
        with mirrored(folder, url):
            folder.ledger.add(ended("a"))
            raise error

    with pytest.raises(type(error)):
        ends_badly()
    assert "ledger/a.json" in names(url)
    assert read_owner(open_store(url, "s").read("owner.json")).state == state
    assert read_owner((folder.path / "owner.json").read_bytes()).state == state


def test_what_a_storage_lacks_is_said_at_the_end(tmp_path, url, monkeypatch):
    monkeypatch.setattr(mirroring, "PAUSES", (0.01, 0.02))
    folder, said = started(tmp_path / "s"), []
    with mirrored(folder, url, said) as mirror:
        until(lambda: "sweep.json" in names(url))
        Recording.failing = ["ledger"]
        folder.ledger.add(ended("a"))
        folder.ledger.add(ended("b"))
    assert mirror.fault == "the bucket is out of reach"
    assert said[-1].endswith("lacks 2 files (the bucket is out of reach); --resume sends them")
    Recording.failing = []
    sent = going_on(url, folder, resume=True)
    with mirrored(folder, url, sent=sent):
        pass
    assert {"ledger/a.json", "ledger/b.json"} <= names(url)


def test_a_storage_that_hangs_is_no_sign_of_death(tmp_path, url, monkeypatch):
    monkeypatch.setattr(owner, "BEAT", 0.02)
    monkeypatch.setattr(mirroring, "PATIENCE", 0.1)
    folder, said, free = started(tmp_path / "s"), [], threading.Event()
    with mirrored(folder, url, said) as mirror:
        until(lambda: "sweep.json" in names(url))
        monkeypatch.setattr(mirror, "send", lambda store: free.wait(20))
        folder.ledger.add(ended("a"))
        mirror.wake()
        before = read_owner((folder.path / "owner.json").read_bytes()).beat
        time.sleep(0.2)
        assert read_owner((folder.path / "owner.json").read_bytes()).beat > before + 0.05
    free.set()
    assert said[-1].endswith("lacks 1 file (no answer in 0 s); --resume sends them")


def test_a_folder_that_is_gone_empties_no_storage(tmp_path, url, monkeypatch):
    import shutil

    monkeypatch.setattr(mirroring, "PAUSES", (0.01, 0.02))
    folder, said = started(tmp_path / "s", "a"), []
    with mirrored(folder, url, said) as mirror:
        until(lambda: "ledger/a.json" in names(url))
        shutil.rmtree(folder.path)
        mirror.wake()
        until(lambda: said)
    assert "is gone; nothing is removed from the storage" in said[0]
    assert "ledger/a.json" in names(url)


def test_another_machine_takes_it_up(tmp_path, url):
    folder = started(tmp_path / "one" / "s", "a", "b")
    (folder.path / "correct").mkdir()
    (folder.path / "correct/ties.arrow").write_text("x")
    with mirrored(folder, url):
        pass
    there = SweepFolder(tmp_path / "two" / "s")
    with pytest.raises(InputError, match="holds a sweep with 2 finished trials; --resume goes on"):
        going_on(url, there)
    assert not there.path.exists()
    going_on(url, there, resume=True)
    assert claim(there.path, "h", TEXT, resume=True).sweep_id == json.loads(
        folder.identity.read_text()
    )["sweep_id"]  # fmt: skip
    assert dict.fromkeys(scan(there.path)) == dict.fromkeys(scan(folder.path))
    assert list(there.ledger) == list(folder.ledger)


def test_of_two_entries_a_success_counts_then_the_later(tmp_path, url):
    folder = started(tmp_path / "one" / "s")
    there = SweepFolder(tmp_path / "two" / "s")
    for key in "abc":
        folder.ledger.add(ended(key, 5, seed=1))
    with mirrored(folder, url):
        pass
    going_on(url, there, resume=True)
    there.ledger.add(ended("a", 9, seed=2))  # later here
    there.ledger.add(ended("b", 1, seed=2))  # earlier here
    there.ledger.add(ended("c", 9, seed=2, status="failed"))
    there.ledger.add(ended("d", 1, seed=2))  # only here
    for key in "ab":
        (there.path / "learned").mkdir(exist_ok=True)
        (there.learned / f"{key}.safetensors").write_text("here")
        (folder.path / "learned").mkdir(exist_ok=True)
        (folder.learned / f"{key}.safetensors").write_text("there")
    with mirrored(folder, url, sent=going_on(url, folder, resume=True)):
        pass
    sent = going_on(url, there, resume=True)
    assert {e.trial_key: e.seed for e in there.ledger} == {"a": 2, "b": 1, "c": 1, "d": 2}
    learned = {key: (there.learned / f"{key}.safetensors").read_text() for key in "ab"}
    assert learned == {"a": "here", "b": "there"}
    with mirrored(there, url, sent=sent):
        pass
    store = open_store(url, "s")
    assert json.loads(store.read("ledger/a.json"))["seed"] == 2
    assert json.loads(store.read("ledger/d.json"))["seed"] == 2


def checkpoint(step: int) -> bytes:
    header = json.dumps({"__metadata__": {"state": json.dumps({"step": step})}}).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(("here", "there", "kept"), [(6, 9, 9), (9, 6, 9), (0, 3, 3)])
def test_of_two_checkpoints_the_one_with_more_steps_counts(tmp_path, url, here, there, kept):
    folder = started(tmp_path / "one" / "s")
    folder.learned.mkdir()
    (folder.learned / "k.state").write_bytes(checkpoint(there))
    with mirrored(folder, url):
        pass
    mine = SweepFolder(tmp_path / "two" / "s")
    mine.learned.mkdir(parents=True)
    (mine.learned / "k.state").write_bytes(checkpoint(here) if here else b"damaged")
    going_on(url, mine, resume=True)
    assert (mine.learned / "k.state").read_bytes() == checkpoint(kept)


def test_another_sweep_of_the_name_is_refused_or_moved_aside(tmp_path, url):
    with mirrored(started(tmp_path / "one" / "s", "a"), url):
        pass
    other = started(tmp_path / "two" / "s")
    with pytest.raises(InputError, match=r"holds another sweep \(id .*\) than .*use --fresh"):
        going_on(url, other, resume=True)
    with mirrored(other, url, sent=going_on(url, other, fresh=True)):
        pass
    assert "ledger/a.json" not in names(url)
    fs, path = fsspec.core.url_to_fs(url)
    aside = [each for each in fs.ls(path, detail=False) if not each.endswith("/s")]
    assert len(aside) == 1
    assert fs.exists(f"{aside[0]}/ledger/a.json")


def test_a_living_driver_elsewhere_is_not_disturbed(tmp_path, url):
    folder = started(tmp_path / "one" / "s", "a")
    with mirrored(folder, url):
        pass
    store = open_store(url, "s")
    other = Owner(host="node-3", pid=71)
    store.write("owner.json", other.dump())
    mine = SweepFolder(tmp_path / "two" / "s")
    with pytest.raises(InputError, match="another driver is running this sweep") as refused:
        going_on(url, mine, resume=True)
    assert "pid 71 on node-3, since 20" in str(refused.value)
    assert "\n" not in str(refused.value)
    late = time.time() - owner.STALE - 1
    store.write("owner.json", Owner(host="node-3", beat=late).dump())
    with mirrored(mine, url, sent=going_on(url, mine, resume=True)):
        assert read_owner(store.read("owner.json")).pid == os.getpid()


def test_a_driver_that_was_taken_over_writes_no_more(tmp_path, url):
    folder, said = started(tmp_path / "s", "a"), []
    with mirrored(folder, url, said) as mirror:
        store = open_store(url, "s")
        until(lambda: "ledger/a.json" in names(url))
        other = Owner(host="node-3", pid=71)
        store.write("owner.json", other.dump())
        folder.ledger.add(ended("b"))
        mirror.wake()
        until(lambda: said)
    assert "another driver has taken this sweep over (pid 71 on node-3" in said[0]
    assert len(said) == 1
    assert "ledger/b.json" not in names(url)
    assert read_owner(store.read("owner.json")) == other


def test_a_dead_process_of_this_machine_is_gone_at_once(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert Owner().alive
    assert not Owner(pid=child.pid).alive
    assert Owner(pid=child.pid, host="elsewhere").alive
    assert "is gone; last sign of life" in Owner(pid=child.pid).state_text()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("zzz://bucket", "Protocol not known: zzz"),
        ("s3:/bucket", "scheme://path"),
        ("sftp://me:secret@host/x", "a package is missing"),
    ],
)
def test_a_storage_there_is_not(url, said, tmp_path):
    with pytest.raises(InputError, match=said) as refused:
        reach(url, tmp_path / "s")
    assert str(refused.value).startswith("--storage: ")
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_storage_that_cannot_be_written_or_is_the_outputs_folder(tmp_path, url):
    Recording.failing = [""]
    with pytest.raises(InputError, match="cannot be used: the bucket is out of reach"):
        reach(url, tmp_path / "s")
    with pytest.raises(InputError, match="holds the sweep's own folder"):
        reach(str(tmp_path), tmp_path / "s")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_here_and_resumed_elsewhere_equals_undisturbed(tiny_pool, tmp_path, monkeypatch):
    """kill -9 of the driver; another folder, with the storage alone, ends the sweep."""
    monkeypatch.setenv("FUSION_SWEEPS_STORAGE", f"file://{tmp_path}/safe")
    for name in ("one", "two", "whole"):
        (tmp_path / name).mkdir()
    spec = tiny_pool.write(tmp_path / "tiny.yaml")
    ledger = tmp_path / "safe/tiny/ledger"
    driver = subprocess.Popen(
        [sys.executable, "-m", "sweeps", "run", str(spec)],
        cwd=tmp_path / "one", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while len(list(ledger.glob("*.json"))) < 3:
        assert driver.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    kept = {path.name: path.read_bytes() for path in ledger.glob("*.json")}
    refused = sweeps("run", spec, cwd=tmp_path / "two")
    assert refused.returncode == 2
    assert "finished trials; --resume goes on with it" in refused.stderr
    done = sweeps("run", spec, "--resume", cwd=tmp_path / "two")
    assert done.returncode == 0, done.stdout + done.stderr
    here = tmp_path / "two/outputs/tiny"
    assert {name: (here / "ledger" / name).read_bytes() for name in kept} == kept
    monkeypatch.delenv("FUSION_SWEEPS_STORAGE")
    assert sweeps("run", spec, cwd=tmp_path / "whole").returncode == 0
    assert comparison(here) == comparison(tmp_path / "whole/outputs/tiny")
    assert comparison(tmp_path / "safe/tiny") == comparison(here)
    there = {path.name: path.read_bytes() for path in ledger.glob("*.json")}
    assert there == {path.name: path.read_bytes() for path in (here / "ledger").glob("*.json")}
    told = sweeps("report", f"file://{tmp_path}/safe/tiny", "--json", cwd=tmp_path)
    assert [row["method"] for row in json.loads(told.stdout)["rows"]] == [
        row["method"] for row in comparison(here)["rows"]
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_extended_sweep_runs_what_is_new_and_nothing_else(tiny_pool, tmp_path):
    """More grid points and a method less; finished trials stay, and MLflow's parent run too."""
    import sqlite3

    spec = tiny_pool.write(tmp_path / "tiny.yaml")
    assert sweeps("run", spec, cwd=tmp_path).returncode == 0
    ledger = tmp_path / "outputs/tiny/ledger"
    before = {path.name: path.stat().st_mtime_ns for path in ledger.glob("*.json")}
    methods = tiny_pool.spec()["methods"]
    del methods["wise_ft"]
    methods["task_arithmetic"] = {"scale": {"grid": [0.3, 0.9]}}
    tiny_pool.write(spec, methods=methods)
    refused = sweeps("run", spec, "--resume", cwd=tmp_path)
    assert refused.returncode == 2
    said = refused.stderr.splitlines()
    assert "methods.task_arithmetic.scale.grid: [0.1, 0.3, 0.5, 0.7] -> [0.3, 0.9]" in said
    assert said[-1].startswith("--extend goes on with it")
    done = sweeps("run", spec, "--extend", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    after = {path.name: path.stat().st_mtime_ns for path in ledger.glob("*.json")}
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 1
    rows = {row["method"]: row for row in comparison(ledger.parent)["rows"]}
    assert "wise_ft" not in rows
    assert rows["task_arithmetic"]["trials"] == 5  # those of the first spec count
    with sqlite3.connect(tmp_path / "outputs" / "mlflow.db") as db:
        parents = db.execute("select count(*) from tags where key='role' and value='sweep'")
        assert parents.fetchone() == (1,)
        keys = [key for (key,) in db.execute("select value from tags where key = 'trial_key'")]
    assert sorted(keys) == sorted(path.stem for path in ledger.glob("*.json"))
