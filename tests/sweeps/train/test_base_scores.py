"""An expert is compared with its base: the base's scores, and what is said of one that is no
better."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console

from actors.files.fingerprint import Fingerprint
from fusion.analysis.significance import wilson
from sweeps.train import base_scores
from sweeps.train.base_scores import BaseScore, read, verdict
from sweeps.train.ingredients import Ingredient
from sweeps.train.run import table, verdicts
from tests.sweeps.train.test_run import context, load, spec

__all__ = ["context"]  # a fixture


def expert(report: float, **params: Any) -> Ingredient:
    return Ingredient("signs", "k", "expert", params, 0, 0.5, report, "")


BASE = BaseScore(Fingerprint("c"), 0.1, 0.1, 400)
LOW, HIGH = wilson(40, 400)


@pytest.mark.parametrize(
    ("report", "rate", "fitting", "said"),
    [
        (HIGH + 0.001, 1e-5, 3e-4, ""),
        (0.107, 1e-5, 3e-4, "within its 95 % interval, 0.0743 to 0.1333; the learning rate (1e-05)"
                            " is probably too small: try finetune.learning_rate: 3e-4"),
        (0.107, 1e-4, None, "probably too small: try finetune.learning_rate: 1e-3"),
        (0.107, 2e-3, 3e-4, "probably too large: try finetune.learning_rate: 2e-4"),
        (0.05, 1e-4, 3e-4, "below its 95 % interval, 0.0743 to 0.1333; the learning rate (0.0001)"
                           " is probably too large: try finetune.learning_rate: 1e-5"),
        (0.1, None, None, "within its 95 % interval, 0.0743 to 0.1333"),
    ],
)  # fmt: skip
def test_what_is_said_of_an_expert(report, rate, fitting, said):
    found = verdict(expert(report), BASE, rate, fitting)
    assert found.endswith(said)
    assert bool(found) == bool(said)
    if said:
        assert found.startswith(f"signs: the expert ({report:.4f}) is no better than the base")


def test_a_base_that_solves_the_task_leaves_nothing_to_learn():
    solved = BaseScore(Fingerprint("c"), 0.995, 0.995, 400)
    assert verdict(expert(0.995), solved, 1e-5, 3e-4).endswith("there is little to learn")


def test_a_metric_without_an_interval_has_no_verdict():
    assert verdict(expert(0.05), BaseScore(Fingerprint("c"), 0.1, 0.1, 0), 1e-5, 3e-4) == ""


@pytest.mark.parametrize("content", [b"", b"{}", b'{"a": 1}'])
def test_a_damaged_file_has_no_scores(content, tmp_path):
    (tmp_path / "scores.json").write_bytes(content)
    assert read(tmp_path / "scores.json") == {}


def test_a_base_that_is_made_here_has_defaults_that_fit_it(tiny_pool, tmp_path):
    made = load(spec(tiny_pool, tmp_path, finetune={"epochs": 2}), tmp_path)
    assert made.finetune.params == {"epochs": 2, "learning_rate": 3e-4}
    given = load(spec(tiny_pool, tmp_path, finetune={"learning_rate": 1e-5}), tmp_path)
    assert given.finetune.params == {"learning_rate": 1e-5}
    content = spec(tiny_pool, tmp_path)
    del content["finetune"]
    assert load(content, tmp_path).finetune.params == {"learning_rate": 3e-4}
    content |= {"base": str(tiny_pool.root / "base")}
    del content["pretrain"]
    assert load(content, tmp_path).finetune.params == {}


def test_the_table_has_the_base_beside_the_expert(context):
    floor = {"lines": BASE}
    kept = {"lines": [Ingredient("lines", "k", "expert", {}, 0, 0.5, 0.107, "")]}
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(kept, context.spec, context.out, floor))
    cells = [cell.strip() for cell in console.export_text().splitlines()[-2].split("│")]
    assert cells[3:6] == ["0.5000", "0.1000", "0.1070"]
    (line,) = verdicts(context, kept, floor)
    assert "the learning rate (1e-05) is probably too small" in line  # the family's default
    assert verdicts(context, kept, {}) == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_base_is_measured_once(context, tmp_path):
    from sweeps.console.progress import Progress

    progress = Progress(Console(file=open("/dev/null", "w")))  # noqa: SIM115
    found = base_scores.base_scores(context, progress)["lines"]
    assert found.rows == 60
    assert 0 <= found.report <= 1
    file = context.out / base_scores.FILE
    before = file.stat().st_mtime_ns
    assert base_scores.base_scores(context, progress)["lines"] == found
    assert file.stat().st_mtime_ns == before
    assert json.loads(file.read_text())["lines"]["report"] == found.report
