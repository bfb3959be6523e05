"""RegMean: normal equations by hand and in float64; what cannot be solved says why."""

from __future__ import annotations

import pytest
import torch

from fusion.errors import InputError
from fusion.kinds import MergeInputs
from fusion.methods.static.average import simple_average
from fusion.methods.statistics.collect import Statistics
from fusion.methods.statistics.regmean import regmean, regmean_plusplus
from fusion.registry import METHODS
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.laws import TASKS, assert_same_bits, toy, toy_statistics


def linear(t: int = 3, out: int = 4, width: int = 6) -> tuple[TaskVectors, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(t + 1, out, width, generator=generator, dtype=torch.float64)
    experts = {str(i): {"l.weight": w} for i, w in enumerate(weights[1:])}
    inputs = torch.randn(t, 50, width, generator=generator, dtype=torch.float64)
    return TaskVectors.from_state_dicts({"l.weight": weights[0]}, experts), inputs


def test_it_reproduces_outputs_better_than_any_other_matrix() -> None:
    """With α = 1 and no ridge: the least squares of Σ_t ‖X_t W − X_t W_t‖²."""
    vectors, inputs = linear()
    grams = inputs.transpose(1, 2) @ inputs / 50
    found = regmean(vectors, statistics={"l.weight": grams}, non_diagonal=1.0, ridge=0.0)[
        "l.weight"
    ]
    experts = vectors.base["l.weight"] + vectors.deltas["l.weight"]
    stacked = torch.cat(list(inputs))
    outputs = torch.cat([x @ w.T for x, w in zip(inputs, experts, strict=True)])
    wanted = torch.linalg.lstsq(stacked, outputs).solution.T
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("alpha", "ridge"), [(0.95, 1e-6), (0.3, 0.5)])
def test_against_explicit_inverses_in_float64(alpha: float, ridge: float) -> None:
    vectors = toy()
    grams = toy_statistics(vectors.deltas, TASKS, "gram")
    found = METHODS["regmean"].merge(
        vectors, MergeInputs(statistics=grams), non_diagonal=alpha, ridge=ridge
    )
    mean = simple_average(vectors)
    for name, deltas in vectors.deltas.items():
        if name not in grams:
            torch.testing.assert_close(found[name], mean[name])
            continue
        hats = []
        for gram in grams[name].double():
            diagonal = torch.diag(gram.diagonal())
            hats.append(
                alpha * (gram - diagonal)
                + diagonal
                + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
            )
        experts = vectors.base[name].double() + deltas.double()
        right = sum(g @ w.T for g, w in zip(hats, experts, strict=True))
        wanted = (torch.linalg.inv(sum(hats)) @ right).T
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-4, atol=1e-5)


def test_no_correlation_is_a_mean_weighted_by_input() -> None:
    vectors, _ = linear(t=2, out=1, width=2)
    grams = torch.tensor([[[2.0, 9.0], [9.0, 1.0]], [[6.0, -9.0], [-9.0, 0.0]]]).double()
    found = regmean(vectors, statistics={"l.weight": grams}, non_diagonal=0.0, ridge=0.0)
    a, b = (vectors.base["l.weight"] + vectors.deltas["l.weight"])[:, 0]
    wanted = torch.stack([(2 * a[0] + 6 * b[0]) / 8, a[1]])
    torch.testing.assert_close(found["l.weight"][0], wanted)


def test_an_input_that_no_image_moves_is_averaged_by_the_ridge_or_refused() -> None:
    vectors, _ = linear(t=2, out=1, width=2)
    grams = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]] * 2).double()
    found = regmean(vectors, statistics={"l.weight": grams})["l.weight"]
    mean = simple_average(vectors)["l.weight"]
    torch.testing.assert_close(found, mean)
    with pytest.raises(InputError, match=r"'l.weight': the sum .* is singular at row 2 of 2: too"):
        regmean(vectors, statistics={"l.weight": grams}, ridge=0.0)


def test_layers_with_one_input_share_their_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    import fusion.methods.statistics.regmean

    calls: list[str] = []
    real = fusion.methods.statistics.regmean.factor
    monkeypatch.setattr(
        fusion.methods.statistics.regmean,
        "factor",
        lambda m, n, *rest: (calls.append(n), real(m, n, *rest))[1],
    )
    vectors = TaskVectors.from_state_dicts(
        {"q": torch.zeros(2, 3), "k": torch.zeros(2, 3)},
        {"a": {"q": torch.ones(2, 3), "k": torch.ones(2, 3)}},
    )
    shared = Statistics({"q": torch.eye(3)[None]}, {"q": "q", "k": "q"})
    regmean(vectors, statistics=shared)
    assert calls == ["q"]


def test_regmean_plusplus_is_the_same_rule() -> None:
    vectors = toy()
    grams = toy_statistics(vectors.deltas, TASKS, "gram")
    assert_same_bits(
        regmean_plusplus(vectors, statistics=grams), regmean(vectors, statistics=grams)
    )
    asked = METHODS["regmean_plusplus"].statistics_request({"non_diagonal": 0.5})  # type: ignore[union-attr]
    assert (asked.kind, asked.options) == ("prefix_gram", {"non_diagonal": 0.5, "ridge": 1e-6})


def test_matrices_of_another_width_are_refused() -> None:
    vectors, _ = linear()
    with pytest.raises(InputError, match=r"shape \[3, 5, 5\]; \[3, 6, 6\] needed: they are of"):
        regmean(vectors, statistics={"l.weight": torch.ones(3, 5, 5)})
