"""`sweeps quickstart --text`: its file fits the drawn pool, and the pool ranks the methods."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from actors.embedded.text.tasks import DRAWINGS
from sweeps.cli.quickstart import QUICKSTARTS, next_steps
from sweeps.results.comparison import Row
from sweeps.results.folder import SweepFolder
from sweeps.spec.sweep import load, validate
from tests.sweeps.program import comparison, in_process


def test_the_file_has_the_tasks_and_templates_of_the_pool() -> None:
    spec = load(QUICKSTARTS["text"])
    assert list(spec.tasks) == list(spec.pool.experts) == list(DRAWINGS)
    assert {name: task.template for name, task in spec.tasks.items()} == {
        name: drawing.template for name, drawing in DRAWINGS.items()
    }
    assert set(spec.pool.experts.values()) == {f"embedded:text/{name}" for name in DRAWINGS}
    assert {task.dataset for task in spec.tasks.values()} == set(spec.pool.experts.values())


def test_the_next_steps_open_export_and_go_on(tmp_path: Path) -> None:
    folder, best = SweepFolder(tmp_path / "out puts"), Row("ties", "k", {}, recipe="recipes/t.yaml")
    lines = next_steps(folder, best)
    assert lines[2] == f"1. open the report: {(folder.path / 'report.html').as_uri()}"
    assert f"export {folder.path / 'recipes/t.yaml'} " in lines[3].replace("'", "")
    assert lines[4].startswith("3. now with your models: ")
    own = yaml.safe_load("\n".join(lines[5:]))
    assert len(lines[5:]) == 10
    spec = validate(own, "mine.yaml")
    assert list(spec.methods) == ["task_arithmetic", "ties"]
    assert [line[:2] for line in next_steps(folder, None)[2:4]] == ["1.", "2."]


def check_order(folder: Path) -> None:
    """Pretrained < simple average < task arithmetic < DAWE ≤ experts: intervals are 2 points apart
    or more, but those of the last two."""
    found = {row["method"]: row["test_ci95"]["acc/mean"] for row in comparison(folder)["rows"]}
    order = ["pretrained", "simple_average", "task_arithmetic", "dawe"]
    for worse, better in itertools.pairwise(order):
        gap = found[better][0] - found[worse][1]
        assert gap >= 0.02, f"{better} over {worse}: {gap}"
    assert found["dawe"][0] <= found["experts"][1]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_the_text_pool_ranks_the_methods(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FUSION_SWEEPS_CACHE", str(tmp_path / "cache"))
    done = in_process("quickstart", "--text", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_order(tmp_path / "outputs/quickstart_text")
