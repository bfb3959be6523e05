"""A sweep over toy models as a user runs it: every kind of method, the comparison, an export."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from actors.families import registry
from tests.sweeps.program import ONE, comparison, in_process
from tests.toy_family import TABLE, Toy, shapes, write_model, write_task

TASKS = ("verbs", "nouns")
STEPS = {"steps": 2, "batch_size": 4}
METHODS = {
    "task_arithmetic": {"scale": {"grid": [0.3, 0.6]}},
    "ties": {},
    "regmean": {"examples": 8},
    "fisher": {"examples": 8, "batch_size": 4},
    "adamerging": STEPS,
    "concrete_task_arithmetic": STEPS,
    "wemoe": STEPS,
    "dawin": {},
    "dawe": STEPS,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of a sweep file, its models and data."""
    root = tmp_path_factory.mktemp("toy_sweep")
    os.environ["FUSION_SWEEPS_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    base = write_model(root / "base", 0)
    for seed, task in enumerate(TASKS, 1):
        write_model(root / task, seed, base)
        write_task(root / "data" / task, 2 + seed, seed)
    methods = METHODS | {"dawe": {**STEPS, "extractor": str(root / "base")}}
    spec = {
        "name": "toy",
        "pool": {"base": str(root / "base"), "experts": {t: str(root / t) for t in TASKS}},
        "tasks": {t: {"dataset": str(root / "data" / t), "image": "text"} for t in TASKS},
        "methods": methods,
    }
    (root / "s.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return root


@pytest.fixture(scope="module", autouse=True)
def family():
    before = dict(registry.FAMILIES)
    registry.register(Toy())
    yield
    registry.FAMILIES.clear()
    registry.FAMILIES.update(before)


def test_a_sweep_of_a_registered_family_is_planned(folder):
    done = in_process("plan", "s.yaml", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 tasks" in done.stdout
    assert "9 letters" in done.stdout


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_sweep_of_a_registered_family(folder, ray_cluster):
    done = in_process("run", "s.yaml", *ONE, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["method"]: row for row in comparison(folder / "outputs/toy")["rows"]}
    assert rows.keys() >= {*METHODS, "pretrained", "experts"}
    done = in_process("export", "outputs/toy/recipes/task_arithmetic.yaml", "fused", cwd=folder)
    assert done.returncode == 0, done.stderr
    fused, base = (load_file(folder / name / "model.safetensors") for name in ("fused", "base"))
    assert {name: tuple(tensor.shape) for name, tensor in fused.items()} == shapes()
    assert not fused[TABLE].equal(base[TABLE])
