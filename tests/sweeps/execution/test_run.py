"""Whole sweeps as a user runs them: real processes, a real Ray, a real MLflow file."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sweeps.program import ONE, comparison, in_process, sweeps

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def undisturbed(tiny_pool, tmp_path_factory) -> Path:
    """The folder of a finished run."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    os.environ["FUSION_SWEEPS_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    spec = tiny_pool.write(cwd / "tiny.yaml")
    done = sweeps("run", spec, *ONE, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd


def test_a_sweep_ends_with_everything_the_contract_names(undisturbed):
    folder = undisturbed / "outputs" / "tiny"
    rows = {
        row["method"]: row for row in json.loads((folder / "comparison.json").read_text())["rows"]
    }
    assert next(iter(rows)) == "pretrained"
    assert list(rows)[-1] == "experts"
    assert {"simple_average", "ensemble", "task_arithmetic", "ties", "wise_ft"} <= set(rows)
    row = rows["task_arithmetic"]
    assert row["trials"] == 4
    assert set(row["test"]) >= {"acc/mean", "acc/lines", "acc/tones", "acc/blobs"}
    low, high = row["test_ci95"]["acc/mean"]
    assert low <= row["test"]["acc/mean"] <= high
    assert row["cost"]["trial_s"] > 0
    assert row["cost"]["peak_bytes"] > 10**7
    assert (folder / row["recipe"]).exists()
    assert "<html" in (folder / "report.html").read_text()


def test_mlflow_has_one_parent_and_one_child_a_trial(undisturbed):
    with sqlite3.connect(undisturbed / "outputs" / "mlflow.db") as db:
        keys = [key for (key,) in db.execute("select value from tags where key = 'trial_key'")]
        parents = db.execute("select count(*) from tags where key='role' and value='sweep'")
        assert parents.fetchone() == (1,)
        status = db.execute("select distinct status from runs").fetchall()
    ledger = {path.stem for path in (undisturbed / "outputs/tiny/ledger").glob("*.json")}
    assert sorted(keys) == sorted(ledger)
    assert status == [("FINISHED",)]


def test_a_second_run_needs_a_word(undisturbed):
    done = in_process("run", "tiny.yaml", cwd=undisturbed)
    assert done.returncode == 2
    assert "--resume goes on with it, --fresh moves it aside" in done.stderr
    assert done.stderr.count("\n") == 1


def test_resuming_a_finished_sweep_runs_nothing_again(undisturbed, ray_cluster):
    ledger = undisturbed / "outputs/tiny/ledger"
    before = {path.name: path.stat().st_mtime_ns for path in ledger.glob("*.json")}
    table = comparison(ledger.parent)
    done = in_process("run", "tiny.yaml", "--resume", *ONE, cwd=undisturbed)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.stat().st_mtime_ns for path in ledger.glob("*.json")} == before
    assert comparison(ledger.parent) == table


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_and_resumed_equals_undisturbed(
    number, undisturbed, tiny_pool, tmp_path, ray_cluster
):
    """Ctrl-C, or kill -9 of the driver: no trial twice, no run twice, the same table."""
    spec = tiny_pool.write(tmp_path / "tiny.yaml")
    ledger = tmp_path / "outputs/tiny/ledger"
    driver = subprocess.Popen(
        [sys.executable, "-m", "sweeps", "run", str(spec), *ONE],  # threads a replica: same bits
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    while len(list(ledger.glob("*.json"))) < 3:
        assert driver.poll() is None, "ended before it could be stopped"
        time.sleep(0.01)
    driver.send_signal(number)
    if number == signal.SIGINT:
        said = driver.communicate(timeout=60)[0]
        assert driver.returncode == 130, said
        assert f"sweeps run {spec} {' '.join(ONE)} --resume" in said
        assert "Traceback" not in said
        assert runs(tmp_path, "sweep") == ["KILLED"]
        assert len(runs(tmp_path, "trial")) == len(list(ledger.glob("*.json")))
    else:
        driver.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in ledger.glob("*.json")}
    assert len(kept) >= 3
    assert not (tmp_path / "outputs/tiny/comparison.json").exists()
    done = in_process("run", spec, "--resume", *ONE, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    after = {path.name: path.stat().st_mtime_ns for path in ledger.glob("*.json")}
    assert {name: after[name] for name in kept} == kept
    assert comparison(tmp_path / "outputs/tiny") == comparison(undisturbed / "outputs/tiny")
    with sqlite3.connect(tmp_path / "outputs" / "mlflow.db") as db:
        keys = [key for (key,) in db.execute("select value from tags where key = 'trial_key'")]
    assert sorted(keys) == sorted(path.stem for path in ledger.glob("*.json"))


def runs(cwd: Path, role: str) -> list[str]:
    """How MLflow's runs of this role ended."""
    with sqlite3.connect(cwd / "outputs" / "mlflow.db") as db:
        found = db.execute(
            "select status from runs join tags using (run_uuid) where key='role' and value=?",
            (role,),
        )
        return [status for (status,) in found]


@pytest.mark.slow
def test_a_race_has_the_winner_of_all_rows_and_goes_on_with_the_same_bars(
    tiny_pool, tmp_path, ray_cluster
):
    """Entries of a resumed race equal those of an undisturbed one, stopped trials included."""
    grid = {"scale": {"grid": [0.1, 0.3, 0.5, 0.7, 0.9, 1.5, 3.0, 6.0]}}
    found = {}
    for evaluate in ("all", "racing"):
        changes = {"methods": {"task_arithmetic": grid}, "evaluate": evaluate, "name": evaluate}
        spec = tiny_pool.write(tmp_path / f"{evaluate}.yaml", **changes)
        done = in_process("run", spec, *ONE, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        rows = json.loads((tmp_path / f"outputs/{evaluate}/comparison.json").read_text())["rows"]
        found[evaluate] = {row["method"]: (row["params"], row["test"]["acc/mean"]) for row in rows}
    assert found["racing"] == found["all"]
    ledger = tmp_path / "outputs/racing/ledger"
    before = {path: decided(path) for path in sorted(ledger.glob("*.json"))}
    assert [entry["status"] for entry in before.values()].count("stopped") > 0
    for path in list(before)[::2]:
        path.unlink()
    done = in_process("run", tmp_path / "racing.yaml", "--resume", *ONE, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: decided(path) for path in sorted(ledger.glob("*.json"))} == before


def decided(path: Path) -> dict[str, object]:
    """A ledger entry without its times."""
    times = ("started", "ended", "trial_s", "busy_s", "gpu_s", "peak_bytes", "check")
    return {k: v for k, v in json.loads(path.read_text()).items() if k not in times}
