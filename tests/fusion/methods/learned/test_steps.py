"""Drawing rows, making micro-batches, and steps that refuse what is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.logits.optimize import draw
from fusion.methods.learned.adamerging import Coefficients
from fusion.methods.learned.gate import Gate
from fusion.methods.learned.steps import (
    Gradient,
    MicroBatch,
    TrainingPlan,
    learn_step,
    micro_batches,
    not_finite_task,
)

TASKS = ("a", "b", "c")
SIZES = {"a": 10, "b": 7, "c": 23}
WIDTH, GROUPS, BATCH = 6, 4, 5


def learning(
    router: torch.nn.Module, extractor: str | None = "resnet", **changes: Any
) -> TrainingPlan:
    return TrainingPlan(
        router=router,
        learning_rate=0.1,
        steps=3,
        batch_size=BATCH,
        adapt_on="fit",
        save_every=1,
        extractor=extractor,
        **changes,
    )


def gate(seed: int = 0) -> Gate:
    """A gate past step 0: every parameter matters."""
    made = Gate(WIDTH, len(TASKS), GROUPS, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    made[-1].weight.data.normal_(0, 0.3, generator=generator)
    return made.double()


def features() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        task: torch.randn(size, WIDTH, generator=generator, dtype=torch.float64)
        for task, size in SIZES.items()
    }


# ------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize(("size", "batch"), [(12, 4), (10, 3), (7, 7), (5, 16), (1, 3), (6, 1)])
def test_each_epoch_is_a_permutation(size: int, batch: int) -> None:
    steps = 3 * size  # 3·batch epochs, whole
    stream = torch.cat([draw(size, batch, step, seed=5) for step in range(steps)])
    assert stream.dtype == torch.int64
    assert len(stream) == steps * batch
    epochs = stream.view(-1, size)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(size).expand_as(epochs))
    if size >= 5:
        assert len({tuple(epoch.tolist()) for epoch in epochs}) > 1  # shuffled anew


def test_draws_depend_on_their_arguments_alone() -> None:
    wanted = [draw(20, 6, step, seed=3) for step in range(8)]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for step in reversed(range(8)):
        assert torch.equal(draw(20, 6, step, seed=3), wanted[step])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(draw(20, 20, 0, seed=4), draw(20, 20, 0, seed=3))
    assert not torch.equal(draw(20, 20, 1, seed=3), draw(20, 20, 0, seed=3))
    assert sorted(draw(20, 20, 0, seed=2**63 - 1).tolist()) == list(range(20))


# ------------------------------------------------------------------------------------ micro-batches


def test_tasks_that_share_a_coding_share_a_micro_batch() -> None:
    router = Coefficients(len(TASKS), GROUPS, 0.3)
    (micro_batch,) = micro_batches(learning(router, extractor=None), SIZES, {}, step=2, seed=9)
    assert list(micro_batch.rows) == list(TASKS)
    for rows, size in zip(micro_batch.rows.values(), SIZES.values(), strict=True):
        assert rows.shape == (BATCH,)
        assert 0 <= int(rows.min()) <= int(rows.max()) < size
    assert torch.equal(micro_batch.coding.detach(), torch.full((1, 3, GROUPS), 0.3))
    assert micro_batch.coding.requires_grad


@pytest.mark.parametrize("batch_mean", [True, False])
def test_each_task_has_the_codings_of_its_own_features(batch_mean: bool) -> None:
    router, given = gate(), features()
    found = micro_batches(learning(router, batch_mean=batch_mean), SIZES, given, step=1, seed=9)
    assert [list(micro_batch.rows) for micro_batch in found] == [["a"], ["b"], ["c"]]
    for micro_batch, task in zip(found, TASKS, strict=True):
        wanted = router(given[task][micro_batch.rows[task]])
        if batch_mean:
            wanted = wanted.mean(0, keepdim=True)
        assert torch.equal(micro_batch.coding, wanted)
        assert micro_batch.coding.shape == (1 if batch_mean else BATCH, len(TASKS), GROUPS)


@pytest.mark.parametrize("batch_mean", [True, False])
@pytest.mark.parametrize(
    ("stacked", "groups"),
    [(0, ["a", "b", "c"]), (2 * BATCH, ["ab", "c"]), (99, ["abc"])],
)
def test_stacked_tasks_have_the_rows_and_codings_of_single_ones(
    batch_mean: bool, stacked: int, groups: list[str]
) -> None:
    plan, given = learning(gate(), batch_mean=batch_mean), features()
    alone = micro_batches(plan, SIZES, given, 1, 9)
    found = micro_batches(plan, SIZES, given, 1, 9, stacked)
    assert ["".join(micro_batch.rows) for micro_batch in found] == groups
    for micro_batch in found:
        parts = [each for each in alone if set(each.rows) <= set(micro_batch.rows)]
        assert torch.equal(micro_batch.coding, torch.cat([each.coding for each in parts]))
        for each in parts:
            for task, rows in each.rows.items():
                assert torch.equal(micro_batch.rows[task], rows)


@pytest.mark.parametrize(("model", "task"), [(0, "a"), (3, "b"), (5, "c")])
def test_the_task_of_a_gradient_that_is_not_finite_is_named(model: int, task: str) -> None:
    rows = {name: torch.arange(2) for name in TASKS}
    gradient = torch.zeros(6, 3, 1)
    gradient[model, 1] = math.inf
    micro_batch = MicroBatch(rows, torch.zeros(6, 3, 1))
    found = not_finite_task(micro_batch, Gradient(dict.fromkeys(TASKS, 1.0), gradient))
    assert found == task
    lost = Gradient({"a": 1.0, "b": 2.0, "c": math.nan}, gradient)
    assert not_finite_task(micro_batch, lost) == "c"


def test_tasks_draw_apart_and_steps_and_seeds_too() -> None:
    router, alike = Coefficients(3, 1, 0.3), dict.fromkeys(TASKS, 50)

    def rows(step: int, seed: int) -> list[list[int]]:
        (micro_batch,) = micro_batches(learning(router, extractor=None), alike, {}, step, seed)
        return [drawn.tolist() for drawn in micro_batch.rows.values()]

    first = rows(0, 1)
    assert len({tuple(drawn) for drawn in first}) == 3
    assert rows(0, 1) == first
    assert rows(1, 1) != first
    assert rows(0, 2) != first


# ------------------------------------------------------------------------------------------- steps


def toy_loss(coding: Tensor, rows: Tensor, task: str) -> Tensor:
    """Some loss of a task's rows, differentiable in the coding."""
    weight = 1.0 + TASKS.index(task)
    return (weight * coding.sin() * (rows.double() + 1).mean().log()).mean()


