"""Rows of the table that select: greedy_soup, best_single, oracle_single."""

import pytest

from fusion.errors import InputError
from fusion.registry import METHODS


def test_defaults_are_the_papers() -> None:
    found = METHODS["greedy_soup"].selection()
    assert (found.order, found.tie, found.min_delta, found.replacement) == (
        "validation", "ge", 0.0, False,
    )  # fmt: skip
    assert not found.single
    assert METHODS["best_single"].selection().single
    assert METHODS["oracle_single"].selection().role == "report"


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"order": "given"}, "order 'given' needs ingredients"),
        ({"tie": "eq"}, "tie: 'eq'; one of 'ge', 'gt' allowed"),
        ({"min_delta": -0.1}, "min_delta: -0.1; float >= 0 allowed"),
        ({"prune": -1.0}, "prune: -1.0"),
    ],
)
def test_wrong_parameters(params: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        METHODS["greedy_soup"].selection(**params)
