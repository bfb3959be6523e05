"""optmerge by hand, against autograd on the released code's loss in float64, and its two cases."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from fusion.methods.spectral.optmerge import optmerge
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.draws import drawn_as_double as drawn
from tests.fusion.methods.spectral.matrices import vectors_of


def cut(matrix: Tensor, share: int) -> tuple[Tensor, Tensor]:
    """(the leading part of a matrix, its S·Vᵀ)."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    low = values[:share, None] * right[:share]
    return left[:, :share] @ low, low


def textbook(deltas: Tensor, experts: str, steps: int, rate: float) -> Tensor:
    """The loss as the released code has it, by autograd."""
    share, mean = min(deltas.shape[1:]) // len(deltas), deltas.mean(0)
    inputs = [cut(delta, share)[1] for delta in deltas]
    if experts == "full":
        clean = [cut(delta - mean, share)[0] + mean for delta in deltas]
        merged = deltas.sum(0).requires_grad_()
        optimizer: torch.optim.Optimizer = torch.optim.Adam([merged], lr=rate)
    else:
        clean = [cut(delta, share)[0] for delta in deltas]
        merged = mean.clone().requires_grad_()
        optimizer = torch.optim.SGD([merged], lr=rate, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        losses = [
            ((merged - own) @ low.T).square().sum() / delta.square().sum()
            for own, low, delta in zip(clean, inputs, deltas, strict=True)
        ]
        torch.stack(losses).sum().backward()
        optimizer.step()
    return merged.detach()


def test_one_step_by_hand() -> None:
    # T = 2, r = 2: one triplet each. Both V are e1, so only the first column moves; τ̂ are the
    # tasks. A = 2·e1e1ᵀ, B = (2 + 4)·e1: from the mean 3, the gradient is 2·(3·2 - 6) = 0.
    deltas = torch.tensor([[[2.0, 0.0], [0.0, 0.0]], [[4.0, 0.0], [0.0, 0.0]]])
    merged = optmerge(vectors_of(deltas), experts="lora", steps=5, learning_rate=0.1)["w"]
    torch.testing.assert_close(merged, torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
    # From the sum 6: the gradient is 2·(6·2 - 6) = 12, and Adam's first step is the rate.
    merged = optmerge(vectors_of(deltas), steps=1, learning_rate=0.1)["w"]
    torch.testing.assert_close(merged, torch.tensor([[5.9, 0.0], [0.0, 0.0]]))


@pytest.mark.parametrize("shape", [(3, 12, 12), (3, 20, 9), (4, 9, 20)])
@pytest.mark.parametrize("experts", ["full", "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_a_textbook(
    shape: tuple[int, int, int], experts: Literal["full", "lora"], dtype: torch.dtype
) -> None:
    deltas = drawn(*shape, dtype=dtype)
    wanted = textbook(deltas.double(), experts, 20, 1e-2)
    merged = optmerge(vectors_of(deltas), experts=experts, steps=20, learning_rate=1e-2)["w"]
    start = deltas.double().sum(0) if experts == "full" else deltas.double().mean(0)
    assert float((wanted - start).norm()) > 0.1
    error = float((merged.double() - wanted).norm() / wanted.norm())
    assert error < (1e-4 if dtype == torch.float32 else 1e-10)


def test_default_rates_are_those_of_the_two_cases() -> None:
    vectors = vectors_of(drawn(3, 9, 12))
    cases: tuple[tuple[Literal["full", "lora"], float], ...] = (("full", 1e-5), ("lora", 1e-4))
    for experts, rate in cases:
        found = optmerge(vectors, experts=experts, steps=10)["w"]
        assert torch.equal(
            found, optmerge(vectors, experts=experts, steps=10, learning_rate=rate)["w"]
        )


def test_fewer_directions_than_tasks_leave_the_start() -> None:
    deltas = drawn(4, 3, 20)
    torch.testing.assert_close(optmerge(vectors_of(deltas))["w"], deltas.sum(0))
    torch.testing.assert_close(optmerge(vectors_of(deltas), experts="lora")["w"], deltas.mean(0))


def test_zero_task_vectors_have_no_term_and_other_tensors_are_averaged() -> None:
    deltas = drawn(3, 6, 6)
    deltas[1] = 0
    vectors = TaskVectors(
        ("a", "b", "c"),
        {"w": torch.zeros(6, 6), "b": torch.zeros(2)},
        {"w": deltas, "b": drawn(3, 2)},
    )
    merged = optmerge(vectors, steps=5, scale=0.5)
    assert merged["w"].isfinite().all()
    torch.testing.assert_close(merged["b"], 0.5 * vectors.deltas["b"].mean(0).float())
