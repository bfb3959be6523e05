"""wudi: its gradient and its steps against autograd, and where there is nothing to do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusion.methods.spectral.wudi import normal_equations, wudi
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.draws import drawn_as_double as drawn
from tests.fusion.laws import TASKS, assert_same_bits, copied, state_dict, toy
from tests.fusion.methods.spectral.matrices import vectors_of


def loss(merged: Tensor, deltas: Tensor) -> Tensor:
    """Σ_t ‖(M − τ_t) τ_tᵀ‖² / ‖τ_t‖², the paper's objective."""
    difference = merged[None] - deltas
    products = difference @ deltas.transpose(1, 2)
    return (products.square().sum((1, 2)) / deltas.square().sum((1, 2))).sum()


def textbook(deltas: Tensor, steps: int, learning_rate: float) -> Tensor:
    merged = deltas.sum(0).clone().requires_grad_()
    adam = torch.optim.Adam([merged], lr=learning_rate)
    for _ in range(steps):
        adam.zero_grad()
        loss(merged, deltas).backward()
        adam.step()
    return merged.detach()


@pytest.mark.parametrize("shape", [(3, 8, 8), (4, 12, 5), (2, 5, 12), (3, 1, 6), (1, 4, 4)])
def test_the_gradient_is_autograds(shape: tuple[int, int, int]) -> None:
    deltas = drawn(*shape)
    merged = drawn(*shape[1:], seed=1).requires_grad_()
    (wanted,) = torch.autograd.grad(loss(merged, deltas), merged)
    start, seen, aim = normal_equations(deltas)
    torch.testing.assert_close(start, deltas.sum(0))
    torch.testing.assert_close(2 * (merged.detach() @ seen - aim), wanted)


@pytest.mark.parametrize("shape", [(3, 8, 8), (4, 12, 5), (2, 5, 12)])
def test_steps_against_autograd(shape: tuple[int, int, int]) -> None:
    for learning_rate in (1e-5, 1e-2):
        deltas = drawn(*shape)
        merged = wudi(vectors_of(deltas), steps=30, learning_rate=learning_rate)["w"]
        torch.testing.assert_close(merged, textbook(deltas, 30, learning_rate))


def test_float32_is_close_to_it() -> None:
    deltas = drawn(3, 10, 7, dtype=torch.float32)
    merged = wudi(vectors_of(deltas), steps=50)["w"]
    wanted = textbook(deltas.double(), 50, 1e-5)
    assert float((wanted - deltas.double().sum(0)).abs().max()) > 4e-4
    torch.testing.assert_close(merged, wanted.float(), rtol=1e-5, atol=2e-6)


def test_it_reaches_the_minimum() -> None:
    deltas = drawn(3, 6, 4)
    merged = wudi(vectors_of(deltas), steps=2000, learning_rate=1e-2)["w"]
    _, seen, aim = normal_equations(deltas)
    torch.testing.assert_close(merged, aim @ torch.linalg.inv(seen), rtol=1e-3, atol=1e-3)
    assert loss(merged, deltas) < loss(deltas.sum(0), deltas)


def test_the_first_step_by_hand() -> None:
    # τ_1 = [1, 1], τ_2 = [1, 0]: A = [[1.5, .5], [.5, .5]], B = [2, 1], M = [2, 1].
    # The gradient is 2([3.5, 1.5] - [2, 1]) = [3, 1]: Adam's first step is -lr in both.
    deltas = torch.tensor([[[1.0, 1.0]], [[1.0, 0.0]]]).double()
    start, seen, aim = normal_equations(deltas)
    assert start.tolist() == [[2, 1]]
    torch.testing.assert_close(seen, torch.tensor([[1.5, 0.5], [0.5, 0.5]]).double())
    torch.testing.assert_close(aim, torch.tensor([[2.0, 1.0]]).double())
    merged = wudi(vectors_of(deltas), steps=1, learning_rate=0.25)["w"]
    torch.testing.assert_close(merged, torch.tensor([[1.75, 0.75]]).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_task_stays_what_it_is(dtype: torch.dtype) -> None:
    delta = drawn(1, 30, 20, dtype=dtype)
    assert torch.equal(wudi(vectors_of(delta))["w"], delta[0])


def test_zero_task_vectors_have_no_term() -> None:
    deltas = drawn(2, 6, 5)
    merged = wudi(vectors_of(torch.cat([deltas, torch.zeros(1, 6, 5).double()])), steps=20)["w"]
    torch.testing.assert_close(merged, textbook(deltas, 20, 1e-5))
    base = state_dict("mixed", 0)
    same = TaskVectors.from_state_dicts(base, {task: copied(base) for task in TASKS})
    assert_same_bits(wudi(same, steps=5), base)


def test_tiny_task_vectors_do_not_vanish_in_squares() -> None:
    deltas = drawn(2, 6, 5, dtype=torch.float32) * 1e-25
    _, seen, aim = normal_equations(deltas)
    wanted = normal_equations(deltas.double())
    torch.testing.assert_close(seen, wanted[1].float())
    torch.testing.assert_close(aim * 1e25, (wanted[2] * 1e25).float())


def test_no_steps_is_the_sum_and_vectors_are_averaged() -> None:
    vectors = toy("mixed")
    merged = wudi(vectors, steps=0, scale=0.5)
    for name, deltas in vectors.deltas.items():
        base = vectors.base[name].double()
        matrix = base.ndim == 2 and base.numel()
        rule = deltas.double().sum(0) if matrix else deltas.double().mean(0)
        wanted = (base + 0.5 * rule).to(merged[name].dtype)
        torch.testing.assert_close(merged[name], wanted)
