"""A sweep over a pool of T5s as a user runs it."""

from __future__ import annotations

import os

import pytest
import yaml

from tests.actors.families.t5.models import CLASSES, sweep_of, write_pool
from tests.sweeps.program import TWO, comparison, in_process

STEPS = {"steps": 2, "batch_size": 3}
SOUP = {
    "metric": "exact/mean",
    "methods": {
        "uniform_soup": {},
        "greedy_soup": {"metric": "exact/colour"},
        "learned_soup": STEPS,
        "wise_ft": {"expert": "run_colour"},
    },
}
METHODS = {
    "task_arithmetic": {"scale": {"grid": [0.3, 0.6]}},
    "ties": {},
    "regmean": {"examples": 8},
    "fisher": {"examples": 8, "batch_size": 4},
    "adamerging": STEPS,
    "concrete_task_arithmetic": STEPS,
    "wemoe": STEPS,
    "dawin": {},
    "ensemble": {},
    "greedy_ensemble": {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = write_pool(tmp_path_factory.mktemp("t5_sweep"))
    os.environ["FUSION_SWEEPS_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    dawe = {**STEPS, "extractor": str(root / "base")}
    spec = sweep_of(root, "t5", METHODS | {"dawe": dawe})
    (root / "s.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    for name, change in {
        "half": {"placement": {"dtype": "float16"}},
        "adapter": {"methods": {"tip_adapter": {}}},
        "written": {"metric": "exact/mean"},
        "outputs": {"metric": "exact/mean", "methods": {"dawin": {"combine": "outputs"}}},
        "soup": SOUP
        | {"pool": {**spec["pool"], "experts": {f"run_{t}": str(root / t) for t in CLASSES}}},
    }.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump({**spec, **change}, sort_keys=False))
    return root


def test_soups_may_be_chosen_by_what_is_written(folder):
    done = in_process("plan", "soup.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr


def test_what_is_not_defined_is_refused_in_one_line(folder):
    for name, message in {
        "half": "placement.dtype: 'float16'; activations of models of the family 't5' overflow",
        "adapter": "methods.tip_adapter: needs cosine_head, embeddings, which models of the family",
        "written": "methods.ensemble: combines scores of several models and writes no answers",
        "outputs": "methods.dawin: combines scores of several models and writes no answers",
    }.items():
        done = in_process("plan", f"{name}.yaml", cwd=folder)
        assert done.returncode != 0
        assert message in done.stderr, done.stderr


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.slow
def test_a_sweep_runs_from_a_file(folder, ray_cluster):
    done = in_process("run", "s.yaml", *TWO, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["method"]: row for row in comparison(folder / "outputs/t5")["rows"]}
    assert rows.keys() >= {*METHODS, "dawe", "pretrained", "experts"}


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.slow
def test_soups_run_from_a_file(folder, ray_cluster):
    done = in_process("run", "soup.yaml", *TWO, "--set", "name=soup", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    found = comparison(folder / "outputs/soup")
    rows = {row["method"]: row for row in found["rows"]}
    assert rows.keys() >= {*SOUP["methods"], "pretrained", "best_single", "oracle_single"}
    assert found["metric"] == "exact/mean"
    exact = [rows[name]["test"]["exact/mean"] for name in SOUP["methods"]]
    assert all(0 <= value <= 1 for value in exact)