def compute_gradients(given: Sequence[MicroBatch]) -> list[Gradient]:
    """Whoever holds the experts, by autograd."""
    found = []
    for micro_batch in given:
        assert not micro_batch.coding.requires_grad  # only numbers travel
        coding = micro_batch.coding.clone().requires_grad_()
        losses = {task: toy_loss(coding, rows, task) for task, rows in micro_batch.rows.items()}
        (gradient,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), coding)
        found.append(Gradient({task: loss.item() for task, loss in losses.items()}, gradient))
    return found


def micro_batches_made(
    router: torch.nn.Module, plan: TrainingPlan, step: int = 0
) -> list[MicroBatch]:
    return micro_batches(plan, SIZES, {} if plan.shared else features(), step, seed=9)


ROUTERS: list[Callable[[], tuple[torch.nn.Module, dict[str, Any]]]] = [
    lambda: (Coefficients(3, GROUPS, 0.3).double(), {"extractor": None}),
    lambda: (gate(), {"batch_mean": True}),
    lambda: (gate(), {"batch_mean": False}),
]


@pytest.mark.parametrize("make", ROUTERS, ids=["shared", "mean", "sample"])
def test_a_step_descends_the_sum_over_tasks(make: Callable[[], Any]) -> None:
    router, changes = make()
    plan = learning(router, **changes)
    given = micro_batches_made(router, plan)
    losses_made = [
        toy_loss(micro_batch.coding, rows, task)
        for micro_batch in given
        for task, rows in micro_batch.rows.items()
    ]
    total = torch.stack(losses_made).sum()
    wanted = torch.autograd.grad(total, list(router.parameters()), retain_graph=True)
    before = [p.detach().clone() for p in router.parameters()]
    for p in router.parameters():
        p.grad = torch.ones_like(p)  # what an earlier step left must not count
    losses = learn_step(
        plan, torch.optim.SGD(router.parameters(), lr=0.5), given, compute_gradients, 0
    )
    assert list(losses) == list(TASKS)
    assert sum(losses.values()) == pytest.approx(float(total.detach()), rel=1e-12)
    for p, old, gradient in zip(router.parameters(), before, wanted, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.5 * gradient, rtol=1e-12, atol=1e-12)
        assert bool(gradient.any())


