"""Epochs over cached features: steps by hand, and which epoch is kept."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.logits.optimize import top1_accuracy, train

OPTIONS: dict[str, Any] = {
    "rows": 5,
    "learning_rate": 0.1,
    "eps": 1e-8,
    "weight_decay": 0.0,
    "batch_size": 2,
    "epochs": 3,
    "seed": 0,
}


def scores(*values: float) -> Callable[[], float]:
    given = iter(values)
    return lambda: next(given)


def test_every_epoch_sees_every_row_once_in_another_order() -> None:
    weight = torch.zeros(1, requires_grad=True)
    seen: list[list[int]] = []

    def loss(batch: Tensor) -> Tensor:
        seen.append(batch.tolist())
        return weight.sum()

    train([weight], loss, scores(0, 0, 0, 0), **OPTIONS)
    assert [len(batch) for batch in seen] == [2, 2, 1] * 3
    orders = [[row for batch in seen[i : i + 3] for row in batch] for i in (0, 3, 6)]
    assert [sorted(order) for order in orders] == [[0, 1, 2, 3, 4]] * 3
    assert orders[0] != orders[1]


def test_steps_and_their_rates_by_hand() -> None:
    # Adam moves by lr where the gradient is constant; lr is ½·0.1·(1 + cos(π·step/9)).
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    best, history = train([weight], lambda batch: weight.sum(), scores(0, 1, 2, 3), **OPTIONS)
    rates = [0.05 * (1 + torch.cos(torch.tensor(torch.pi * step / 9)).item()) for step in range(9)]
    assert best == 3
    assert weight.item() == pytest.approx(-sum(rates), rel=1e-5)
    # Mean over rows: batches of 2, 2 and 1, each met before its step.
    wanted = -(2 * 0 + 2 * rates[0] + (rates[0] + rates[1])) / 5
    assert history[1].loss == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("accuracy", "best"),
    [((0.5, 0.4, 0.6, 0.6), 2), ((0.5, 0.5, 0.5, 0.5), 0), ((0.5, 0.9, 0.6, 0.8), 1)],
)
def test_the_first_best_epoch_is_kept(accuracy: tuple[float, ...], best: int) -> None:
    weight = torch.zeros(1, requires_grad=True)
    after: list[float] = []
    given = iter(accuracy)

    def score() -> float:
        after.append(weight.item())
        assert not torch.is_grad_enabled()
        return next(given)

    found, history = train([weight], lambda batch: weight.sum(), score, **OPTIONS)
    assert found == best
    assert weight.item() == after[best]
    assert len(set(after)) == 4
    assert tuple(epoch.accuracy for epoch in history) == accuracy


def test_a_loss_that_is_no_number_is_refused() -> None:
    weight = torch.zeros(1, requires_grad=True)
    message = "loss: nan in epoch 1; a learning_rate below 0.1 needed"
    with pytest.raises(InputError, match="^" + re.escape(message) + "$"):
        train([weight], lambda batch: weight.sum() / 0 * 0, scores(0), **OPTIONS)


def test_of_equal_logits_the_first_counts() -> None:
    logits = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 2.0]])
    assert top1_accuracy(logits, torch.tensor([0, 1, 1])) == 2 / 3
