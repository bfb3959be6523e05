"""`sweeps quickstart --text`: its file fits the drawn pool, and the pool ranks the methods."""

from __future__ import annotations

import itertools

import pytest
import yaml

from actors.embedded.text.tasks import DRAWINGS
from sweeps.cli.quickstart import QUICKSTARTS
from sweeps.spec.sweep import load
from tests.sweeps.program import comparison, in_process


def test_the_file_has_the_tasks_and_templates_of_the_pool() -> None:
    spec = load(QUICKSTARTS["text"])
    assert list(spec.tasks) == list(spec.pool.experts) == list(DRAWINGS)
    assert {name: task.template for name, task in spec.tasks.items()} == {
        name: drawing.template for name, drawing in DRAWINGS.items()
    }
    assert set(spec.pool.experts.values()) == {f"embedded:text/{name}" for name in DRAWINGS}
    assert {task.dataset for task in spec.tasks.values()} == set(spec.pool.experts.values())


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_the_text_pool_ranks_the_methods(tmp_path, monkeypatch) -> None:
    """Pretrained < simple average < task arithmetic (0.3) < DAWE ≤ experts, 2 points apart or
    more outside the intervals, but for the last."""
    monkeypatch.setenv("FUSION_SWEEPS_CACHE", str(tmp_path / "cache"))
    one = tmp_path / "one.yaml"
    raw = yaml.safe_load(QUICKSTARTS["text"].read_text())
    raw["methods"] = {**raw["methods"], "task_arithmetic": {"scale": 0.3}}
    one.write_text(yaml.safe_dump({**raw, "name": "one"}))
    done = in_process("quickstart", "--text", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = in_process("run", "one.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in comparison(tmp_path / "outputs/one")["rows"]}
    every = {row["method"]: row for row in comparison(tmp_path / "outputs/quickstart_text")["rows"]}
    assert rows["simple_average"] == every["simple_average"]
    order = ["pretrained", "simple_average", "task_arithmetic", "dawe"]
    for worse, better in itertools.pairwise(order):
        gap = rows[better]["low"] - rows[worse]["high"]
        assert gap > 0.02, f"{better} over {worse}: {gap}"
    assert rows["dawe"]["low"] <= rows["experts"]["high"]
