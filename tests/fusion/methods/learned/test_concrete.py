"""concrete_task_arithmetic and concrete_adamerging: masks by hand, gradients against autograd."""

import pytest
import torch
from torch.distributions import RelaxedBernoulli

from fusion.methods.learned.concrete import (
    coefficient_gradient,
    drawn,
    logits_gradient,
    mask_of,
    masked,
    masked_merge,
    relaxed,
    summed,
)
from fusion.methods.learned.in_model import MaskOptions
from fusion.methods.learned.steps import Shape
from fusion.registry import METHODS
from fusion.task_vectors.task_vectors import TaskVectors

SHAPE = Shape(("a", "b"), ("w", "v"))


def normal(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def test_a_mask_by_hand():
    # logit(0.8) = ln 4; (ln 4 + 0) / 0.5 = ln 16: 16/17. logit(0.5) = 0: 1/2.
    mask = relaxed(torch.zeros(2, dtype=torch.float64), torch.tensor([0.8, 0.5]).double(), 0.5)
    torch.testing.assert_close(mask, torch.tensor([16 / 17, 0.5], dtype=torch.float64))
    out = torch.empty(2, dtype=torch.float64)
    masked(out, torch.ones(2), torch.tensor([1.0, 2.0]).double(), mask)
    mean = (16 / 17 + 0.5) / 2
    torch.testing.assert_close(out, torch.tensor([1 + 16 / 17 / mean, 1 + 1 / mean]).double())


def test_a_mask_is_torch_s_relaxed_bernoulli(monkeypatch):
    logits, uniform = normal(50), torch.rand(50, dtype=torch.float64)
    shared = uniform.clone()
    import torch.distributions.relaxed_bernoulli as theirs

    monkeypatch.setattr(theirs.torch, "rand", lambda *args, **kwargs: shared)
    wanted = RelaxedBernoulli(torch.tensor(0.5, dtype=torch.float64), logits=logits).rsample()
    monkeypatch.undo()
    torch.testing.assert_close(relaxed(logits, uniform, 0.5), wanted)


def test_uniform_numbers_depend_on_seed_and_name_alone():
    like = torch.zeros(1000)
    first = drawn(like, 3, "0 w")
    assert torch.equal(first, drawn(like, 3, "0 w"))
    for other in (drawn(like, 4, "0 w"), drawn(like, 3, "1 w"), drawn(like, 3, "0 v")):
        assert not torch.equal(first, other)
    assert 0 < first.min() < first.max() < 1
    assert first.mean().item() == pytest.approx(0.5, abs=0.05)


def test_kinds_of_final_masks():
    logits = torch.tensor([-30.0, 0.0, 30.0])
    hard = mask_of(logits, MaskOptions(0.0, 0.5, "discrete", 1), "w")
    assert hard[0] == 0
    assert hard[2] == 1
    assert set(hard.tolist()) <= {0.0, 1.0}
    assert mask_of(logits, MaskOptions(0.0, 0.5, "expected", 1), "w").tolist() == [
        pytest.approx(9.4e-14, rel=0.01), 0.5, 1.0,
    ]  # fmt: skip
    soft = MaskOptions(0.0, 0.5, "continuous", 1)
    assert torch.equal(mask_of(logits, soft, "w"), mask_of(logits, soft, "w"))
    assert not torch.equal(mask_of(logits, soft, "w"), mask_of(logits, soft, "v"))


def test_a_mask_of_zeros_alone_leaves_the_base():
    vectors = TaskVectors.from_state_dicts({"w": torch.ones(3)}, {"a": {"w": torch.zeros(3)}})
    plan = METHODS["concrete_task_arithmetic"].plan(SHAPE, mask="discrete")
    found = masked_merge(vectors, {"w": torch.full((3,), -100.0)}, plan)
    assert found["w"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("scale", [None, 0.3])
def test_gradients_are_autograd_s_over_all_products(scale):
    base, deltas, logits = normal(4, 5), normal(3, 4, 5, seed=1), normal(4, 5, seed=2)
    coefficients = normal(3, seed=3) if scale is None else torch.full((3,), scale).double()
    uniform, weight = torch.rand(4, 5, dtype=torch.float64), normal(4, 5, seed=4)
    x, c = logits.clone().requires_grad_(), coefficients.clone().requires_grad_()
    m = torch.sigmoid((uniform.logit() + x) / 0.7)
    hat = m / m.mean()
    theta = base + sum(c[t] * hat * deltas[t] for t in range(3))
    ((theta**3) * weight).sum().backward()

    mask = relaxed(logits, uniform.clone(), 0.7)
    step = summed(deltas, coefficients.tolist())
    out = torch.empty_like(base)
    masked(out, base, step, mask)
    torch.testing.assert_close(out, theta.detach())
    gradient = 3 * out**2 * weight
    torch.testing.assert_close(logits_gradient(gradient, step, mask, 0.7), x.grad)
    torch.testing.assert_close(coefficient_gradient(gradient, deltas, mask)[0], c.grad)


def test_coefficients_of_tasks_and_tensors():
    experts = {
        task: {"w": torch.full((2,), value), "v": torch.full((3,), 10 * value)}
        for task, value in (("a", 1.0), ("b", 2.0))
    }
    base = {"w": torch.zeros(2), "v": torch.zeros(3)}
    vectors = TaskVectors.from_state_dicts(base, experts)
    same = {"w": torch.zeros(2), "v": torch.zeros(3)}
    row = METHODS["concrete_adamerging"]
    plan = row.plan(SHAPE, mask="expected")
    by_tensor = torch.tensor([[[0.5, 1.0], [0.25, 2.0]]])  # [1, T, G]
    found = masked_merge(vectors, {**same, "coefficients": by_tensor}, plan)
    assert found["w"].tolist() == [1.0, 1.0]
    assert found["v"].tolist() == [50.0, 50.0, 50.0]
    clamped = row.plan(SHAPE, mask="expected", clamp=True)
    found = masked_merge(vectors, {**same, "coefficients": by_tensor}, clamped)
    assert found["v"].tolist() == [30.0, 30.0, 30.0]
    by_task = torch.tensor([[[1.0], [0.0]]])
    found = masked_merge(vectors.restrict(["v"]), {**same, "coefficients": by_task}, plan)
    assert found["v"].tolist() == [10.0, 10.0, 10.0]


def test_stages_of_the_course():
    plan = METHODS["concrete_adamerging"].plan(SHAPE, steps=3, coefficient_steps=4)
    assert (plan.steps, plan.options.mask_steps) == (7, 3)
    plan = METHODS["concrete_task_arithmetic"].plan(SHAPE)
    assert (plan.steps, plan.options.grouping, plan.scale) == (2000, None, 0.3)
