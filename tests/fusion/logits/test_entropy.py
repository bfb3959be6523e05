"""Entropy against its fixture, its closed forms and torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical

from fusion.logits.entropy import entropy, entropy_of_means


def logits(*shape: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_fixture() -> None:  # FusionBench's own output
    found = entropy(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])).mean().item()
    assert found == pytest.approx(0.96550393, abs=1e-6)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 7)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_equals_torchs(shape: tuple[int, ...], scale: float) -> None:
    z = logits(*shape, scale=scale)
    found = entropy(z)
    assert found.shape == shape[:-1]
    torch.testing.assert_close(found, Categorical(logits=z).entropy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("classes", [1, 2, 1000])
def test_uniform_is_the_logarithm_of_the_classes(classes: int) -> None:
    assert entropy(torch.full((classes,), 3.0)).item() == pytest.approx(math.log(classes), rel=1e-5)


def test_certain_predictions_have_none_and_a_finite_gradient() -> None:
    z = torch.tensor([[1000.0, 0.0, -1000.0]], requires_grad=True)
    found = entropy(z)
    found.sum().backward()
    assert found.item() == 0.0
    assert z.grad is not None
    assert torch.equal(z.grad, torch.zeros(1, 3))


def test_gradient() -> None:
    z = logits(3, 4, scale=2.0).requires_grad_()
    assert torch.autograd.gradcheck(entropy, (z,))
    (found,) = torch.autograd.grad(entropy(z).sum(), z)
    p = z.softmax(-1)
    wanted = -p * (p.log() + entropy(z)[:, None])  # ∂H/∂z_i = −p_i (ln p_i + H)
    torch.testing.assert_close(found, wanted.detach())


def test_means_of_groups_by_hand() -> None:
    z, groups = logits(5, 7), torch.tensor([3, 0, 3, 3, 0])
    for group in (0, 3):
        found = entropy_of_means(z, groups)[groups == group]
        wanted = Categorical(logits=z[groups == group].mean(0)).entropy()
        torch.testing.assert_close(found, wanted.expand(len(found)), rtol=0, atol=1e-7)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: entropy_of_means(z, groups), (z,))
