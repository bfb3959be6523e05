"""`run` refuses nothing that `plan` accepts: one chain of checks, tried with all bad inputs."""

import copy
import fcntl
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.cluster.planner import Node, Resources
from sweeps.cluster import ray_connection
from sweeps.execution.site import Site
from tests.sweeps.cli.test_main import call
from tests.sweeps.execution.bad_inputs import BAD, GOOD, Change


class Starts(Exception):
    """The fleet would start here."""


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` goes as far as the first thing that it starts."""

    def start(*_: object, **__: object) -> None:
        raise Starts

    monkeypatch.setattr(Site, "start", start)
    machine = Resources((Node(2, 0, 8 << 30),))  # whatever else runs here
    monkeypatch.setattr(ray_connection, "this_machine", lambda: machine)
    monkeypatch.setattr(ray_connection, "stay_on_loopback", lambda address: None)


def said(
    command: str, change: Change, pool: Any, here: Path, monkeypatch: Any, capsys: Any, *more: str
) -> tuple[int, str]:
    """Status and lines of a command on a changed spec, in a folder of its own."""
    here.mkdir()
    monkeypatch.chdir(here)
    spec = copy.deepcopy(pool.spec())
    change(spec, here)
    (here / "s.yaml").write_text(yaml.safe_dump(spec))
    status, _, lines = call(monkeypatch, capsys, command, "s.yaml", *more)
    return status, re.sub(r"\.probe-\S+", "PROBE", lines.replace(str(here), "HERE"))


@pytest.mark.parametrize("name", BAD)
def test_plan_and_run_refuse_the_same_in_the_same_words(
    name: str, tiny_pool: Any, tmp_path: Path, stopped: None, monkeypatch: Any, capsys: Any
) -> None:
    before = set(tmp_path.iterdir())
    planned = said("plan", BAD[name], tiny_pool, tmp_path / "plan", monkeypatch, capsys)
    ran = said("run", BAD[name], tiny_pool, tmp_path / "run", monkeypatch, capsys)
    assert planned == ran
    assert planned[0] == 2
    assert planned[1].count("\n") == 1
    assert before == set()
    left = {path.name for path in (tmp_path / "run/outputs").glob("*")} - {"mlflow.db", "tiny"}
    assert {name for name in left if not name.startswith(".")} == set()


@pytest.mark.parametrize("name", GOOD)
def test_what_plan_accepts_run_starts(
    name: str, tiny_pool: Any, tmp_path: Path, stopped: None, monkeypatch: Any, capsys: Any
) -> None:
    planned = said("plan", GOOD[name], tiny_pool, tmp_path / "plan", monkeypatch, capsys)
    assert planned == (0, "")
    assert not (tmp_path / "plan/outputs").exists()
    status, lines = said("run", GOOD[name], tiny_pool, tmp_path / "run", monkeypatch, capsys)
    assert status == 70
    assert lines.startswith("Starts")


def test_a_sweep_that_another_process_runs(
    tiny_pool: Any, tmp_path: Path, stopped: None, monkeypatch: Any, capsys: Any
) -> None:
    def locked(spec: dict[str, Any], here: Path) -> None:
        (here / "outputs").mkdir()
        file = (here / "outputs/.tiny.lock").open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        held.append(file)

    held: list[Any] = []
    planned = said("plan", locked, tiny_pool, tmp_path / "plan", monkeypatch, capsys)
    assert planned == said("run", locked, tiny_pool, tmp_path / "run", monkeypatch, capsys)
    assert planned[0] == 2
    assert "another process is running this sweep" in planned[1]
    for file in held:
        file.close()


@pytest.mark.parametrize("storage", ["nothing://x", "file.txt/below"])
def test_a_storage_that_will_not_do(
    storage: str, tiny_pool: Any, tmp_path: Path, stopped: None, monkeypatch: Any, capsys: Any
) -> None:
    def change(spec: dict[str, Any], here: Path) -> None:
        (here / "file.txt").write_text("")

    given = ("--storage", storage)
    planned = said("plan", change, tiny_pool, tmp_path / "plan", monkeypatch, capsys, *given)
    ran = said("run", change, tiny_pool, tmp_path / "run", monkeypatch, capsys, *given)
    assert planned == ran
    assert planned[0] == 2