def test_gradients_come_in_any_dtype() -> None:
    router = Coefficients(3, GROUPS, 0.3)
    plan = learning(router, extractor=None)
    given = micro_batches_made(router, plan)

    def wide(detached: Sequence[MicroBatch]) -> list[Gradient]:
        return [Gradient({"a": 0.0}, torch.full((1, 3, GROUPS), 2.0).double())]

    learn_step(plan, torch.optim.SGD(router.parameters(), lr=0.1), given, wide, 0)
    torch.testing.assert_close(router.coding.detach(), torch.full((1, 3, GROUPS), 0.1))


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 1.0])
def test_what_is_not_finite_is_refused_and_nothing_moves(loss: float) -> None:
    router = gate()
    plan = learning(router)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.1)
    learn_step(plan, optimizer, micro_batches_made(router, plan), compute_gradients, 0)
    before = [p.detach().clone() for p in router.parameters()]
    moments = [optimizer.state[p]["exp_avg"].clone() for p in router.parameters()]

    def spoilt(given: Sequence[MicroBatch]) -> list[Gradient]:
        fine, bad, last = compute_gradients(given)
        if math.isfinite(loss):  # then it is the gradient
            broken = bad.coding.clone()
            broken[0, 1, 2] = math.nan
            return [fine, replace(bad, coding=broken), last]
        return [fine, replace(bad, losses={"b": loss}), last]

    with pytest.raises(
        InputError, match=r"^step 17: task 'b': (the gradient of )?loss .*learning_rate 0\.1"
    ) as caught:
        learn_step(plan, optimizer, micro_batches_made(router, plan, 1), spoilt, 17)
    assert f"loss {loss if not math.isfinite(loss) else ''}" in str(caught.value)
    with pytest.raises(InputError, match=r"^step 0: .*: the weights of base or experts make it so"):
        learn_step(plan, optimizer, micro_batches_made(router, plan, 1), spoilt, 0)
    for p, old, moment in zip(router.parameters(), before, moments, strict=True):
        assert torch.equal(p.detach(), old)
        assert torch.equal(optimizer.state[p]["exp_avg"], moment)


def test_the_bad_task_of_a_shared_micro_batch_is_named() -> None:
    router = Coefficients(3, GROUPS, 0.3)
    plan = learning(router, extractor=None)

    def spoilt(given: Sequence[MicroBatch]) -> list[Gradient]:
        return [Gradient({"a": 1.0, "b": 2.0, "c": math.nan}, torch.zeros(1, 3, GROUPS))]

    with pytest.raises(InputError, match=r"^step 4: task 'c': loss nan"):
        learn_step(
            plan,
            torch.optim.SGD(router.parameters(), lr=1.0),
            micro_batches_made(router, plan),
            spoilt,
            4,
        )
    assert torch.equal(router.coding.detach(), torch.full((1, 3, GROUPS), 0.3))
