"""A sweep over ingredients of one task, as a user runs it: soups beside their baselines."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.sweeps.test_run import comparison, sweeps

METHODS = {
    "greedy_soup": {"tie": {"grid": ["ge", "gt"]}, "order": "angle"},
    "learned_soup": {"granularity": {"grid": ["global", "tensor"]}, "steps": 12, "batch_size": 32},
    "wise_ft": {"expert": "blobs", "alpha": {"grid": [0.5]}},
}


def ingredients(spec: Path) -> Path:
    """The pool's three experts as ingredients of one task, with a fourth that is a copy."""
    content = yaml.safe_load(spec.read_text())
    experts = content["pool"]["experts"]
    content["pool"]["experts"] = {
        **{f"run_{name}": source for name, source in experts.items()},
        "run_copy": experts["blobs"],
    }
    content["tasks"] = {"shapes": content["tasks"]["blobs"]}
    content["methods"]["wise_ft"]["expert"] = "run_blobs"
    content["shifts"] = {"noise": {"corruption": "gaussian_noise", "severity": 2}}
    spec.write_text(yaml.safe_dump(content))
    return spec


@pytest.fixture(scope="module")
def souped(tiny_pool, tmp_path_factory) -> Path:
    """Where a finished sweep lies."""
    cwd = tmp_path_factory.mktemp("soup")
    os.environ["FUSION_SWEEPS_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    spec = ingredients(tiny_pool.write(cwd / "tiny.yaml", methods=METHODS))
    done = sweeps("run", spec, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd


def rows_of(cwd: Path) -> dict:
    found = json.loads((cwd / "outputs/tiny/comparison.json").read_text())["rows"]
    return {row["method"]: row for row in found}


def test_soups_stand_beside_their_baselines(souped):
    rows = rows_of(souped)
    assert {"pretrained", "best_single", "oracle_single", "uniform_soup", "ensemble"} < set(rows)
    assert "experts" not in rows  # no ingredient is an expert of a task of its own
    assert rows["oracle_single"]["notes"] == ["oracle: chosen by the labels it is measured by"]
    assert "no measurement" in rows["learned_soup"]["notes"][0]
    best, greedy = rows["best_single"], rows["greedy_soup"]
    assert greedy["val"]["acc/mean"] >= best["val"]["acc/mean"]
    assert rows["oracle_single"]["test"]["acc/mean"] >= best["test"]["acc/mean"]
    assert all(row["test_ci95"] for row in rows.values())


def test_rows_are_measured_under_shift(souped):
    rows = rows_of(souped)
    assert all({"acc/mean", "nll/shapes"} <= row["shifts"]["noise"].keys() for row in rows.values())
    assert rows["pretrained"]["shifts"]["noise"] != rows["pretrained"]["test"]
    assert "Under shift" in (souped / "outputs/tiny/report.html").read_text()


def test_decisions_are_kept_and_shown(souped):
    folder = souped / "outputs/tiny"
    entries = [json.loads(path.read_text()) for path in (folder / "ledger").glob("*.json")]
    greedy = [entry for entry in entries if entry["method"] == "greedy_soup"]
    assert len(greedy) == 2
    for entry in greedy:
        taken = [c for c in entry["choices"] if c["outcome"] == "accepted"]
        assert all({"gain", "low", "high", "p"} <= c.keys() for c in taken)
        names = {c["ingredient"] for c in entry["choices"]}
        assert len(names) == 3  # all but the first
        copies = [c for c in entry["choices"] if c["outcome"] == "duplicate"]
        assert len(copies) <= 1
    assert "Which ingredients were taken" in (folder / "report.html").read_text()
    assert not list((folder / "learned").glob("*.state"))


def test_a_soup_is_rebuilt_from_its_recipe(souped):
    folder = souped / "outputs/tiny"
    out = souped / "exported"
    done = sweeps("export", folder / "recipes/learned_soup.yaml", out, cwd=souped)
    assert done.returncode == 0, done.stderr
    from safetensors.torch import load_file

    from actors.checkpoints import inspect
    from actors.codings import beta_of, load_coding
    from actors.pool import open_pool, task_vectors
    from fusion.coding import mix

    content = yaml.safe_load((folder / "recipes/learned_soup.yaml").read_text())
    data = (folder / "recipes" / content["learned"]["source"]).read_bytes()
    experts = {name: model["source"] for name, model in content["experts"].items()}
    pool = open_pool(content["base"]["source"], experts)
    coding = load_coding(data, pool.tasks, pool.groups, "test")
    assert abs(float(coding.sum(1).mean()) - 1) < 1e-6
    fused = mix(task_vectors(pool), coding)
    written = load_file(out / "model.safetensors")
    there = inspect(str(out), "exported")
    for name, tensor in fused.items():
        assert (written[there.tensors[name].key] == tensor).all(), name
    before = load_file(Path(content["base"]["source"]) / "model.safetensors")["logit_scale"]
    grown = (written["logit_scale"] - before).exp().item()
    assert grown == pytest.approx(beta_of(data), rel=1e-5)
    assert beta_of(data) != 1.0


@pytest.mark.slow
def test_a_soup_that_is_killed_goes_on_to_the_same_rows(souped, tiny_pool, tmp_path):
    spec = ingredients(tiny_pool.write(tmp_path / "tiny.yaml", methods=METHODS))
    words = [sys.executable, "-m", "sweeps", "run", str(spec)]
    kept = tmp_path / "outputs/tiny/learned"
    driver = subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True
    )
    until = time.monotonic() + 120
    while not list(kept.glob("*.state")):
        assert driver.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    done = sweeps("run", spec, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert comparison(tmp_path / "outputs/tiny") == comparison(souped / "outputs/tiny")


def test_wrong_ingredients_are_refused_before_anything_runs(tiny_pool, tmp_path):
    wrong = {"greedy_soup": {"ingredients": ["run_blobs", "nobody"]}, "wise_ft": {}}
    spec = ingredients(tiny_pool.write(tmp_path / "tiny.yaml", methods=wrong))
    done = sweeps("run", spec, cwd=tmp_path)
    assert done.returncode == 2
    assert "methods.greedy_soup: ingredients: unknown ingredient 'nobody'" in done.stderr
    assert not (tmp_path / "outputs/tiny").exists()
