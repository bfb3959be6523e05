"""Fitted heads: greedy_ensemble, linear_probe, wise_ft_linear; their laws are in test_fitted."""

import pytest
import torch

from fusion.logits.cosine_head import logits
from fusion.registry import METHODS
from tests.fusion.logit_world import EXPERTS, World


def test_greedy_ensemble_takes_the_better_expert_first():
    world = World()
    found = METHODS["greedy_ensemble"].fit(world.data, tie="gt")
    weights = found.kept["weights"].tolist()
    assert weights[1] > 0
    assert sum(weights) == pytest.approx(1)
    both = METHODS["ensemble"].fuse(
        torch.stack([world.z[e, "report"] for e in EXPERTS]), world.head, weights=weights
    )
    torch.testing.assert_close(world.logits("greedy_ensemble", found.kept, "report"), both)


def test_wise_ft_of_heads_is_the_probe_and_the_zero_shot_head_at_its_ends():
    world = World()
    row = METHODS["wise_ft_linear"]
    zero = world.logits("wise_ft_linear", row.fit(world.data, alpha=0.0).kept, "report")
    torch.testing.assert_close(zero, logits(world.z["pretrained", "report"], world.head))
    one = row.fit(world.data, alpha=1.0, C=3.0)
    probe = METHODS["linear_probe"].fit(world.data, convention="normalised", C=3.0)
    torch.testing.assert_close(
        world.logits("wise_ft_linear", one.kept, "report"),
        world.logits("linear_probe", probe.kept, "report", convention="normalised"),
    )


def test_the_exact_alpha_is_no_worse_than_any_of_a_grid():
    world = World()
    row = METHODS["wise_ft_linear"]
    best = row.fit(world.data)
    reached = world.accuracy(world.logits("wise_ft_linear", best.kept, "select"), "select")
    curve = best.kept["surface.grid"][0]  # accuracy at 0, 0.01, …, 1
    assert len(curve) == 101
    assert float(curve.max()) <= reached + 1e-6
    for step in (0, 7, 35, 64, 100):  # the curve is what fits at these α give
        at = row.fit(world.data, alpha=step / 100).kept
        found = world.accuracy(world.logits("wise_ft_linear", at, "select"), "select")
        assert found <= reached
        assert found == pytest.approx(float(curve[step]), abs=1e-6)
    low, high = best.chosen["alpha/low"], best.chosen["alpha/high"]
    assert low <= best.chosen["alpha"] <= high
    assert best.kept["surface.high"].tolist() == [high]
    assert "surface.grid" not in row.fit(world.data, alpha=0.5).kept
