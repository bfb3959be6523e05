"""The examples run, and print what their comments promise."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from actors.embedded import EmbeddedPool
from sweeps.execution.python_api import loaded_spec
from tests.examples.conftest import EXAMPLES, Script, example, installed


def test_modules_and_state_dicts_are_merged(capsys: pytest.CaptureFixture[str]) -> None:
    scores = example("merge_two_models").in_memory()
    assert capsys.readouterr().out == "refused: ties: density: 2.0; float in [0, 1] allowed\n"
    assert max(scores["low"], scores["high"]) < 0.6  # each knows its half of the digits
    assert scores["simple average"] > scores["base"] + 0.05
    assert scores["TIES"] > scores["base"]


@pytest.mark.usefixtures("registered")
def test_folders_are_merged(tiny: EmbeddedPool, tmp_path: Path) -> None:
    model = example("merge_two_models").of_folders(tiny, tmp_path / "out")
    names = {"README.md", "recipe.yaml", "model.safetensors", "config.json"}
    assert names <= {path.name for path in (tmp_path / "out").iterdir()}
    assert not any(torch.isnan(tensor).any() for tensor in model.state_dict().values())


@pytest.mark.parametrize("name", ["lambda_sweep", "gate_on_a_pool"])
def test_the_sweeps_are_valid(name: str, tmp_path: Path) -> None:
    from actors.embedded.tasks import DRAWINGS
    from actors.files.embedded_pool import folders

    pool = folders(tmp_path, list(DRAWINGS))
    spec = loaded_spec(example(name).sweep_of(pool), [])
    assert set(spec.tasks) == set(spec.pool.experts)
    assert "task_arithmetic" in spec.methods


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the outside package with the entry points that pip would write."""
    site = tmp_path / "installed"
    shutil.copytree(EXAMPLES / "median-merge", site, ignore=shutil.ignore_patterns("__pycache__"))
    installed(EXAMPLES / "median-merge", site)
    return site


def test_the_outside_package_keeps_the_laws(package: Path, script: Script) -> None:
    command = ("-m", "pytest", "-q", "--doctest-modules", "-p", "no:cacheprovider", package)
    assert "3 passed" in script(sys.executable, *command, cwd=package)


def test_the_outside_package_is_found_where_it_is_installed(package: Path, script: Script) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import torch, fusion;"
        "w = {name: {'w': torch.tensor([v])} for name, v in dict(a=1.0, b=2.0, c=90.0).items()};"
        "print(fusion.merge('median_merge', {'w': torch.zeros(1)}, w, scale=0.5)['w'].item())"
    )
    assert script(sys.executable, "-c", code, package, cwd=package.parent) == "1.0\n"


@pytest.mark.slow
def test_pip_installs_the_outside_package(package: Path, script: Script) -> None:
    pytest.importorskip("setuptools")
    target = package.parent / "site"
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--target", target)
    script(sys.executable, "-m", "pip", "install", "-q", *options, package, cwd=package)
    assert (target / "median_merge.py").is_file()
    (found,) = target.glob("*.dist-info/entry_points.txt")
    assert "[fusion_sweeps.methods]\nmedian_merge = median_merge" in found.read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_scripts_run_as_their_first_lines_say(script: Script, tmp_path: Path) -> None:
    os.symlink(EXAMPLES, tmp_path / "examples")
    merged = script("python", "examples/merge_two_models.py", cwd=tmp_path)
    assert "written: outputs/merged" in merged
    swept = script("python", "examples/lambda_sweep.py", cwd=tmp_path)
    assert swept.count("λ = ") == 7
    assert "best: task_arithmetic {'scale': 0.3}" in swept
    learned = script("python", "examples/gate_on_a_pool.py", cwd=tmp_path)
    means = {
        line.split()[0]: float(line.split()[2]) for line in learned.splitlines() if " mean " in line
    }
    assert means["task_arithmetic"] < means["dawe"] < means["experts"]
    assert "features -> 3 coefficients" in learned
