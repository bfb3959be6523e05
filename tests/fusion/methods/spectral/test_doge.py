"""doge_ta by hand, against a textbook with autograd in float64, and which tensors it merges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusion.methods.spectral.doge import descended, doge_ta, shared_subspace
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.draws import drawn_as_double as drawn

NAME = "layers.3.fc.weight"


def vectors_of(deltas: Tensor, name: str = NAME) -> TaskVectors:
    """Task vectors of one tensor over a base of zeros."""
    tasks = tuple(f"t{at}" for at in range(len(deltas)))
    return TaskVectors(tasks, {name: torch.zeros_like(deltas[0])}, {name: deltas})


def textbook(
    deltas: Tensor, scale: float, density: float, subspace: int, steps: int, rate: float
) -> Tensor:
    """The method's definition, with autograd and full decompositions."""
    tasks, rank = len(deltas), min(deltas.shape[1:])
    factors = scale / deltas.flatten(1).norm(dim=1)
    summed = torch.einsum("t,tmn->mn", factors, deltas)
    share = rank // tasks
    lefts = [torch.linalg.svd(delta, full_matrices=False).U[:, :share] for delta in deltas]
    basis = torch.linalg.svd(torch.cat(lefts, 1)).U[:, : rank // subspace]
    change = torch.zeros_like(deltas[0], requires_grad=True)
    adam = torch.optim.Adam([change], lr=rate)
    for _ in range(steps):
        adam.zero_grad()
        gap = deltas - summed - factors.sum() * change
        (deltas * gap).sum(2).square().sum().backward()
        assert change.grad is not None
        change.grad -= basis @ basis.T @ change.grad
        adam.step()
    found = torch.zeros_like(summed)
    for delta, factor in zip(deltas, factors, strict=True):
        least = delta.abs().flatten().sort(descending=True).values[int(delta.numel() * density) - 1]
        found += factor * (delta + change.detach()) * (delta.abs() >= least)
    return found


def test_by_hand() -> None:
    # No steps: each keeps its two largest of four entries, divided by its norm, times λ.
    deltas = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 2.0]]])
    merged = doge_ta(vectors_of(deltas), scale=1.0, density=0.5, steps=0)[NAME]
    wanted = torch.tensor([[3 / 5, 4 / 5 + 1 / 5**0.5], [0.0, 2 / 5**0.5]])
    torch.testing.assert_close(merged, wanted)


def test_one_step_by_hand() -> None:
    # One row, one task: λ = 0.5/2, r = 4 - 0.25·4 = 3, the gradient of the first entry is
    # -2·0.25·3·2 = -3, so Adam's first step is +rate there, and nothing elsewhere.
    merged = doge_ta(
        vectors_of(torch.tensor([[[2.0, 0.0]]])), scale=0.5, density=0.5, steps=1, learning_rate=0.1
    )
    torch.testing.assert_close(merged[NAME], torch.tensor([[0.25 * 2.1, 0.0]]))


@pytest.mark.parametrize("shape", [(3, 12, 12), (3, 20, 14), (4, 13, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_a_textbook(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    deltas = drawn(*shape, dtype=dtype)
    wanted = textbook(deltas.double(), 0.7, 0.25, 4, 30, 1e-2)
    merged = doge_ta(
        vectors_of(deltas), scale=0.7, density=0.25, subspace=4, steps=30, learning_rate=1e-2
    )[NAME]
    error = float((merged.double() - wanted).norm() / wanted.norm())
    assert error < (1e-4 if dtype == torch.float32 else 1e-10)


def test_the_change_has_no_gradient_in_the_shared_subspace() -> None:
    deltas = drawn(3, 12, 30)
    basis = shared_subspace(deltas, 4)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3, dtype=basis.dtype))
    # The first step of gradient descent would be the gradient; Adam's has its signs.
    change = descended(deltas, [0.1] * 3, 4, 1, 1.0)
    inner = torch.einsum("tij,t->ij", deltas, torch.full((3,), 0.1, dtype=deltas.dtype))
    rows = (deltas * (deltas - inner)).sum(2)
    gradient = -torch.einsum("ti,tij->ij", rows, deltas)
    gradient -= basis @ (basis.T @ gradient)
    assert torch.equal(change.sign(), -gradient.sign())


def test_only_matrices_inside_numbered_blocks_are_merged() -> None:
    names = {NAME: (4, 6), "embed.weight": (4, 6), "layers.3.fc.bias": (4,), "head.weight": (2, 6)}
    base = {name: drawn(*shape) for name, shape in names.items()}
    vectors = TaskVectors(
        ("a", "b"), base, {name: drawn(2, *shape) for name, shape in names.items()}
    )
    merged = doge_ta(vectors, steps=3)
    assert [name for name in names if not torch.equal(merged[name], base[name])] == [NAME]


def test_entries_that_tie_are_kept_whatever_their_order() -> None:
    delta = torch.tensor([[[1.0, -1.0, 1.0, 0.5]]])
    merged = doge_ta(vectors_of(delta), scale=1.0, density=0.25, steps=0)[NAME]
    torch.testing.assert_close(merged, delta[0] * (delta[0].abs() == 1) / delta.norm())


def test_the_released_code_keeps_one_entry_more() -> None:
    delta = torch.tensor([[[4.0, 3.0, 2.0, 1.0]]])
    for compat, kept in (("paper", 2), ("released", 3)):
        merged = doge_ta(vectors_of(delta), density=0.5, steps=0, compat=compat)[NAME]  # type: ignore[arg-type]
        assert int((merged != 0).sum()) == kept


def test_a_task_vector_of_zeros_adds_nothing() -> None:
    deltas = drawn(2, 6, 8)
    deltas[1] = 0
    merged = doge_ta(vectors_of(deltas), density=1.0, steps=0)[NAME]
    torch.testing.assert_close(merged, 0.07 * deltas[0] / deltas[0].norm())
    assert doge_ta(vectors_of(deltas), steps=5)[NAME].isfinite().all()
