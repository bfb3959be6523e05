"""The table."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

import fusion
from fusion.errors import InputError
from fusion.registry import METHODS, Static
from tests.fusion.laws import toy, toy_embeddings


@pytest.mark.parametrize(
    ("name", "kind", "scope"),
    [
        ("task_arithmetic", "static", "tensor"),
        ("ties", "static", "model"),
        ("ensemble", "logits", "model"),
    ],
)
def test_kinds_and_scopes(name: str, kind: str, scope: str) -> None:
    assert (METHODS[name].kind, METHODS[name].scope) == (kind, scope)


FACTS = {
    "ties": ("one_model", {"weights"}, False, False, False),
    "emr": ("model_per_task", {"weights"}, False, False, False),
    "svc": ("one_model", {"weights"}, False, False, False),
    "fisher": ("one_model", {"weights", "inputs", "statistics"}, False, False, True),
    "ensemble": ("logits", {"expert_logits"}, False, False, False),
    "greedy_soup": ("one_model", {"weights", "inputs", "labels"}, True, False, False),
    "tip_adapter": ("logits", {"expert_logits", "labels"}, True, False, True),
    "surgery": ("logits", {"weights", "inputs"}, True, False, True),
    "greedy_ensemble": ("logits", {"expert_logits", "labels"}, True, False, False),
    "adamerging": ("one_model", {"weights", "inputs"}, True, True, False),
    "learned_soup": ("one_model", {"weights", "inputs", "labels"}, True, True, False),
    "dawe": ("model_per_sample", {"weights", "inputs"}, True, True, False),
    "wemoe": ("model_per_sample", {"weights", "inputs"}, True, True, False),
    "concrete_adamerging": ("one_model", {"weights", "inputs"}, True, True, False),
    "dawin": ("model_per_sample", {"weights", "expert_logits"}, False, False, False),
}


@pytest.mark.parametrize("name", FACTS)
def test_facts_of_one_method_of_each_kind(name: str) -> None:
    row = METHODS[name]
    found = (row.output, set(row.reads), row.learns, row.stepwise, row.fits)
    assert found == FACTS[name]


def test_facts_of_every_kind_are_tested() -> None:
    assert {type(METHODS[name]) for name in FACTS} == {type(row) for row in METHODS.values()}


def test_few_places_ask_for_the_kind_of_a_method() -> None:
    """Facts are fields and handlers are tables; `isinstance` only narrows types."""
    kinds = {cls.__name__ for row in METHODS.values() for cls in type(row).__mro__} - {"object"}
    root = Path(fusion.__file__).parents[1]
    found = [
        f"{path.relative_to(root)}:{node.lineno}"
        for folder in ("fusion", "actors")
        for path in sorted((root / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "isinstance"
        and kinds & {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
    ]
    assert len(found) <= 5, found


def test_what_methods_require_of_a_model_family() -> None:
    requires = {name: set(row.requires) for name, row in METHODS.items() if row.requires}
    cosine = {"embeddings", "cosine_head"}
    assert requires == {
        "wemoe": {"mlp_blocks"},
        "ewemoe": {"mlp_blocks"},
        "linear_probe": {"embeddings"},
        "surgery": {"embeddings"},
        "wise_ft_linear": cosine,
        "tip_adapter": cosine,
        "tip_adapter_f": cosine,
        "clip_adapter": cosine,
        "cafo": cosine,
    }


def test_a_survey_is_no_hyper_parameter() -> None:
    assert "survey" not in METHODS["ties"].parameters
    with pytest.raises(InputError, match="unknown parameter 'survey'"):
        METHODS["ties"].merge(toy(), survey=None)


def test_ranges_are_checked_before_anything_runs() -> None:
    with pytest.raises(InputError, match=re.escape("ties: density: 1.5; float in [0, 1] allowed")):
        METHODS["ties"].merge(toy(), density=1.5)
    with pytest.raises(InputError, match="ensemble: average: 'votes'; one of 'logits', "):
        METHODS["ensemble"].fuse(*toy_embeddings(), average="votes")  # type: ignore[union-attr]


def test_merge_is_the_rule_with_its_defaults() -> None:
    for name in ("simple_average", "task_arithmetic", "ties"):
        method = METHODS[name]
        assert isinstance(method, Static)
        merged, direct = method.merge(toy()), method.rule(toy())
        assert all(torch.equal(merged[key], direct[key]) for key in direct)
