"""Eight nodes on this machine: placement as planned, nodes that come and go, too little memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.actors.families.t5.models import sweep_of, write_pool
from tests.sweeps.program import comparison

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).with_name("topologies_script.py")
METHODS = {
    "task_arithmetic": {"scale": {"grid": [round(0.005 * i, 3) for i in range(1, 201)]}},
    "ties": {"density": {"choice": [0.2, 0.5]}, "scale": {"uniform": [0.2, 1.0]}, "trials": 60},
}
"""Enough trials that something can happen in mid-sweep."""


def run(*words: object, cwd: Path) -> str:
    """A part of the script, in a process and a Ray of its own."""
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


TEXT_METHODS = {
    "task_arithmetic": {"scale": {"grid": [round(0.02 * i, 2) for i in range(1, 51)]}},
    "dawe": {"extractor": "base", "steps": 40, "batch_size": 4, "save_every": 2},
}


@pytest.fixture(scope="module")
def alone(tiny_pool, tmp_path_factory):
    """The spec, and the folder of the same sweep on one machine."""
    cwd = tmp_path_factory.mktemp("alone")
    return run_alone(tiny_pool.write(cwd / "tiny.yaml", methods=METHODS), tmp_path_factory)


@pytest.fixture(scope="module")
def texts_alone(tmp_path_factory):
    """The same of a sweep over T5s."""
    root = write_pool(tmp_path_factory.mktemp("texts"))
    content = yaml.safe_dump(sweep_of(root, "tiny", TEXT_METHODS), sort_keys=False)
    (root / "tiny.yaml").write_text(content)
    return run_alone(root / "tiny.yaml", tmp_path_factory)


def run_alone(spec, tmp_path_factory):
    """The spec, and the folder of its sweep on one machine."""
    cwd = spec.parent
    os.environ["FUSION_SWEEPS_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    done = subprocess.run(
        [sys.executable, "-m", "sweeps", "run", spec],
        cwd=cwd, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return spec, cwd / "outputs/tiny"


def test_replicas_and_shards_go_where_they_were_planned(tmp_path):
    assert run("placement", cwd=tmp_path).endswith("all well\n")


def test_a_node_that_goes_and_a_killed_driver_change_nothing(alone, tmp_path):
    spec, folder = alone
    run("going", spec, tmp_path, cwd=tmp_path)
    assert comparison(tmp_path / "outputs/tiny") == comparison(folder)


@pytest.mark.parametrize("part", ["losing", "going"])
def test_a_lost_node_and_a_killed_driver_change_nothing_on_texts(part, texts_alone, tmp_path):
    """The node alone, and both."""
    spec, folder = texts_alone
    run(part, spec, tmp_path, cwd=tmp_path)
    assert comparison(tmp_path / "outputs/tiny") == comparison(folder)


def test_a_node_that_joins_gets_a_replica(tiny_pool, tmp_path):
    endless = {"task_arithmetic": {"scale": {"grid": [i / 4000 for i in range(1, 4001)]}}}
    spec = tiny_pool.write(tmp_path / "tiny.yaml", methods=endless)
    run("joining", spec, tmp_path, cwd=tmp_path)


def test_a_replica_killed_for_memory_changes_nothing(alone, tmp_path):
    spec, folder = alone
    said = run("memory", spec, tmp_path, cwd=tmp_path)
    assert "went" in said
    assert comparison(tmp_path / "outputs/tiny") == comparison(folder)
