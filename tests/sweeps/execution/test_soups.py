"""A sweep over ingredients of one task, as a user runs it: soups beside their baselines."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from mlflow import MlflowClient

from tests.sweeps.program import ONE, comparison, in_process, sweeps
from tests.sweeps.report.test_html import specs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

METHODS = {
    "greedy_soup": {"tie": {"grid": ["ge", "gt"]}, "order": "angle"},
    "learned_soup": {"granularity": {"grid": ["global", "tensor"]}, "steps": 12, "batch_size": 32},
    "wise_ft": {"expert": "blobs", "alpha": {"grid": [0.5]}},
    "tip_adapter": {"shots": 4, "betas": 30},
    "cafo": {"shots": 4},
    "wise_ft_linear": {},
    "weighted_average": {
        "weights": {"run_lines": 0.0, "run_tones": -0.5, "run_blobs": 1.5, "run_copy": 0.25},
        "normalize": False,
    },
}
SETS = ("--set", "methods.task_arithmetic.scale.grid=[0.0, -0.5, 1.5]")


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
def souped(tiny_pool, tmp_path_factory, ray_cluster) -> Path:
    """Where a finished sweep lies."""
    cwd = tmp_path_factory.mktemp("soup")
    os.environ["FUSION_SWEEPS_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    spec = ingredients(tiny_pool.write(cwd / "tiny.yaml", methods=METHODS))
    done = in_process("run", spec, *SETS, *ONE, cwd=cwd)
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


def test_searched_surfaces_are_drawn_and_kept_as_tables(souped):
    folder = souped / "outputs/tiny"
    page = (folder / "report.html").read_text()
    described = [each["description"] for each in specs(page)]
    assert len([text for text in described if "accuracy over alpha and " in text]) == 2
    assert len([text for text in described if "accuracy over alpha: " in text]) == 1
    searched = {"tip_adapter": 30, "cafo": 14, "wise_ft_linear": 1}
    assert {path.stem for path in (folder / "surfaces").iterdir()} == set(searched)
    rows = rows_of(souped)
    client = MlflowClient(f"sqlite:///{souped / 'outputs/mlflow.db'}")
    for method, values in searched.items():
        lines = pq.read_table(folder / f"surfaces/{method}.parquet").to_pylist()
        grid = [line for line in lines if line["low"] is None]
        assert len(lines) - len(grid) == values
        (chosen,) = (line for line in lines if line["chosen"])
        assert chosen["accuracy"] >= max(line["accuracy"] for line in grid)
        found = rows[method]["val"]["acc/shapes"]  # measured anew, with float32 logits
        assert chosen["accuracy"] == pytest.approx(found, abs=1e-6)
        assert {line["task"] for line in lines} == {"shapes"}
        run = rows[method]["run_id"]
        kept = [file.path for file in client.list_artifacts(run, "surface")]
        assert kept == [f"surface/{method}.parquet"]
    assert f">{rows['cafo']['trial_key']}<" in page


def test_coefficients_of_any_sign_and_size_come_through(souped):
    """Oracle 12 of soups: 0.0, negative and > 1 through YAML, `--set`, Tune, ledger, recipe, export
    and MLflow; 0.0 is not taken for a coefficient that was left out."""
    folder, base = souped / "outputs/tiny", rows_of(souped)["pretrained"]
    entries = [json.loads(path.read_text()) for path in (folder / "ledger").glob("*.json")]
    scales = {e["params"]["scale"]: e for e in entries if e["method"] == "task_arithmetic"}
    assert sorted(scales) == [-0.5, 0.0, 1.5]
    assert scales[0.0]["metrics"] == base["val"]  # and not those of the default scale
    (mixed,) = (e for e in entries if e["method"] == "weighted_average")
    assert mixed["params"] == METHODS["weighted_average"]
    tuned = [json.loads(p.read_text()) for p in (folder / "tune").glob("*/params.json")]
    of_tune = {each["trial_key"]: each["params"] for each in tuned}
    client = MlflowClient(f"sqlite:///{souped / 'outputs/mlflow.db'}")
    runs = client.search_runs([client.get_run(base["run_id"]).info.experiment_id])
    of_mlflow = {run.data.tags.get("trial_key"): run.data.params for run in runs}
    for scale, entry in scales.items():
        assert of_tune[entry["trial_key"]]["scale"] == scale
        assert of_mlflow[entry["trial_key"]]["scale"] == str(scale)
    assert of_tune[mixed["trial_key"]] == METHODS["weighted_average"]
    weights = METHODS["weighted_average"]["weights"]
    sent = of_mlflow[mixed["trial_key"]]
    assert {name: float(sent[f"weights.{name}"]) for name in weights} == weights

    recipe = folder / "recipes/weighted_average.yaml"
    content = yaml.safe_load(recipe.read_text())
    assert content["params"] == METHODS["weighted_average"]
    from actors.checkpoints.checkpoint import read
    from actors.families.registry import inspect
    from sweeps.results.export.from_recipe import export

    export(recipe, souped / "mixed")
    written = dict(read(inspect(str(souped / "mixed"), "mixed")))
    experts = {
        name: dict(read(inspect(model["source"], name)))
        for name, model in content["experts"].items()
    }
    for name in experts["run_lines"]:
        wanted = sum(weights[each] * experts[each][name].double() for each in weights)
        torch.testing.assert_close(written[name].double(), wanted, rtol=1e-5, atol=1e-5)


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
        # The best single ingredient is the start; whatever the rule for ties, its copy is not run.
        assert [(c["ingredient"], c["note"]) for c in copies] == [
            ("run_copy", "a copy of run_blobs")
        ]
        assert copies[0]["score"] is None
    assert "Which ingredients were taken" in (folder / "report.html").read_text()
    assert not list((folder / "learned").glob("*.state"))


def test_a_soup_is_rebuilt_from_its_recipe(souped):
    folder = souped / "outputs/tiny"
    out = souped / "exported"
    done = in_process("export", folder / "recipes/learned_soup.yaml", out, cwd=souped)
    assert done.returncode == 0, done.stderr
    from safetensors.torch import load_file

    from actors.artifacts.coding_file import beta_of, load_coding
    from actors.families.registry import inspect
    from actors.pool.pool import open_pool, task_vectors
    from fusion.task_vectors.coding import mix

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
    words = [sys.executable, "-m", "sweeps", "run", str(spec), *SETS]
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
    done = sweeps("run", spec, *SETS, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert comparison(tmp_path / "outputs/tiny") == comparison(souped / "outputs/tiny")


def test_wrong_ingredients_are_refused_before_anything_runs(tiny_pool, tmp_path):
    wrong = {"greedy_soup": {"ingredients": ["run_blobs", "nobody"]}, "wise_ft": {}}
    spec = ingredients(tiny_pool.write(tmp_path / "tiny.yaml", methods=wrong))
    done = in_process("run", spec, cwd=tmp_path)
    assert done.returncode == 2
    assert "methods.greedy_soup: ingredients: unknown ingredient 'nobody'" in done.stderr
    assert not (tmp_path / "outputs/tiny").exists()


def runs(root: Path, expert: Path, count: int) -> dict[str, str]:
    """Ingredients near an expert, each moved another way."""
    import torch
    from safetensors.torch import load_file, save_file

    found = {}
    for seed in range(count):
        folder = root / f"run_{seed}"
        shutil.copytree(expert, folder)
        tensors = load_file(folder / "model.safetensors")
        draw = torch.Generator().manual_seed(seed)
        moved = {
            name: tensor + 0.02 * torch.randn(tensor.shape, generator=draw)
            for name, tensor in tensors.items()
        }
        save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
        found[folder.name] = str(folder)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_greedy_soup_that_is_killed_half_way_takes_the_same_ingredients(tiny_pool, tmp_path):
    """Oracle 14 of soups, inside one trial: SIGKILL after some decisions, then `--resume`."""
    experts = runs(tmp_path / "pool", tiny_pool.root / "experts/blobs", 8)
    methods = {"greedy_soup": {"metric": "nll/mean", "replacement": True}}
    content = tiny_pool.spec(methods=methods)
    content["pool"]["experts"] = experts
    content["tasks"] = {"shapes": content["tasks"]["blobs"]}

    def written(folder: Path) -> Path:
        folder.mkdir()
        (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
        return folder / "tiny.yaml"

    def soup(folder: Path) -> tuple[list, bytes]:
        entries = [json.loads(p.read_text()) for p in (folder / "ledger").glob("*.json")]
        (entry,) = (each for each in entries if each["method"] == "greedy_soup")
        learned = folder / "learned" / f"{entry['trial_key']}.safetensors"
        return entry["choices"], learned.read_bytes()

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = sweeps("run", written(whole), cwd=whole)
    assert done.returncode == 0, done.stderr
    wanted = soup(whole / "outputs/tiny")
    assert len(wanted[0]) > 10  # there is a middle to be killed in

    driver = subprocess.Popen(
        [sys.executable, "-m", "sweeps", "run", str(written(cut))],
        cwd=cut, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    folder, until = cut / "outputs/tiny", time.monotonic() + 240
    try:  # every single one and some more are scored: that is half way
        while max((len(known(path)) for path in folder.glob("learned/*.state")), default=0) < 10:
            assert driver.poll() is None
            assert time.monotonic() < until
            time.sleep(0.002)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    entries = [json.loads(p.read_text()) for p in (folder / "ledger").glob("*.json")]
    assert "greedy_soup" not in {each["method"] for each in entries}  # it was in the middle
    done = sweeps("run", cut / "tiny.yaml", "--resume", cwd=cut)
    assert done.returncode == 0, done.stderr
    assert soup(folder) == wanted


def known(path: Path) -> dict:
    """The soups that a trial has scored; none where the file is just being replaced."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
