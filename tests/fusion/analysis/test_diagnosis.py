"""Each cause of a failed soup gives one sentence that names it; a healthy pool gives none."""

from __future__ import annotations

import math

import pytest
import torch

from fusion.analysis.diagnosis import diagnose
from fusion.errors import InputError
from fusion.task_vectors.gram import Gram, gram

HEALTHY = torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.0, 0.5], [1.0, 0.2, 0.2]])


def products(rows: torch.Tensor) -> Gram:
    return gram([("w", rows)], tasks=tuple("abcdefgh"[: len(rows)]))


def test_a_healthy_pool_says_nothing() -> None:
    scores, rates = [0.8, 0.79, 0.81], [1e-5, 3e-5, None]
    assert diagnose(products(HEALTHY), scores, rates, {("a", "b"): 0.0}) == []


def test_wide_angles_name_the_widest_pair() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, 0.1, 0.0]])
    (found,) = diagnose(products(rows), [0.8] * 3, wide_angle=85)
    assert found == (
        "Task vectors are more than 85 degrees apart in 2 of 3 pairs, most 'a' and 'c' with 174.3:"
        " they may not share a basin."
    )


def test_duplicates_and_the_base_are_named() -> None:
    rows = torch.cat([HEALTHY, HEALTHY[:1], torch.zeros(1, 3)])
    found = diagnose(products(rows), [0.8] * 5)
    assert found == [
        "Ingredient 'e' equals the base.",
        "Ingredients 'a' and 'd' are the same model: a uniform soup counts it twice.",
    ]


def test_scores() -> None:
    (gap,) = diagnose(products(HEALTHY), [0.8, 0.7, 0.74])
    assert gap == (
        "More than 5 points below the best score (80.0 %): 'b', 'c'; the worst has 70.0 %:"
        " drop them first."
    )
    (failed,) = diagnose(products(HEALTHY), [0.8, math.nan, 0.8])
    assert failed == "Ingredient 'b' has no score (nan)."


def test_learning_rates() -> None:
    found = diagnose(products(HEALTHY), [0.8] * 3, [1e-6, None, 1e-4])
    assert len(found) == 2
    assert "Trained with a learning rate of 0.0001 or more: 'c';" in found[0]
    assert "from 1e-06 to 0.0001, more than a factor 30" in found[1]


def test_barriers() -> None:
    pairs = {("a", "b"): 0.01, ("a", "c"): 2.5}
    assert diagnose(products(HEALTHY), [0.8] * 3, barriers=pairs) == [
        "There is a loss barrier of 2.5 between 'a' and 'c': they do not average."
    ]
    with pytest.raises(InputError, match="task 'q': not one of a, b, c"):
        diagnose(products(HEALTHY), [0.8] * 3, barriers={("a", "q"): 0.0})


def test_sentences_are_one_line_and_long_lists_are_cut() -> None:
    rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    found = diagnose(products(rows), [0.9] + [0.5] * 7, [1e-3] * 8)
    assert all("\n" not in line and line.endswith(".") for line in found)
    assert any("'b', 'c', 'd', 'e', 'f' and 2 more" in line for line in found)


def test_counts_must_fit() -> None:
    with pytest.raises(InputError, match="scores: 2 given for 3 ingredients"):
        diagnose(products(HEALTHY), [0.8, 0.8])
    with pytest.raises(InputError, match="learning rates: 1 given for 3 ingredients"):
        diagnose(products(HEALTHY), [0.8] * 3, [1e-5])
