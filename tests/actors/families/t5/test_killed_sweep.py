"""kill -9 of driver, replica and shard during a sweep over T5s: the same table, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.actors.families.t5.models import sweep_of, write_pool
from tests.sweeps.program import TWO, comparison, sweeps

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

METHODS: dict[str, Any] = {
    "task_arithmetic": {"scale": {"grid": [0.2, 0.4, 0.6]}},
    "regmean": {"examples": 8},
    "adamerging": {"steps": 20, "batch_size": 4, "save_every": 2},
    "dawe": {
        "extractor": "base",
        "grouping": {"grid": ["task", "layer"]},
        "steps": 40,
        "batch_size": 4,
        "save_every": 2,
    },
    "greedy_ensemble": {},
}
SHARDS = ("--set", "placement={replicas: 1, shards: 2}")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of static and learning methods."""
    root = write_pool(tmp_path_factory.mktemp("t5_killed"))
    os.environ["FUSION_SWEEPS_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    content = yaml.safe_dump(sweep_of(root, "t5", METHODS), sort_keys=False)
    (root / "s.yaml").write_text(content)
    return root / "s.yaml"


@pytest.fixture(scope="module")
def undisturbed(spec: Path) -> dict[str, Any]:
    """The comparison of a finished run."""
    done = sweeps("run", spec, *TWO, cwd=spec.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    found = comparison(spec.parent / "outputs/t5")
    assert METHODS.keys() < {row["method"] for row in found["rows"]}
    return found


def started(spec: Path, cwd: Path, *words: str) -> subprocess.Popen[str]:
    """A sweep's driver."""
    log = (cwd / "driver.log").open("w")
    command = [sys.executable, "-m", "sweeps", "run", str(spec), *words]
    return subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log, text=True)


def until_learning(driver: subprocess.Popen[str], cwd: Path) -> None:
    """Wait until trials have ended and a gate or a coding has a checkpoint."""
    folder = cwd / "outputs/t5"
    while not (list(folder.glob("ledger/*.json")) and list(folder.glob("learned/*.state"))):
        assert driver.poll() is None, (cwd / "driver.log").read_text()
        time.sleep(0.005)


def test_a_driver_is_killed(spec: Path, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """The sweep is resumed; no trial that had ended runs twice."""
    driver = started(spec, tmp_path, *TWO)
    until_learning(driver, tmp_path)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    ledger = tmp_path / "outputs/t5/ledger"
    kept = {path: path.stat().st_mtime_ns for path in ledger.glob("*.json")}
    assert not (tmp_path / "outputs/t5/comparison.json").exists()
    done = sweeps("run", spec, *TWO, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert comparison(tmp_path / "outputs/t5") == undisturbed


def idle(driver: subprocess.Popen[str], actor: str) -> set[int]:
    """Process ids of a driver's actors of a class that run no call at this moment.

    A process that runs a call has the call's name for a title.
    """
    found = set()
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            title = process.cmdline()[:1]
        except psutil.Error:
            continue
        if title and title[0].startswith("ray::") and actor in title[0]:
            found.add(process.pid)
    return found


@pytest.mark.parametrize(
    ("actor", "words"), [("Replica", TWO), ("ShardActor", SHARDS)], ids=["replica", "shard"]
)
def test_a_process_is_killed(
    actor: str, words: tuple[str, str], spec: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """It comes back, and its calls are made again, by themselves."""
    driver = started(spec, tmp_path, *words)
    until_learning(driver, tmp_path)
    before: set[int] = set()
    while len(before) < 2:
        assert driver.poll() is None, (tmp_path / "driver.log").read_text()
        before |= idle(driver, actor)
    victim = max(before)
    os.kill(victim, signal.SIGKILL)
    came: set[int] = set()
    while driver.poll() is None:
        came |= idle(driver, actor) - before
        time.sleep(0.02)
    said = (tmp_path / "driver.log").read_text()
    assert driver.returncode == 0, said
    assert came, "nothing came in the place of what was killed"
    assert "failed" not in said, said
    assert comparison(tmp_path / "outputs/t5")["rows"] == undisturbed["rows"]
