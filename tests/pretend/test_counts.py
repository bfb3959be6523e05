"""The counts of `python -m benchmarks.counts`, on small models."""

from dataclasses import replace

import pytest

from benchmarks import counts
from benchmarks.pools import EMBEDDED


@pytest.fixture(scope="module")
def small():
    with counts.replica(replace(EMBEDDED, width=16, mlp=32, heads=2, projection=8), False) as local:
        yield local


def test_counts_of_a_merge_are_those_of_its_tensors(small):
    methods = {"task_arithmetic": {"scale": 0.3}}
    [found] = counts.merges(small, methods, True)
    held = sum(t.nbytes for t in small.runner.pipeline.shards[0].vectors.base.values())
    assert (found.launches, found.waits) == (2, 0)  # the coefficients go there, and one product
    assert found.sent == 4 * len(counts.TASKS)
    assert found.moved >= (len(counts.TASKS) + 2) * held
    page = counts.page([found])
    assert f"| task_arithmetic | {found.launches} | ≤ 3 | 0 | 0 |" in page


def test_a_step_of_several_tasks_is_one_pass(small):
    runner, steps = small.runner, {}
    for stacked in (runner.stacked, 0):
        runner.stacked, before = stacked, runner.stacked
        found = {each.name: each for each in counts.passes(small)}
        runner.stacked = before
        steps[stacked] = found
    together, apart = steps[runner.stacked], steps[0]
    assert runner.stacked >= len(counts.TASKS) * counts.ROWS
    for name in ("DAWE step", "DAWE step, a model a sample", "WE-MoE step"):
        assert together[name].launches * 3 < apart[name].launches
        assert together[name].waits == 1  # losses and gradients
    assert together["AdaMerging step"].waits == together["Concrete step"].waits == 1
    assert together["evaluation batch"].waits == 1  # the logits
    assert together["evaluation batch, a model a sample (64)"].waits == 0


@pytest.mark.parametrize(
    ("name", "params", "launches", "waits"),
    [
        ("weighted_average", {"weights": [0.5, *[1] * 7]}, 3, 0),
        ("simple_average", {}, 3, 0),
        ("wise_ft", {"expert": counts.TASKS[0]}, 3, 0),
        ("uniform_soup", {}, 3, 0),
        ("ties", {"density": 0.2}, 40, 0),
        ("magmax", {}, 10, 0),
    ],
)
def test_a_merge_of_packed_tensors_is_few_launches(small, name, params, launches, waits):
    *survey, found = counts.merges(small, {name: params}, True)
    assert found.launches <= launches
    assert found.waits <= waits
    for each in survey:
        assert each.waits <= 2
        assert name != "ties" or each.launches <= 20


def test_a_coding_by_tensor_is_a_product_a_kind_of_tensor(small):
    by_task, by_tensor = counts.coded(small)
    assert by_task.launches <= 3
    blocks = sum("layer" in name for name in small.runner.pipeline.groups)
    others = len(small.runner.pipeline.groups) - blocks
    assert by_tensor.launches <= others + blocks / EMBEDDED.layers + 3
    assert by_task.waits == by_tensor.waits == 0


def test_attention_is_one_launch_and_three_backward(small):
    with counts.device.pretending() as noted, counts.device.shapes_only():
        q = counts.torch.empty(2, 3, 5, 4, device="cuda", requires_grad=True)
        counts.fused_attention(q, q, q).sum()
        assert noted.flops == 4 * 2 * 3 * 5 * 5 * 4
