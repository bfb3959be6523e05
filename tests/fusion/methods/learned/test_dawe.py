"""What DAWE's parameters make of a course of learning."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion.errors import InputError
from fusion.methods.learned.dawe import dawe
from fusion.methods.learned.gate import Gate
from fusion.methods.learned.steps import Shape, TrainingPlan, micro_batches
from fusion.registry import METHODS, Gated
from fusion.task_vectors.sparsify import Trim
from tests.fusion.draws import drawn

SHAPE = Shape(("x", "y", "z"), ("k0", "k1", "k2", "k3"), width=6)


def router(**params: Any) -> Gate:
    made = dawe(SHAPE, **params).router
    assert isinstance(made, Gate)
    return made


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize(("grouping", "groups"), [("task", 1), ("layer", 4)])
@pytest.mark.parametrize("scale", [0.3, 0.1])
def test_step_0_is_task_arithmetic(depth: int, grouping: str, groups: int, scale: float) -> None:
    coding = router(depth=depth, grouping=grouping, scale=scale)(drawn(5, 6))
    assert torch.equal(coding, torch.full((5, 3, groups), scale))


def test_softmax_starts_even() -> None:
    coding = router(softmax=True, grouping="layer")(drawn(5, 6))
    torch.testing.assert_close(coding, torch.full((5, 3, 4), 1 / 3))
    coding = router(softmax=True, base_weight=True)(drawn(5, 6))
    torch.testing.assert_close(coding, torch.full((5, 3, 1), 1 / 4))


def test_the_first_layer_follows_its_seed() -> None:
    first, again, other = router(), router(gate_seed=0), router(gate_seed=1)
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_defaults_are_the_originals() -> None:
    found = dawe(SHAPE)
    wanted = TrainingPlan(
        found.router, 1e-5, 1000, 16, "fit", 50, extractor="microsoft/resnet-50", batch_mean=True
    )
    assert found == wanted
    assert not found.shared
    assert found.trim.nothing
    assert router().depth == 2
    assert router().groups == 1


def test_fields_follow_parameters() -> None:
    method = METHODS["dawe"]
    assert isinstance(method, Gated)
    found = method.plan(
        SHAPE,
        extractor="some/resnet",
        grouping="layer",
        depth=1,
        scale=0.2,
        batch_mean=False,
        learning_rate=0.5,
        rate="per_norm",
        steps=0,
        batch_size=3,
        adapt_on="select",
        density=0.4,
        delta_dtype="bfloat16",
        squash=True,
        gate="some/gate.safetensors",
        save_every=2,
    )
    wanted = TrainingPlan(
        found.router,
        0.5,
        0,
        3,
        "select",
        2,
        extractor="some/resnet",
        squash=True,
        batch_mean=False,
        rate_per_norm=True,
        gate="some/gate.safetensors",
        trim=Trim(0.4, elect=False, dtype="bfloat16"),
    )
    assert found == wanted
    gate = found.router
    assert isinstance(gate, Gate)
    assert (gate.width, gate.tasks, gate.groups, gate.depth, gate.scale) == (6, 3, 4, 1, 0.2)


@pytest.mark.parametrize("batch_mean", [True, False])
def test_codings_are_one_a_batch_or_one_a_sample(batch_mean: bool) -> None:
    learning = dawe(SHAPE, batch_mean=batch_mean, batch_size=4)
    gate = learning.router
    assert isinstance(gate, Gate)
    gate[-1].weight.data.normal_(generator=torch.Generator().manual_seed(1))
    (micro_batch,) = micro_batches(learning, {"x": 9}, {"x": drawn(9, 6)}, step=0, seed=0)
    each = gate(drawn(9, 6)[micro_batch.rows["x"]])
    assert not torch.equal(each[0], each[1])
    assert torch.equal(micro_batch.coding, each.mean(0, keepdim=True) if batch_mean else each)


@pytest.mark.parametrize(
    ("name", "value"),
    [("depth", 3), ("density", 0.0), ("delta_dtype", "int8"), ("rate", "fast"), ("batch_size", 0)],
)
def test_wrong_parameters_are_refused(name: str, value: object) -> None:
    method = METHODS["dawe"]
    assert isinstance(method, Gated)
    with pytest.raises(InputError, match=name):
        method.plan(SHAPE, **{name: value})


def test_a_weight_of_the_base_needs_a_softmax() -> None:
    with pytest.raises(InputError, match="base_weight"):
        dawe(SHAPE, base_weight=True)
