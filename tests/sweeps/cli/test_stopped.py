"""Commands that are stopped, in every phase and by every signal: real processes, a real Ray."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest
import yaml

from sweeps.results.owner import read_owner
from sweeps.train.ingredients import read_results
from tests.sweeps.program import comparison, sweeps
from tests.sweeps.train.test_run import spec as training

THREE = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(scope="module")
def expected(tiny_pool, tmp_path_factory) -> dict:
    """The comparison of a sweep that nobody stops."""
    cwd = tmp_path_factory.mktemp("expected")
    done = sweeps("run", tiny_pool.write(cwd / "tiny.yaml"), cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return comparison(cwd / "outputs/tiny")


class Running:
    """A command in a process group of its own, with what it says in a file."""

    def __init__(self, cwd: Path, *words: object) -> None:
        self.cwd, self.mark = cwd, uuid.uuid4().hex
        self.log = cwd / "said.txt"
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sweeps", *map(str, words)],
                cwd=cwd, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "MARK": self.mark},
            )  # fmt: skip

    def until(self, ready) -> None:
        """Wait for a moment."""
        ends = time.monotonic() + 300
        while not ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < ends, self.log.read_text()
            time.sleep(0.005)

    def said(self, text: str) -> bool:
        return text in self.log.read_text()

    def stop(self, number: int, *, twice: bool = False, group: bool = False) -> str:
        """Send a signal, to all of the group if wished; what was said until the end."""
        began = time.monotonic()
        for at in range(1 + twice):
            time.sleep(0.7 * at)
            (os.killpg if group else os.kill)(self.process.pid, number)
        self.process.wait(timeout=90)
        text = self.log.read_text()
        assert self.process.returncode == 128 + number, text
        assert time.monotonic() - began < (20 if twice else 60)
        assert "Traceback" not in text
        assert "*** SIG" not in text
        ends = time.monotonic() + 20
        while self.left():
            assert time.monotonic() < ends, self.left()
            time.sleep(0.2)
        return text

    def left(self) -> list[str]:
        """Processes that this command has started, and that are there still."""
        found = []
        for each in psutil.process_iter():
            try:
                if each.environ().get("MARK") == self.mark:
                    found.append(each.name())
            except psutil.Error:
                continue
        return found


def roles(cwd: Path, role: str) -> list[str]:
    """States of MLflow's runs of a role."""
    with sqlite3.connect(cwd / "outputs" / "mlflow.db") as db:
        query = "select status from runs join tags using (run_uuid) where key='role' and value=?"
        return [status for (status,) in db.execute(query, [role])]


PHASES = {
    "start": lambda run: (run.cwd / "outputs/.tiny.lock").exists(),
    "Ray": lambda run: (run.cwd / "outputs/mlflow.db").exists(),
    "fleet": lambda run: run.said("dashboard "),
    "trials": lambda run: len(list(run.cwd.glob("outputs/tiny/ledger/*.json"))) >= 2,
    "finals": lambda run: run.said("report split"),
    "end": lambda run: (run.cwd / "outputs/tiny/comparison.json").exists(),
}


def checked(run: Running, text: str, number: int, phase: str) -> None:
    """What is there after a stop."""
    folder = run.cwd / "outputs/tiny"
    assert "interrupted; everything finished is kept. Go on with:\nsweeps run " in text
    assert text.rstrip().endswith("tiny.yaml --resume")
    if phase in ("start", "Ray", "fleet"):
        assert not folder.exists()
        return
    assert read_owner((folder / "owner.json").read_bytes()).state == "stopped"
    ledger = list(folder.glob("ledger/*.json"))
    assert len(ledger) >= 2
    assert roles(run.cwd, "sweep") == ["KILLED"]
    assert sorted(roles(run.cwd, "trial")) == ["FINISHED"] * len(ledger)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("number", "phase", "group"),
    [
        *((number, "trials", True) for number in THREE),
        (signal.SIGINT, "start", False),
        (signal.SIGTERM, "Ray", False),
        (signal.SIGHUP, "fleet", True),
        (signal.SIGTERM, "fleet", False),
        (signal.SIGINT, "finals", True),
        (signal.SIGTERM, "finals", False),
        (signal.SIGHUP, "end", False),
    ],
)
def test_a_sweep_that_is_stopped_goes_on_to_the_same_end(
    expected, tiny_pool, tmp_path, number, phase, group
):
    spec = tiny_pool.write(tmp_path / "tiny.yaml")
    run = Running(tmp_path, "run", spec)
    run.until(lambda: PHASES[phase](run))
    checked(run, run.stop(number, group=group), number, phase)
    done = sweeps("run", spec, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert comparison(tmp_path / "outputs/tiny") == expected
    ledger = list((tmp_path / "outputs/tiny/ledger").glob("*.json"))
    assert sorted(roles(tmp_path, "trial")) == ["FINISHED"] * len(ledger)
    assert roles(tmp_path, "sweep") == ["FINISHED"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("phase", ["Ray", "trials", "finals"])
def test_a_second_signal_ends_at_once_and_loses_nothing(expected, tiny_pool, tmp_path, phase):
    spec = tiny_pool.write(tmp_path / "tiny.yaml")
    run = Running(tmp_path, "run", spec)
    run.until(lambda: PHASES[phase](run))
    kept = {path: path.read_text() for path in tmp_path.glob("outputs/tiny/ledger/*.json")}
    run.stop(signal.SIGTERM, twice=True)
    assert all(path.read_text() == text for path, text in kept.items())
    owner = tmp_path / "outputs/tiny/owner.json"
    assert not owner.exists() or read_owner(owner.read_bytes()).state == "stopped"
    done = sweeps("run", spec, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert comparison(tmp_path / "outputs/tiny") == expected


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("scheduler", [None, "pbt"])
def test_training_that_is_stopped_goes_on(tiny_pool, tmp_path, number, scheduler):
    search = {"epochs": 120, "batch_size": 8, "learning_rate": {"loguniform": [1e-4, 1e-3]}}
    out = tmp_path / "out"
    content = training(tiny_pool, out, base=str(tiny_pool.root / "base"), keep="all")
    content["finetune"] = search | {"trials": 2} | ({"scheduler": "pbt"} if scheduler else {})
    del content["pretrain"], content["tasks"]["tones"]
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(content))
    run = Running(tmp_path, "train", file)
    run.until(lambda: list(out.glob("trained/**/*.pt")))
    text = run.stop(number)
    assert f"interrupted; what has ended is kept. Go on with:\nsweeps train {file}" in text
    assert not (out / "pool.yaml").exists()
    done = sweeps("train", file, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(read_results(out, "lines")) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_analysis_that_is_stopped_keeps_its_points(tiny_pool, tmp_path):
    spec = tiny_pool.write(tmp_path / "tiny.yaml")
    words = ("analyse", spec, "--only", "plane", "--size", 9)
    run = Running(tmp_path, *words)
    kept = tmp_path / "outputs/tiny/analysis/points"
    run.until(lambda: list(kept.glob("*-probe1000.json")))
    text = run.stop(signal.SIGTERM)
    assert f"Go on with:\nsweeps analyse {spec} --only plane --size 9\n" in text
    (file,) = kept.glob("*-probe1000.json")
    found = json.loads(file.read_text())
    done = sweeps(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(file.read_text()).items() >= found.items()
