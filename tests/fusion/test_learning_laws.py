"""Laws of every method that learns or routes, over the whole table."""

import pytest
import torch

from fusion.errors import InputError
from fusion.methods.learned.steps import Shape, micro_batches, temperature
from fusion.methods.routed.dawin import ExpertLogits
from fusion.registry import METHODS, Gated
from tests.fusion.draws import drawn
from tests.fusion.laws import LEARNING, ROUTED

SHAPE = Shape(("a", "b", "c"), ("x", "y"), width=6)


def coding(name, **params):
    method = METHODS[name]
    features = drawn(4, SHAPE.width) if isinstance(method, Gated) else None
    return method.plan(SHAPE, **params).router(features)


UNLABELLED = [name for name in LEARNING if not METHODS[name].labelled]


@pytest.mark.parametrize("name", UNLABELLED)
@pytest.mark.parametrize("grouping", ["task", "layer"])
def test_step_zero_is_task_arithmetic(name, grouping):
    found = coding(name, grouping=grouping, scale=0.25)
    assert found.shape[1:] == (3, 1 if grouping == "task" else 2)
    assert bool((found == 0.25).all())


@pytest.mark.parametrize("name", LEARNING)
def test_every_parameter_of_the_router_learns(name):
    method = METHODS[name]
    finest = {"granularity": "tensor"} if method.labelled else {"grouping": "layer"}
    learning = method.plan(SHAPE, **finest)
    optimizer = torch.optim.SGD(learning.router.parameters(), lr=0.1)
    features = drawn(4, SHAPE.width) if isinstance(method, Gated) else None
    for step in range(2):  # a gate's first layer moves once its last one has
        optimizer.zero_grad()
        loss = (learning.router(features) * drawn(3, 2, seed=step)).sum()
        beta = temperature(learning.router)
        assert (beta is not None) == METHODS[name].labelled
        (loss if beta is None else loss + beta).backward()
        optimizer.step()
    assert all(p.grad is not None and bool(p.grad.any()) for p in learning.router.parameters())


@pytest.mark.parametrize("name", LEARNING)
def test_same_parameters_same_router_and_rows(name):
    first, second = (METHODS[name].plan(SHAPE) for _ in range(2))
    for ours, theirs in zip(
        first.router.state_dict().values(), second.router.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    features = {task: drawn(9, SHAPE.width) for task in SHAPE.tasks}
    sizes = dict.fromkeys(SHAPE.tasks, 9)
    pairs = zip(
        micro_batches(first, sizes, features, 3, 7),
        micro_batches(second, sizes, features, 3, 7),
        strict=True,
    )
    for ours, theirs in pairs:
        assert all(torch.equal(ours.rows[task], theirs.rows[task]) for task in ours.rows)


@pytest.mark.parametrize("name", LEARNING)
def test_a_misspelt_parameter_names_the_nearest(name):
    with pytest.raises(InputError, match="did you mean 'steps'"):
        METHODS[name].plan(SHAPE, step=3)
    with pytest.raises(InputError, match="steps: -1; int >= 0 allowed"):
        METHODS[name].plan(SHAPE, steps=-1)


@pytest.mark.parametrize("name", ROUTED)
def test_a_routing_gives_every_row_a_model(name):
    expert_logits = ExpertLogits(SHAPE.tasks, drawn(3, 8, 5), drawn(8, 5, seed=1))
    before = expert_logits.experts.clone()
    for granularity in ("domain", "cluster", "sample"):
        routing = METHODS[name].route(expert_logits, granularity=granularity)
        assert routing.codings.shape[1:] == (3, 1)
        assert routing.assign.shape == (8,)
        assert int(routing.assign.max()) < len(routing.codings)
        assert bool(routing.codings.isfinite().all())
    assert torch.equal(expert_logits.experts, before)
    with pytest.raises(InputError, match="did you mean 'scale'"):
        METHODS[name].route(expert_logits, scal=1.0)
