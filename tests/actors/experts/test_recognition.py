"""How often a gate's largest weight is that of the task's own expert."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from actors.artifacts.gate_file import Manifest, dump
from actors.artifacts.recipe import Recipe
from actors.experts.evaluation import Evaluation, score
from actors.experts.local import local_experts
from actors.pool.pool import open_pool
from fusion.methods.learned.gate import Gate
from tests.actors.laws.parts import EXTRACTOR, NAMES, WIDTH, Parts, make_parts
from tests.tiny_pool import TinyPool

GROUPINGS = ("task", "layer")


@pytest.fixture(scope="module")
def parts(tiny_pool: TinyPool, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make_parts(tiny_pool.root, tmp_path_factory.mktemp("recognition"))


def gate_of(parts: Parts, grouping: str) -> bytes:
    """Coefficient of task t: relu of feature t, and in a layer-wise gate a shift that differs from
    tensor to tensor and is 0 on average."""
    pool = parts.pool
    keys = pool.groups if grouping == "layer" else ()
    gate = Gate(WIDTH, len(pool.tasks), max(1, len(keys)), scale=0.0)
    gate[0].weight.data = torch.eye(WIDTH)
    gate[0].bias.data.zero_()
    gate[2].weight.data = torch.eye(WIDTH)[: len(pool.tasks)].repeat_interleave(gate.groups, dim=0)
    if keys:
        shift = torch.zeros(len(pool.tasks), len(keys))
        shift[0, 0], shift[0, 1] = 3.0, -3.0
        gate[2].bias.data = shift.flatten()
    manifest = Manifest(
        "dawe", "made-up", EXTRACTOR, "none", WIDTH, pool.tasks, grouping, keys,
        2, 0.0, False, False, 1,
    )  # fmt: skip
    return dump(gate, manifest)


def wanted(parts: Parts) -> dict[str, float]:
    """Task -> share of rows whose positive feature of the own number is the largest."""
    found = {}
    for at, name in enumerate(parts.pool.tasks):
        given = parts.features("report")[name][:, : len(parts.pool.tasks)].double().relu()
        others = torch.cat([given[:, :at], given[:, at + 1 :]], dim=1)
        found[name] = (given[:, at] > others.amax(1)).double().mean().item()
    return found


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_the_share_of_rows_whose_own_weight_is_largest(parts: Parts, grouping: str) -> None:
    recipe = Recipe("dawe", {"grouping": grouping}, gate_of(parts, grouping))
    found = parts.local(grouping).evaluate(recipe, "report").metrics()
    expected = wanted(parts)
    assert all(0 < value < 1 for value in expected.values())
    for name, value in expected.items():
        assert found[f"recognition/{name}"] == pytest.approx(value, abs=1e-12)
    mean = sum(expected.values()) / len(expected)
    assert found["recognition/mean"] == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("method", ["experts", "ensemble", "task_arithmetic"])
def test_what_has_no_gate_recognises_nothing(parts: Parts, method: str) -> None:
    found = parts.local("others").evaluate(Recipe(method), "report").metrics()
    assert not [name for name in found if name.startswith("recognition")]


def test_a_task_without_an_expert_has_none_to_recognise(parts: Parts, tiny_pool: TinyPool) -> None:
    root = tiny_pool.root
    experts = {name: str(root / "experts" / name) for name in NAMES[:2]}
    pool = open_pool(str(root / "base"), experts)
    data = {name: replace(task, unseen=name not in experts) for name, task in parts.data.items()}
    fewer = Parts(pool, data, parts.cache)
    runner = local_experts(pool, data, fewer.embeddings("unseen"))
    found = runner.evaluate(Recipe("dawe", {}, gate_of(fewer, "task")), "report").metrics()
    shares = {name: value for name, value in found.items() if name.startswith("recognition/")}
    assert shares.keys() == {f"recognition/{name}" for name in (*experts, "mean", "seen")}
    assert shares["recognition/seen"] == shares["recognition/mean"]


def test_a_score_without_rows_recognised_has_no_share() -> None:
    z, labels = torch.eye(2), torch.tensor([0, 1])
    assert "recognition/x" not in Evaluation({"x": score(z, labels)}, 0.0, 1).metrics()
    half = score(z, labels, recognised=torch.tensor([True, False]))
    assert Evaluation({"x": half}, 0.0, 1).metrics()["recognition/x"] == 0.5
