"""A sweep of learning methods as a user runs it: gates, codings, DaWin; killed in the middle."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.sweeps.learning_pool import gated_spec, make_extractor
from tests.sweeps.program import TWO, comparison, in_process, sweeps

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(tiny_pool, tmp_path_factory) -> Path:
    """Where the spec lies."""
    cwd = tmp_path_factory.mktemp("learned")
    os.environ["FUSION_SWEEPS_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    spec = gated_spec(tiny_pool, str(make_extractor(cwd / "resnet")))
    spec["methods"] |= {
        "dawin": {"granularity": {"grid": ["domain", "sample"]}},
        "task_arithmetic": {},
    }
    spec["methods"]["dawe"] |= {"grouping": {"grid": ["task", "layer"]}, "steps": 12}
    spec["methods"]["adamerging"] |= {"adapt_on": "report", "steps": 12}
    (cwd / "s.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return cwd


@pytest.fixture(scope="module")
def undisturbed(folder, ray_cluster) -> dict:
    """The comparison of a finished run."""
    done = in_process("run", "s.yaml", *TWO, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return comparison(folder / "outputs/learning")


def test_rows_recipes_and_learned_files(folder, undisturbed):
    rows = {row["method"]: row for row in undisturbed["rows"]}
    assert {"adamerging", "dawe", "dawin"} <= set(rows)
    assert rows["dawe"]["trials"] == 2
    assert rows["adamerging"]["notes"] == [
        "adapted to the unlabelled test images it is reported on"
    ]
    out = folder / "outputs/learning"
    for method in ("adamerging", "dawe"):
        recipe = yaml.safe_load((out / "recipes" / f"{method}.yaml").read_text())
        learned = out / "recipes" / recipe["learned"]["source"]
        assert (
            learned.read_bytes()
            == (out / "learned" / f"{rows[method]['trial_key']}.safetensors").read_bytes()
        )
    assert not list((out / "learned").glob("*.state"))
    entries = [json.loads(path.read_text()) for path in (out / "ledger").glob("*.json")]
    assert all(entry["curve"][-1]["step"] == 12 for entry in entries if entry["method"] == "dawe")


def test_how_often_a_gate_recognises_the_task(folder, undisturbed):
    rows = {row["method"]: row for row in undisturbed["rows"]}
    shares = {name: value for name, value in rows["dawe"]["test"].items() if "recogn" in name}
    tasks = [*undisturbed["tasks"], "mean"]
    assert shares.keys() == {f"recognition/{task}" for task in tasks}
    assert rows["dawe"]["notes"][-1].startswith("recognition: the task's own expert has the")
    assert not [name for name in rows["adamerging"]["test"] if "recogn" in name]
    with sqlite3.connect(folder / "outputs/mlflow.db") as db:
        sent = {key for (key,) in db.execute("select key from latest_metrics")}
    assert {f"{kind}/recognition/{task}" for kind in ("test", "val") for task in tasks} <= sent
    page = (folder / "outputs/learning/report.html").read_text()
    assert "has the largest weight on" in page


def test_a_learned_coding_is_exported_and_a_gate_is_not(folder, undisturbed):
    recipes = Path("outputs/learning/recipes")
    done = in_process("export", recipes / "adamerging.yaml", "fused", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "fused" / "model.safetensors").exists()
    done = in_process("export", recipes / "dawe.yaml", "gated", cwd=folder)
    assert done.returncode == 2
    assert "one model a sample; there is no single model to build; its gate is" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_gate_of_one_sweep_serves_another(folder, undisturbed):
    spec = yaml.safe_load((folder / "s.yaml").read_text())
    gate = folder / "outputs/learning/recipes/dawe.safetensors"
    extractor = spec["methods"]["dawe"]["extractor"]
    winner = next(row for row in undisturbed["rows"] if row["method"] == "dawe")
    given = {"extractor": extractor, "gate": str(gate), "steps": 0}
    given["grouping"] = winner["params"]["grouping"]
    spec |= {"name": "moved", "methods": {"dawe": given}}
    (folder / "moved.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    done = in_process("run", "moved.yaml", *TWO, cwd=folder)
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in comparison(folder / "outputs/moved")["rows"]}
    assert rows["dawe"]["test"] == winner["test"]


@pytest.mark.slow  # its like for methods that do not learn is in test_run
def test_killed_while_learning_and_resumed_equals_undisturbed(folder, undisturbed, tmp_path):
    """kill -9 of the driver while gates are learned: they go on from their checkpoints."""
    learned = tmp_path / "outputs/learning/learned"
    command = [sys.executable, "-m", "sweeps", "run", str(folder / "s.yaml")]
    driver = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not list(learned.glob("*.state")):
        assert driver.poll() is None, "ended before it could be killed"
        time.sleep(0.005)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    done = sweeps("run", folder / "s.yaml", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert comparison(tmp_path / "outputs/learning") == undisturbed


@pytest.mark.slow
def test_shards_give_what_replicas_give(folder, undisturbed, tmp_path):
    """The same sweep over two shards of one model: the same table, to the last digit."""
    done = sweeps(
        "run", folder / "s.yaml", "--set", "placement={replicas: 1, shards: 2}", cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert comparison(tmp_path / "outputs/learning")["rows"] == undisturbed["rows"]
