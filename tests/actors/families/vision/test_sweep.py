"""Sweeps over pools of image classifiers as a user runs them, and their exported rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from actors.artifacts.recipe import Recipe
from actors.checkpoints.checkpoint import read
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import embedding_cache
from actors.experts.local import LocalExperts, local_experts
from actors.experts.prepare_data import prepare_data
from actors.families.registry import inspect
from actors.pool.pool import Pool, open_pool
from sweeps.results import recipe as recipes
from sweeps.results.export.from_recipe import rebuild
from sweeps.results.export.merge_folders import merge
from sweeps.results.export.sweep_facts import SweepFacts
from tests.actors.families.vision.models import Models, write_task
from tests.sweeps.program import comparison, in_process

RUNS = ("run_1", "run_2", "run_3")

MERGES: dict[str, Any] = {
    "uniform_soup": {},
    "greedy_soup": {},
    "learned_soup": {"steps": 2, "batch_size": 6},
    "wise_ft": {"expert": "run_1", "alpha": {"grid": [0.3, 0.7]}},
    "task_arithmetic": {"scale": {"grid": [0.2, 0.4]}},
    "weighted_average": {},
    "ties": {},
    "dare": {},
    "breadcrumbs": {},
    "magmax": {},
    "model_stock": {},
    "tsv_m": {},
    "iso_c": {},
    "iso_cts": {},
    "wudi": {"steps": 3},
    "consensus": {},
    "ensemble": {},
    "greedy_ensemble": {},
}
"""Soups, WiSE-FT, ensembles and merges that need no data."""

TASK = "shapes"


def write_pool(root: Path, kind: str, runs: tuple[str, ...] = RUNS) -> Path:
    """A base, runs of one task and the task's data."""
    models = Models(kind)
    models.write(root / "base")
    for at, run in enumerate(runs):
        models.write(root / run, at + 1, 0.1)
    write_task(root / TASK, 0, (48, 24))
    return root


def spec_of(root: Path, methods: Any, **more: Any) -> dict[str, Any]:
    """A sweep file's content."""
    return {
        "name": "vision",
        "pool": {"base": str(root / "base"), "experts": {run: str(root / run) for run in RUNS}},
        "tasks": {TASK: {"dataset": str(root / TASK)}},
        "methods": methods,
        **more,
    }


