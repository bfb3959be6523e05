"""Members of a pool that come of another base, head or order of classes are refused."""

import shutil
from pathlib import Path

import pytest
import yaml

from actors.checkpoints.checkpoint import content_hash
from actors.cluster.planner import Node, Resources
from actors.families.registry import inspect
from sweeps.planning.prepare import prepare
from sweeps.planning.provenance import Ancestry, ancestry_of
from sweeps.spec.sweep import validate
from tests.refusals import one_line


@pytest.fixture
def runs(tiny_pool, tmp_path) -> dict[str, Path]:
    """Three ingredients of one task, without recipes."""
    found = {name: tmp_path / name for name in ("a", "b", "c")}
    for place in found.values():
        shutil.copytree(tiny_pool.root / "experts" / "lines", place)
    return found


def recipe(tiny_pool, place: Path, **changes) -> None:
    base = content_hash(inspect(str(tiny_pool.root / "base"), "x"))
    head = {"kind": "zero_shot", "identity": "1" * 32, "classnames": ["flat", "steep"]}
    content = {"task": "lines", "params": {}, "base": base, "head": head}
    (place / "recipe.yaml").write_text(yaml.safe_dump({**content, **changes}))


def prepared(tiny_pool, runs, tmp_path, **task):
    data = str(tiny_pool.root / "data" / "lines")
    spec = {
        "name": "x", "methods": {"uniform_soup": {}},
        "pool": {"base": str(tiny_pool.root / "base"),
                 "experts": {name: str(place) for name, place in runs.items()}},
        "tasks": {"lines": {"dataset": data, **task}},
    }  # fmt: skip
    return prepare(validate(spec, "s.yaml"), tmp_path / "out", Resources((Node(2, 0, 8 << 30),)))


def refused(tiny_pool, runs, tmp_path, **task) -> str:
    with one_line() as lines:
        prepared(tiny_pool, runs, tmp_path, **task)
    return lines[0]


def test_without_recipes_nothing_is_known_and_nothing_said(tiny_pool, runs, tmp_path):
    assert prepared(tiny_pool, runs, tmp_path).heads == {}
    for text in ("{", "a: [", "- 1", "base: openai/clip\nhead: x\ntask: 3\n", "head: {kind: 1}"):
        (runs["a"] / "recipe.yaml").write_text(text)  # other programs write recipes too
        assert not ancestry_of(runs["a"]).base
        prepared(tiny_pool, runs, tmp_path)


def test_recipes_that_agree(tiny_pool, runs, tmp_path):
    for place in runs.values():
        recipe(tiny_pool, place)
    prepared(tiny_pool, runs, tmp_path)
    assert ancestry_of(runs["a"]).classnames == ("flat", "steep")
    # Other words for the classes are another head, not another order.
    prepared(tiny_pool, runs, tmp_path, classnames=["level", "upright"])


def test_another_base(tiny_pool, runs, tmp_path):
    recipe(tiny_pool, runs["a"])
    recipe(tiny_pool, runs["b"], base="d" * 64)
    text = refused(tiny_pool, runs, tmp_path)
    assert text.startswith(f"pool.experts.b: {runs['b'] / 'recipe.yaml'}: tuned from another base")
    assert "sha256 dddddddddddd…; pool.base (" in text
    recipe(tiny_pool, runs["b"], base={"source": "x", "sha256": "e" * 64})  # of an export
    assert "sha256 eeeeeeeeeeee…" in refused(tiny_pool, runs, tmp_path)


def test_other_heads_and_orders_within_a_task(tiny_pool, runs, tmp_path):
    recipe(tiny_pool, runs["a"])
    probe = {"kind": "linear_probe", "identity": "2" * 32, "classnames": ["flat", "steep"]}
    recipe(tiny_pool, runs["c"], head=probe)
    text = refused(tiny_pool, runs, tmp_path)
    assert text == (
        "pool.experts.c and pool.experts.a: both of task 'lines', tuned under different heads"
        " (linear_probe 22222222 and zero_shot 11111111); those of one head can be fused"
    )
    recipe(tiny_pool, runs["c"], head={**probe, "classnames": ["steep", "flat"]})
    assert "another order of them: class 0 is 'steep', not 'flat'" in refused(
        tiny_pool, runs, tmp_path
    )
    recipe(tiny_pool, runs["c"], task="tones", head=probe)  # of another task: its own head
    prepared(tiny_pool, runs, tmp_path)


def test_another_head_or_order_than_the_task_s(tiny_pool, runs, tmp_path):
    probe = {"kind": "linear_probe", "identity": "2" * 32, "classnames": ["flat", "steep"]}
    recipe(tiny_pool, runs["a"], head=probe)
    text = refused(tiny_pool, runs, tmp_path)
    assert f"tasks.lines.head: {runs['a'] / 'head.safetensors'} needed" in text
    head = {"kind": "zero_shot", "identity": "1" * 32, "classnames": ["steep", "flat"]}
    recipe(tiny_pool, runs["a"], head=head)
    text = refused(tiny_pool, runs, tmp_path)
    assert "tuned under another order of classes than tasks.lines has: class 0 is 'steep'" in text


def test_what_a_recipe_says(tiny_pool, runs):
    recipe(tiny_pool, runs["a"])
    base = content_hash(inspect(str(tiny_pool.root / "base"), "x"))
    expected = Ancestry(
        task="lines", base=base, kind="zero_shot", head="1" * 32, classnames=("flat", "steep")
    )
    assert ancestry_of(runs["a"]) == expected
    assert ancestry_of(runs["b"]) == Ancestry()
