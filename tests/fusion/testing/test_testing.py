"""The law suite, as authors of other packages use it: it passes good methods and fails bad ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import pytest
import torch
from annotated_types import Interval
from torch import Tensor

from fusion import outside_methods, registry, testing
from fusion.errors import InputError
from fusion.registry import METHODS, Static
from fusion.task_vectors.coding import mix
from fusion.task_vectors.task_vectors import TaskVectors
from fusion.testing import check_methods


@pytest.fixture(autouse=True)
def table_as_before() -> Iterator[None]:
    table, origins = dict(registry.TABLE), dict(outside_methods.ORIGINS)
    examples = dict(testing.EXAMPLES)
    yield
    for known, before in (
        (registry.TABLE, table),
        (outside_methods.ORIGINS, origins),
        (testing.EXAMPLES, examples),
    ):
        known.clear()  # type: ignore[attr-defined]
        known.update(before)  # type: ignore[attr-defined]


def halfway(
    vectors: TaskVectors, *, scale: Annotated[float, Interval(ge=0)] = 0.5
) -> dict[str, Tensor]:
    """θ₀ + λ·mean_t τ_t.

    Source: these tests.
    """
    experts = len(vectors.tasks)
    return mix(vectors, torch.full((1, experts, 1), scale / experts))


def row(rule) -> Static:
    return Static(rule, paper="none", defaults="ours")


def test_a_good_method_passes() -> None:
    methods = {"halfway": row(halfway)}
    check_methods(methods, {"halfway": [{}, {"scale": 2.0}]})
    check_methods(methods)
    assert METHODS["halfway"] is methods["halfway"]


def test_the_law_that_is_broken_is_named() -> None:
    def first_wins(vectors: TaskVectors) -> dict[str, Tensor]:
        """Source: these tests."""
        coding = torch.zeros(1, len(vectors.tasks), 1)
        coding[:, 0] = 1.0
        return mix(vectors, coding)

    with pytest.raises(AssertionError, match="first_wins: task_order_is_irrelevant: "):
        check_methods({"first_wins": row(first_wins)})


def test_a_method_that_writes_to_its_inputs_fails() -> None:
    def careless(vectors: TaskVectors) -> dict[str, Tensor]:
        """Source: these tests."""
        return {name: tensor.mul_(1) for name, tensor in vectors.base.items()}

    with pytest.raises(AssertionError, match="careless: inputs_untouched: "):
        check_methods({"careless": row(careless)})


def test_a_docstring_without_a_source_fails() -> None:
    def unsourced(vectors: TaskVectors) -> dict[str, Tensor]:
        """A method."""
        return {}

    with pytest.raises(AssertionError, match="unsourced: a_row_says_where_it_comes_from"):
        check_methods({"unsourced": row(unsourced)})


def test_a_taken_name_is_refused() -> None:
    def ties(vectors: TaskVectors) -> dict[str, Tensor]:
        return {}

    before = METHODS["ties"]
    with pytest.raises(InputError, match="method 'ties': the name is taken by this package"):
        check_methods({"ties": row(ties)})
    assert METHODS["ties"] is before
