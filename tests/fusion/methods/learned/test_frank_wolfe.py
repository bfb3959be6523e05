"""Frank-Wolfe merging: by hand, and against steps on the weights themselves in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from fusion.errors import InputError
from fusion.methods.learned.frank_wolfe import Vertices, frank_wolfe
from fusion.methods.learned.learned_soup import parts_of
from fusion.methods.learned.steps import Shape, learn_step, micro_batches
from fusion.registry import METHODS
from tests.fusion.methods.learned.two_layers import GROUPS, C, Toy

SHAPE = Shape(("a", "b", "c"), GROUPS)


def moved(plan, *gradients):
    """The coding after steps with some gradients."""
    optimizer = plan.optimizer(plan.router, plan.learning_rate)
    for gradient in gradients:
        plan.router.coding.grad = torch.tensor(gradient)
        optimizer.step()
    return plan.router(None)[0]


def test_steps_by_hand() -> None:
    # γ = 1, 2/3: to b, then two thirds of the way to a
    towards_b, towards_a = [[1.0], [-3.0], [0.0]], [[0.5], [0.75], [1.0]]
    found = moved(frank_wolfe(SHAPE), towards_b, towards_a)
    torch.testing.assert_close(found, torch.tensor([[2 / 3], [1 / 3], [0.0]]))
    # γ = 0.5, 1/3 from (0.3, 0.3, 0.3)
    found = moved(frank_wolfe(SHAPE, step_size=0.5), towards_b, towards_a)
    first = torch.tensor([[0.15], [0.65], [0.15]])
    wanted = first * 2 / 3 + torch.tensor([[1 / 3], [0.0], [0.0]])
    torch.testing.assert_close(found, wanted)


def test_each_tensor_has_an_expert_of_its_own() -> None:
    found = moved(frank_wolfe(SHAPE, granularity="tensor"), [[1.0, 0.0], [0.0, 1.0], [2.0, -1.0]])
    assert found.tolist() == [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]


def test_the_start_is_a_vertex() -> None:
    # scores 1, 1, -0.5 of the experts, and 2·1.5 or -2·1.5 of the start
    gradient = [[1.0], [1.0], [-0.5]]
    plan = frank_wolfe(SHAPE, scale=-2.0, start_is_vertex=True)
    assert moved(plan, gradient).flatten().tolist() == [-2.0] * 3
    assert moved(frank_wolfe(SHAPE, scale=-2.0), gradient).flatten().tolist() == [0.0, 0.0, 1.0]
    plan = frank_wolfe(SHAPE, scale=2.0, start_is_vertex=True)
    assert moved(plan, gradient).flatten().tolist() == [0.0, 0.0, 1.0]


def test_of_equal_experts_the_first() -> None:
    assert moved(frank_wolfe(SHAPE), [[1.0], [0.5], [0.5]]).flatten().tolist() == [0.0, 1.0, 0.0]


def on_weights(toy: Toy, parts: list[int], steps: int, step_size: float) -> list[torch.Tensor]:
    """The algorithm on weights in float64: products of whole experts with the gradient."""
    experts = [toy.base[g] + toy.deltas[g] for g in (0, 1)]
    weights = [toy.base[g] + 0.3 * toy.deltas[g].sum(0) for g in (0, 1)]
    for step in range(steps):
        for weight in weights:
            weight.requires_grad_()
        loss = cross_entropy((toy.x @ weights[0] @ weights[1])[:, :C], toy.y)
        gradients = torch.autograd.grad(loss, weights)
        scores = torch.stack(
            [(experts[g] * gradients[g]).sum((1, 2)) for g in (0, 1)], 1
        )  # [K, 2 tensors]
        share = step_size * 2 / (step + 2)
        for g in (0, 1):
            mine = [other for other in (0, 1) if parts[other] == parts[g]]
            nearest = int(scores[:, mine].sum(1).argmin())
            weights[g] = (1 - share) * weights[g].detach() + share * experts[g][nearest]
    return weights


@pytest.mark.parametrize("step_size", [1.0, 0.1])
@pytest.mark.parametrize("granularity", ["global", "tensor"])
def test_it_is_the_algorithm_on_weights(granularity, step_size) -> None:
    toy, steps = Toy(), 12
    plan = frank_wolfe(SHAPE, granularity=granularity, step_size=step_size, batch_size=20)
    plan.router.double()
    optimizer = plan.optimizer(plan.router, plan.learning_rate)
    losses = [
        learn_step(
            plan, optimizer, micro_batches(plan, {"t": 20}, {}, step, 0),
            toy.compute_gradients, step,
        )["t"]
        for step in range(steps)
    ]  # fmt: skip
    parts = parts_of(GROUPS, granularity)
    found = toy.weights(plan.router(None).detach())
    for ours, theirs in zip(found, on_weights(toy, parts, steps, step_size), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # the start is a float32
    if step_size == 1:
        torch.testing.assert_close(
            plan.router(None).sum(1), torch.ones(1, 1).double().expand_as(plan.router(None).sum(1))
        )
    else:
        assert losses[-1] < losses[0]


def test_a_state_goes_on_where_it_stopped() -> None:
    steps = [[[1.0], [-3.0], [0.0]], [[0.5], [0.75], [1.0]], [[0.5], [0.75], [-1.0]]]
    whole = moved(frank_wolfe(SHAPE), *steps)
    first, second = frank_wolfe(SHAPE), frank_wolfe(SHAPE)
    moved(first, *steps[:2])
    assert isinstance(first.router, Vertices)
    second.router.load_state_dict(first.router.state_dict())
    assert torch.equal(moved(second, *steps[2:]), whole)


def test_labels_of_the_report_split_are_never_read() -> None:
    with pytest.raises(InputError, match="adapt_on: 'report'; one of 'fit', 'select' allowed"):
        METHODS["frank_wolfe"].plan(SHAPE, adapt_on="report")
