"""`sweeps.run` and `sweeps.load`: a sweep written in Python, its table, best row and models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import sweeps
from actors.pool.merge_folders import open_folders
from fusion.errors import InputError
from fusion.kinds import MergeInputs
from fusion.registry import METHODS as TABLE
from sweeps.results import comparison_file
from sweeps.results.comparison import Comparison, Row
from sweeps.results.export.from_recipe import export
from sweeps.spec.errors import SpecErrors
from sweeps.spec.sweep import load as load_spec

pytestmark = pytest.mark.ray

METHODS = {
    "task_arithmetic": {"scale": {"grid": (0.3, 0.7)}},
    "ties": {"density": 0.5},
    "emr": {},
    "dawin": {},
}


@pytest.fixture(scope="module")
def results(tiny_pool, tmp_path_factory, ray_cluster) -> sweeps.Results:
    """Of a sweep that was given as a dict, with paths and tuples."""
    cwd = tmp_path_factory.mktemp("python")
    os.environ["FUSION_SWEEPS_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    root = tiny_pool.root
    pool = {"base": root / "base", "experts": {n: root / "experts" / n for n in ("lines", "tones")}}
    tasks = {n: {"dataset": root / "data" / n} for n in ("lines", "tones")}
    # One model for several tasks, as another tool would have written it, and an expert.
    averaged = sweeps.merge("simple_average", pool["base"], pool["experts"], cwd / "averaged")
    references = {"averaged": averaged, "tones_alone": root / "experts" / "tones"}
    spec = tiny_pool.spec(
        name="python", pool=pool, references=references, tasks=tasks, methods=METHODS
    )
    return sweeps.run(spec, outputs=cwd / "outputs", overrides=["placement.replicas=1"], quiet=True)


def test_the_table_is_that_of_the_files(results):
    kept = comparison_file.read(results.folder)
    table = results.table.set_index("method")
    assert set(table.index) == {row.method for row in kept.rows} >= {*METHODS, "experts"}
    for row in kept.rows:
        assert table.loc[row.method, "test/acc/mean"] == row.test["acc/mean"]
        low, high = row.test_ci95["acc/mean"]
        assert table.loc[row.method, "test_ci95/acc/mean/low"] == low
        assert table.loc[row.method, "test_ci95/acc/mean/high"] == high
    asked = results.table[results.table["method"].isin(METHODS)]
    assert list(asked.index) == [0, 1, 2, 3]
    assert asked["test/acc/mean"].is_monotonic_decreasing
    chosen = json.loads(table.loc["task_arithmetic", "params"])
    assert chosen == results.row("task_arithmetic").params
    assert chosen["scale"] in (0.3, 0.7)


def test_finished_models_are_rows_beside(results):
    """They are shown among the references, whatever they score, with the numbers of their files."""
    averaged, alone = results.row("averaged"), results.row("tones_alone")
    wanted = results.row("simple_average")
    assert averaged.test == wanted.test
    assert averaged.val == wanted.val
    assert averaged.test_ci95 == wanted.test_ci95
    assert alone.test["acc/tones"] == results.row("experts").test["acc/tones"]
    assert alone.test["nll/tones"] == results.row("experts").test["nll/tones"]
    for row in (averaged, alone):
        assert row.reference
        assert row.asked
        assert row.single
        assert row.recipe is None
        assert row.run_id is not None
        assert (row.cost["models"], row.cost["passes"], row.cost["extra_parameters"]) == (1, 1, 0)
        assert row.cost["merge_s"] is None
        assert row.cost["input_s"] > 0
        assert row not in results.comparison.rivals
    page = (results.folder / "report.html").read_text()
    assert "averaged" in page
    assert "averaged: not in the sweep file" not in page
    source = load_spec(results.folder / "spec.yaml").references["averaged"]
    assert source.endswith("/averaged")
    with pytest.raises(InputError, match=f"averaged: a finished model already: {source}"):
        results.model("averaged")
    with pytest.raises(InputError, match=r"averaged\.yaml: averaged is a finished model already"):
        export(results.folder / "recipes/averaged.yaml", results.folder / "out")


def test_the_best_row_is_one_asked_model(results):
    assert results.best == results.comparison.best
    assert results.best.method in ("task_arithmetic", "ties")


def test_a_rows_model_is_the_merge(results, tiny_pool):
    model = results.model("task_arithmetic")
    root = tiny_pool.root
    experts = {name: str(root / "experts" / name) for name in ("lines", "tones")}
    opened = open_folders(str(root / "base"), experts)
    params = results.row("task_arithmetic").params
    merged = opened.complete(
        TABLE["task_arithmetic"].merge(opened.vectors, MergeInputs(), **params)
    )
    state = model.state_dict()
    assert type(model).__name__ == "CLIPModel"
    for name in merged:
        if name in state:
            assert torch.equal(state[name], merged[name]), name
    assert sum(name in state for name in merged) > 50


def test_a_model_of_each_task(results, tiny_pool):
    model = results.model(results.row("emr"), task="tones")
    with pytest.raises(InputError, match=r"emr: task: None: one model a task; one of lines, tones"):
        results.model("emr")
    other = results.model("emr", task="lines").state_dict()
    assert any(not torch.equal(tensor, other[name]) for name, tensor in model.state_dict().items())
    assert not list(Path(results.folder).glob("*.part"))


def test_rows_without_one_model(results):
    with pytest.raises(InputError, match="dawin: one model a sample"):
        results.model("dawin")
    with pytest.raises(InputError, match="ensemble: fuses logits"):
        results.model("ensemble")
    with pytest.raises(InputError, match="experts: no recipe, so no model to build"):
        results.model("experts")
    with pytest.raises(InputError, match=r"unknown row 'tise'; did you mean 'ties'\?"):
        results.row("tise")
    with pytest.raises(InputError, match="ties: task: 'lines': makes one model for all tasks"):
        results.model("ties", task="lines")


def test_loading_gives_the_same(results, monkeypatch):
    assert sweeps.load(results.folder) == results
    monkeypatch.setenv("FUSION_SWEEPS_OUTPUTS", str(results.folder.parent))
    assert sweeps.load("python").comparison == results.comparison
    with pytest.raises(InputError, match="nowhere: no folder of a sweep"):
        sweeps.load("nowhere")
    with pytest.raises(InputError, match="no comparison; it is written as a sweep runs"):
        sweeps.load(results.folder.parent)


def test_what_is_kept_is_a_sweep_file_and_nothing_is_printed(results, tmp_path, capfd):
    kept = load_spec(results.folder / "spec.yaml")
    assert kept.placement.replicas == 1
    assert kept.pool.base.endswith("/base")
    again = tmp_path / "again.yaml"
    again.write_text((results.folder / "spec.yaml").read_text())
    with pytest.raises(InputError, match="--resume goes on with it"):
        sweeps.run(again, outputs=results.folder.parent, quiet=True)
    capfd.readouterr()
    done = sweeps.run(kept, outputs=results.folder.parent, resume=True, quiet=True)
    assert done.table["method"].tolist() == results.table["method"].tolist()
    assert capfd.readouterr().out == ""


def test_faults_are_the_files_faults(tiny_pool, tmp_path):
    with pytest.raises(SpecErrors, match=r"the sweep: methods\.ties\.density: 2\.0: float in"):
        sweeps.run(tiny_pool.spec(methods={"ties": {"density": 2.0}}))
    with pytest.raises(SpecErrors, match=r"the sweep: seed: -1"):
        sweeps.run(tiny_pool.spec(), overrides=["seed=-1"])
    with pytest.raises(InputError, match="--set seed: 'key=value' needed"):
        sweeps.run(tiny_pool.spec(), overrides=["seed"])
    with pytest.raises(InputError, match=r"none\.yaml"):
        sweeps.run(tmp_path / "none.yaml")
    spec = tmp_path / "s.yaml"
    spec.write_text(yaml.safe_dump(tiny_pool.spec()))
    with pytest.raises(InputError, match="overrides: of a file or a dict only"):
        sweeps.run(load_spec(spec), overrides=["seed=1"])
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


def test_a_dict_is_left_as_it_is(tiny_pool):
    given = tiny_pool.spec()
    with pytest.raises(SpecErrors):
        sweeps.run(given, overrides=["seed=-1"])
    assert given == tiny_pool.spec()


def test_a_young_sweep_has_no_best_row(tmp_path):
    rows = (Row("pretrained", "reference", val={"acc/mean": 0.5}),)
    found = sweeps.Results(tmp_path, Comparison("x", "", "val", rows))
    assert found.best is None
    assert found.table["val/acc/mean"].tolist() == [0.5]


def test_importing_the_package_imports_no_torch():
    code = "import sys, sweeps; assert 'merge' in dir(sweeps); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    with pytest.raises(AttributeError, match="no attribute 'rnu'"):
        sweeps.rnu  # noqa: B018
