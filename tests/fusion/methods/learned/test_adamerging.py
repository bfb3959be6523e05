"""AdaMerging's coefficients, and what its parameters make of a course of learning."""

from __future__ import annotations

import inspect

import pytest
import torch

from fusion.errors import InputError
from fusion.methods.learned.adamerging import Coefficients, adamerging
from fusion.methods.learned.steps import Shape, TrainingPlan
from fusion.methods.sparse.ties import ties
from fusion.registry import METHODS, Adaptive, Gated
from fusion.task_vectors.coding import mix
from fusion.task_vectors.sharded_reduce import run_surveys
from fusion.task_vectors.sparsify import Trim, trim_survey, trimmed
from fusion.task_vectors.task_vectors import TaskVectors

SHAPE = Shape(("x", "y", "z"), ("k0", "k1", "k2", "k3"))
A = [0.10, -0.50, 0.30, 0.02, -0.40, 0.05, 0.20, -0.01, 0.60, -0.03]
B = [-0.20, -0.10, 0.35, -0.45, 0.40, 0.0, 0.15, 0.25, -0.05, 0.07]


@pytest.mark.parametrize(("grouping", "groups"), [("layer", 4), ("task", 1)])
def test_step_0_is_task_arithmetic(grouping: str, groups: int) -> None:
    learning = adamerging(SHAPE, grouping=grouping, scale=0.25)  # type: ignore[arg-type]
    assert torch.equal(learning.router(None), torch.full((1, 3, groups), 0.25))
    assert [p.shape for p in learning.router.parameters()] == [(1, 3, groups)]


@pytest.mark.parametrize("clamp", [False, True])
def test_the_clamp_stops_gradients_outside_only(clamp: bool) -> None:
    router = Coefficients(3, 1, 0.3, clamp)
    with torch.no_grad():
        router.coding.copy_(torch.tensor([-0.5, 0.4, 1.5]).view(1, 3, 1))
    coding = router(None)
    assert coding.flatten().tolist() == pytest.approx([0, 0.4, 1] if clamp else [-0.5, 0.4, 1.5])
    (coding * torch.tensor([2.0, 3.0, 5.0]).view(1, 3, 1)).sum().backward()
    assert router.coding.grad is not None
    assert router.coding.grad.flatten().tolist() == ([0, 3, 0] if clamp else [2, 3, 5])


def test_what_is_handed_out_is_not_the_parameter() -> None:
    router = Coefficients(3, 4, 0.3)
    with torch.no_grad():
        router(None).zero_()
    assert torch.equal(router.coding.detach(), torch.full((1, 3, 4), 0.3))


def test_fields_follow_parameters() -> None:
    method = METHODS["adamerging"]
    assert isinstance(method, Adaptive)
    assert not isinstance(method, Gated)
    found = method.plan(
        SHAPE,
        learning_rate=0.5,
        steps=7,
        batch_size=3,
        adapt_on="report",
        save_every=2,
        density=0.2,
    )
    wanted = TrainingPlan(found.router, 0.5, 7, 3, "report", 2, trim=Trim(0.2, elect=True))
    assert found == wanted
    assert found.shared


def test_defaults() -> None:
    found = adamerging(SHAPE)
    assert found == TrainingPlan(found.router, 1e-3, 1000, 16, "fit", 50)
    assert found.trim.nothing
    assert inspect.signature(adamerging).parameters["scale"].default == 0.3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("density", 0.0),
        ("density", 1.1),
        ("learning_rate", 0.0),
        ("steps", -1),
        ("adapt_on", "all"),
        ("grouping", "block"),
    ],
)
def test_wrong_parameters_are_refused(name: str, value: object) -> None:
    method = METHODS["adamerging"]
    assert isinstance(method, Adaptive)
    with pytest.raises(InputError, match=name):
        method.plan(SHAPE, **{name: value})


@pytest.mark.parametrize(
    ("density", "kept"),
    [
        (0.2, ({1: -0.5, 8: 0.6}, {3: -0.45, 4: 0.4})),
        (0.3, ({1: -0.5, 8: 0.6}, {2: 0.35, 3: -0.45})),  # at 4, -.4 meets .4: neither is elected
    ],
)
def test_plus_plus_by_hand(density: float, kept: tuple[dict[int, float], ...]) -> None:
    """AdaMerging++ mixes, with a coefficient a task, what TIES' trim and election leave of each."""
    deltas = torch.tensor([A, B])
    vectors = TaskVectors(("a", "b"), {"w": torch.ones(10)}, {"w": deltas})
    trim = adamerging(SHAPE, density=density).trim
    left = trimmed(vectors, trim, run_surveys([trim_survey(vectors, trim)]))
    merged = mix(left, torch.tensor([2.0, -3.0]).view(1, 2, 1))["w"]
    wanted = [1.0] * 10
    for coefficient, entries in zip((2.0, -3.0), kept, strict=True):
        for at, value in entries.items():
            wanted[at] += coefficient * value
    assert merged.tolist() == pytest.approx(wanted, abs=1e-6)
    # With one coefficient for all it is TIES' disjoint sum.
    together = mix(left, torch.full((1, 2, 1), 0.3))["w"]
    torch.testing.assert_close(
        together, ties(vectors, density=density, scale=0.3, merge="sum")["w"]
    )
