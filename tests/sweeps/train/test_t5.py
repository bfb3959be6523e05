"""`sweeps train` of a T5, all weights and LoRA: what a file may say, trials, and soups of both."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from actors.checkpoints.checkpoint import content_hash
from actors.families.registry import inspect
from actors.pool.pool import open_pool
from fusion.errors import InputError
from sweeps.spec.candidates import random_points
from sweeps.train import spec as trainspec
from sweeps.train.fine_tuning_context import FineTuningContext
from sweeps.train.ingredients import read_results
from sweeps.train.run_trials import TrialRecorder
from sweeps.train.searcher import allows
from tests.actors.families.t5.models import write_pool
from tests.sweeps.program import TWO, comparison, in_process
from tests.sweeps.train.test_run import hashes
from tests.sweeps.train.test_texts import context, ran

__all__ = ["context"]  # a fixture

LORA = {"rank": 16, "alpha": 32.0, "targets": ["q", "v"], "dropout": 0.1}
"""The defaults."""


def file_of(root: Path) -> dict[str, Any]:
    """A training file over a T5, of one task; both are made."""
    write_pool(root)
    return {
        "name": "t",
        "out": str(root / "out"),
        "base": str(root / "base"),
        "tasks": {"colour": {"dataset": str(root / "data" / "colour")}},
        "splits": {"val_fraction": 0.3},
        "keep": "all",
    }


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    return file_of(tmp_path)


def written(content: Mapping[str, Any], folder: Path, name: str = "t") -> Path:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(dict(content)))
    return folder / f"{name}.yaml"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"lora": 8}, "finetune.lora: 8: null or a mapping of rank, alpha, targets, dropout allow"),
        ({"lora": {"r": 8}}, "finetune.lora.r: 8: unknown parameter 'r'; (valid: alpha, dropout, "),
        ({"lora": {"rank": 0}}, "finetune.lora.rank: 0: int >= 1 allowed"),
        ({"lora": {"rank": {"grid": [4, 2.5]}}}, "finetune.lora.rank.grid.1: 2.5: int >= 1 allow"),
        ({"lora": {"alpha": 0}}, "finetune.lora.alpha: 0: float > 0 allowed"),
        ({"lora": {"dropout": 1.0}}, "finetune.lora.dropout: 1.0: float in [0, 1) allowed"),
        ({"lora": {"targets": "q"}}, "finetune.lora.targets: 'q': sequence allowed"),
        ({"lora": {"uniform": [1, 2]}}, "finetune.lora: {'uniform': [1, 2]}: null or a mapping"),
        ({"lora": {"grid": [None, {"rank": "x"}]}},
         "finetune.lora.grid.1.rank: 'x': int >= 1 allowed"),
        ({"lora": {"rank": {"choice": [2, 4]}}}, "finetune.trials: not given"),
        ({"lora": {"rank": {"grid": [2, 4]}}, "learning_rate": {"uniform": [1e-4, 1e-3]},
          "trials": 2, "scheduler": "pbt"}, "finetune.lora: {'grid': [2, 4]}: one value needed"),
    ],
)  # fmt: skip
def test_a_search_that_will_not_do(
    given: dict[str, Any], expected: str, content: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        trainspec.load(written({**content, "finetune": given}, tmp_path))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "shown"),
    [
        (["q", "query"], "'query'"),
        (["lm_head"], "'lm_head'"),
        ([], "[]"),
        ({"grid": [["q"], ["wi"]]}, "'wi'"),
        (["q", 3], "3"),
    ],
)
def test_layers_that_the_base_does_not_have_are_refused_before_anything_is_started(
    targets: Any, shown: str, content: dict[str, Any], tmp_path: Path
) -> None:
    content["finetune"] = {"lora": {"targets": targets}}
    done = in_process("train", str(written(content, tmp_path)), cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert done.stderr.strip() == (
        f"finetune.lora.targets: {shown}: layers of {content['base']} needed: q, k, v, o, wi_0,"
        " wi_1, wo"
    )
    assert not (tmp_path / "out").exists()


def test_defaults_of_lora_are_filled_in_and_its_fields_are_searched(
    content: dict[str, Any], tmp_path: Path
) -> None:
    def points(**given: Any) -> list[Any]:
        file = written({**content, "finetune": given}, tmp_path)
        entry = trainspec.load(file).finetune
        found = list(random_points(entry, "m", 0))
        assert all(allows(entry, params) for params in found)
        assert not any(allows(entry, {**params, "lora": {"rank": 1}}) for params in found)
        return [params["lora"] for params in found]

    assert points(lora={}) == [LORA]
    assert points(lora=None) == [None]
    assert points(lora={"grid": [None, {"rank": 4}]}) == [None, {**LORA, "rank": 4}]
    searched = points(
        lora={"rank": {"grid": [2, 4]}, "alpha": {"loguniform": [8, 64]}, "targets": ["wo"]},
        trials=3,
    )
    assert [each["rank"] for each in searched] == [2, 2, 2, 4, 4, 4]
    assert len({each["alpha"] for each in searched}) > 3
    assert all(8 <= each["alpha"] <= 64 and each["targets"] == ["wo"] for each in searched)


@pytest.mark.parametrize("lora", [None, {"rank": 2, "dropout": 0.3}], ids=["all", "lora"])
def test_a_trial_goes_on_where_it_was_killed(
    lora: dict[str, Any] | None, context: FineTuningContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ran(context, monkeypatch, "one", "colour", lora=lora)
    assert [each["rung"] for each in whole] == [1, 3, 9]
    assert ran(context, monkeypatch, "two", "colour", stop=3, lora=lora) == whole[:2]
    assert (context.out / "trained/two/state.pt").exists()
    assert ran(context, monkeypatch, "two", "colour", lora=lora) == whole
    one, two = read_results(context.out, "colour")
    assert one.made == two.made
    assert [each["kind"] for each in one.made] == ["expert", "ema"]
    file = "model" if lora is None else "adapter_model"
    assert (context.out / f"trained/one/expert-ema/{file}.safetensors").exists()


def test_a_fault_is_reported_and_not_raised(
    context: FineTuningContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For Tune, a trial that raised is one whose process died, which runs again."""
    given = {"targets": ["nothing"]}
    (last,) = ran(context, monkeypatch, "one", "colour", lora=given)
    assert math.isnan(last["select"])
    assert last["final"]
    assert "Error: Target modules {'nothing'} not found" in last["reason"]
    lines: list[str] = []
    progress = SimpleNamespace(say=lines.append, advance=lambda *_: None)
    ended = SimpleNamespace(config={"task": "colour", "params": {"lora": given}}, last_result=last)
    TrialRecorder(context, progress).on_trial_complete(0, [], ended)
    assert lines == [f"failed: colour {{'lora': {given}}}: {last['reason']}"]
    assert read_results(context.out, "colour") == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """Where a finished training lies: two full models and two adapters of one task."""
    os.environ["FUSION_SWEEPS_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    root = tmp_path_factory.mktemp("trained")
    content = file_of(root)
    content["finetune"] = {
        "epochs": 3, "batch_size": 8, "learning_rate": {"grid": [1e-3, 1e-2]},
        "lora": {"grid": [None, {"rank": 2, "alpha": 4}]},
    }  # fmt: skip
    done = in_process("train", str(written(content, root)), cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def adapters(out: Path) -> list[str]:
    """Folders of the ingredients that are adapters."""
    return [place for place in hashes(out) if (out / place / "adapter_config.json").exists()]


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.slow
def test_full_models_and_adapters_are_trained_and_souped(trained: Path) -> None:
    out, base = trained / "out", str(trained / "base")
    kept = hashes(out)
    assert len(kept) == 4
    assert len(adapters(out)) == 2
    for place in kept:
        recipe = yaml.safe_load((out / place / "recipe.yaml").read_text())
        assert recipe["base"] == content_hash(inspect(base, "x"))
        member = open_pool(base, {"x": str(out / place)}).experts["x"]
        assert recipe["sha256"] == content_hash(member)
        wanted = {**LORA, "rank": 2, "alpha": 4.0} if place in adapters(out) else None
        assert recipe["params"]["lora"] == wanted
    pool = yaml.safe_load((out / "pool.yaml").read_text())
    assert pool["pool"]["base"] == base
    methods = {"uniform_soup": {}, "greedy_soup": {}, "learned_soup": {"steps": 2, "batch_size": 4}}
    written({"name": "s", **pool, "methods": methods}, trained, "s")
    done = in_process("run", "s.yaml", *TWO, cwd=trained)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = trained / "outputs/s"
    rows = {row["method"]: row for row in comparison(folder)["rows"]}
    assert rows.keys() >= {*methods, "pretrained", "best_single", "oracle_single", "ensemble"}
    entries = [json.loads(path.read_text()) for path in (folder / "ledger").glob("*.json")]
    (greedy,) = (each for each in entries if each["method"] == "greedy_soup")
    assert {each["ingredient"] for each in greedy["choices"]} < set(pool["pool"]["experts"])
    assert len(greedy["choices"]) == 3
    assert "Which ingredients were taken" in (folder / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_nothing_is_trained_twice_and_ingredients_are_analysed(trained: Path) -> None:
    out = trained / "out"
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert len(kept) == 4
    done = in_process("train", "t.yaml", cwd=trained)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == kept
    pool = yaml.safe_load((out / "pool.yaml").read_text())
    written({"name": "a", **pool, "methods": {"uniform_soup": {}}}, trained, "a")
    done = in_process("analyse", "a.yaml", "--size", 3, *TWO, cwd=trained)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((trained / "outputs/a/analysis/plane.json").read_text())
    assert found["tables"]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_adapters_alone_may_stay_factored_in_a_soup(trained: Path) -> None:
    """The best of them has the score that its training wrote."""
    out = trained / "out"
    pool = yaml.safe_load((out / "pool.yaml").read_text())
    pool["pool"]["experts"] = {
        name: place
        for name, place in pool["pool"]["experts"].items()
        if str(Path(place).relative_to(out)) in adapters(out)
    }
    placement, methods = {"weights": "factored"}, {"greedy_soup": {}}
    written({"name": "f", **pool, "placement": placement, "methods": methods}, trained, "f")
    done = in_process("run", "f.yaml", *TWO, cwd=trained)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = comparison(trained / "outputs/f")["rows"]
    (best,) = (row for row in rows if row["method"] == "best_single")
    scores = [json.loads((out / place / "scores.json").read_text()) for place in adapters(out)]
    assert best["val"]["acc/mean"] == pytest.approx(max(each["select"] for each in scores))