def saved(root: Path, name: str, spec: dict[str, Any]) -> str:
    """Write a sweep file; its name."""
    (root / f"{name}.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return f"{name}.yaml"


def experts_of(root: Path, pool: Pool, policy: Any = "reestimate") -> LocalExperts:
    """The experts in this process."""
    tasks = {TASK: open_task(TaskSource(TASK, str(root / TASK)), "image")}
    data = prepare_data(pool.base, tasks, Splits(), ("fit", "select", "report"), root)
    return local_experts(pool, data, embedding_cache(root, pool, "cpu", {}), policy=policy)


def pool_of(root: Path) -> Pool:
    return open_pool(str(root / "base"), {run: str(root / run) for run in RUNS})


@pytest.mark.parametrize("kind", ["vit", "basic", "bottleneck"])
@pytest.mark.parametrize("policy", ["reestimate", "average"])
def test_an_exported_row_is_the_model_that_was_evaluated(
    kind: str, policy: str, tmp_path: Path
) -> None:
    root = write_pool(tmp_path, kind)
    pool, what = pool_of(root), Recipe("ties", {"scale": 0.7})
    experts = experts_of(root, pool, policy)
    running = experts.running(what)
    assert bool(running) == Models(kind).resnet
    file = recipes.write(root / "recipes", "ties", pool, what.params, "s", {}, running=running)
    rebuild(recipes.load(file), file, pool, root / "out", SweepFacts(), "made by a test")
    out = inspect(str(root / "out"), "pool.base")
    found = dict(read(out, out.rest))
    assert found.keys() == running.keys()
    assert all(torch.equal(found[name], value) for name, value in running.items())
    alone = open_pool(str(root / "out"), {"run_1": str(root / "run_1")})
    wanted = experts.logits(what, "report")[TASK]
    assert torch.equal(experts_of(root, alone).logits(Recipe("pretrained"), "report")[TASK], wanted)
    counters, own = (
        {k: v for k, v in load_file(root / name / "model.safetensors").items() if "num_batch" in k}
        for name in ("out", "base")
    )
    assert counters.keys() == own.keys()
    assert all(v.dtype == torch.int64 and torch.equal(v, own[k]) for k, v in counters.items())
    from transformers import AutoModelForImageClassification

    loaded, report = AutoModelForImageClassification.from_pretrained(
        root / "out", output_loading_info=True
    )
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.id2label == {0: "circle", 1: "square", 2: "star"}


def test_a_recipe_s_statistics_are_checked(tmp_path: Path) -> None:
    root = write_pool(tmp_path, "basic")
    pool = pool_of(root)
    running = experts_of(root, pool).running(Recipe("ties"))
    file = recipes.write(root / "recipes", "ties", pool, {}, "s", {}, running=running)
    beside = root / "recipes/ties.batch_norm.safetensors"
    beside.write_bytes(beside.read_bytes()[:-1] + b"x")
    from fusion.errors import InputError

    with pytest.raises(InputError, match=r"batch_norm: .* has changed since the recipe"):
        rebuild(recipes.load(file), file, pool, root / "out", SweepFacts(), "")
    assert not (root / "out").exists()


def test_a_merge_without_data_averages(tmp_path: Path) -> None:
    root = write_pool(tmp_path, "basic")
    runs = {run: root / run for run in RUNS}
    merge("uniform_soup", root / "base", runs, root / "out")
    out, found = inspect(str(root / "out"), "pool.base"), {}
    found = dict(read(out, out.rest))
    each = [dict(read(e, out.rest)) for e in pool_of(root).experts.values()]
    for name, value in found.items():
        torch.testing.assert_close(value, sum(one[name] for one in each) / len(each))


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pool of each kind of model."""
    os.environ["FUSION_SWEEPS_CACHE"] = str(tmp_path_factory.getbasetemp() / "vision_cache")
    return {
        kind: write_pool(tmp_path_factory.mktemp(f"vision_{kind}"), kind)
        for kind in ("vit", "basic")
    }


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("vit", {"methods": {"tip_adapter": {}}}, "methods.tip_adapter: needs cosine_head, emb"),
        ("vit", {"methods": {"linear_probe": {}}}, "methods.linear_probe: needs embeddings"),
        ("vit", {"batch_norm": "average"}, "batch_norm: 'average'; the pool's models have no"),
        ("basic", {"methods": {"wemoe": {}}}, "methods.wemoe: needs mlp_blocks"),
        ("basic", {"methods": {"dawin": {}}}, "methods.dawin: the pool's models have batch norm"),
        ("basic", {"methods": {"fisher": {}}}, "methods.fisher: the pool's models have batch"),
        ("basic", {"batch_norm": "measure"}, "batch_norm"),
    ],
)
def test_what_is_not_defined_is_refused_in_one_line(
    kind: str, change: Any, message: str, pools: dict[str, Path]
) -> None:
    root = pools[kind]
    file = saved(root, "refused", {**spec_of(root, {"ties": {}}), **change})
    done = in_process("plan", file, cwd=root)
    assert done.returncode == 2
    assert message in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("kind", ["vit", "basic"])
def test_all_of_them_are_planned(kind: str, pools: dict[str, Path]) -> None:
    root = pools[kind]
    done = in_process("plan", saved(root, "all", spec_of(root, MERGES)), cwd=root)
    assert done.returncode == 0, done.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["vit", "basic"])
def test_a_sweep_runs_from_a_file_in_shards(
    kind: str, pools: dict[str, Path], ray_cluster: Any
) -> None:
    root = pools[kind]
    spec = spec_of(root, MERGES, placement={"replicas": 1, "shards": 2})
    file = saved(root, "sweep", spec)
    done = in_process("run", file, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    out = root / "outputs/vision"
    found = comparison(out)
    rows = {row["method"]: row for row in found["rows"]}
    assert rows.keys() >= {*MERGES, "pretrained", "experts", "best_single"}
    pool = pool_of(root)
    experts = experts_of(root, pool)
    for name in ("ties", "uniform_soup"):
        what = Recipe(name, rows[name]["params"])
        accuracy = experts.evaluate(what, "report").metrics()["acc/mean"]
        assert rows[name]["test"]["acc/mean"] == accuracy
        if Models(kind).resnet:
            kept = load_file(out / f"recipes/{name}.batch_norm.safetensors")
            running = experts.running(what)
            assert kept.keys() == running.keys()
            assert all(torch.equal(kept[k], v) for k, v in running.items())
    before = {name: row["test"] for name, row in rows.items()}
    for path in (out / "correct").glob("*.arrow"):
        path.unlink()  # what is evaluated again is measured again
    done = in_process("run", file, "--resume", cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    after = {row["method"]: row["test"] for row in comparison(out)["rows"]}
    assert after == before
