"""The table."""

from __future__ import annotations

import re

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


def test_a_survey_is_no_hyper_parameter() -> None:
    assert "survey" not in METHODS["ties"].parameters
    with pytest.raises(InputError, match="unknown parameter 'survey'"):
        METHODS["ties"].merge(toy(), survey=None)  # type: ignore[union-attr]


def test_ranges_are_checked_before_anything_runs() -> None:
    with pytest.raises(InputError, match=re.escape("ties: density: 1.5; float in [0, 1] allowed")):
        METHODS["ties"].merge(toy(), density=1.5)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="ensemble: average: 'votes'; one of 'logits', "):
        METHODS["ensemble"].fuse(*toy_embeddings(), average="votes")  # type: ignore[union-attr]


def test_merge_is_the_rule_with_its_defaults() -> None:
    for name in ("simple_average", "task_arithmetic", "ties"):
        method = METHODS[name]
        assert isinstance(method, Static)
        merged, direct = method.merge(toy()), method.rule(toy())
        assert all(torch.equal(merged[key], direct[key]) for key in direct)


def test_public_names() -> None:
    assert fusion.METHODS is METHODS
    assert fusion.TaskVectors.__name__ == "TaskVectors"
    assert issubclass(fusion.InputError, ValueError)
