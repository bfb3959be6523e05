"""Fitted heads: greedy_ensemble, linear_probe, wise_ft_linear; their laws are in test_fitted."""

import pytest
import torch

from fusion.errors import InputError
from fusion.logits.cosine_head import logits
from fusion.logits.head import AnswerHead, LinearHead
from fusion.methods.classifiers.ensemble import greedy_ensemble, shares
from fusion.methods.classifiers.interface import TaskEmbeddings
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


ANSWERS = AnswerHead(torch.tensor([[5, 1], [6, 1], [7, 1]]))


def classifier() -> LinearHead:
    """A linear head with bias over the world's embeddings."""
    return LinearHead(World().head, torch.tensor([0.5, 0.0, -0.5]))


@pytest.mark.parametrize("head", [ANSWERS, classifier()], ids=["answers", "linear"])
@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_greedy_ensemble_of_other_heads_averages_their_logits(head, average, calibrated):
    world = World()
    if head is ANSWERS:  # outputs [N, 2 + C + 1]: scores of the answers lie between other columns
        scores = {at: z.double() for at, z in world.z.items()}
        world.z = {
            at: torch.cat([z[:, :2] + 40, (z @ world.head.double().T).log_softmax(1), z[:, 3:4]], 1)
            for at, z in scores.items()
        }
        of = {at: z[:, 2:5] for at, z in world.z.items()}
    else:
        of = {at: z @ head.weight.T + head.bias for at, z in world.z.items()}
    data = TaskEmbeddings(EXPERTS, head, world.data.labels, world.data.embedded)
    row, params = METHODS["greedy_ensemble"], {"average": average, "calibrated": calibrated}
    found = row.fit(data, **params)
    rates = found.kept["temperatures"].tolist()
    assert (rates != [1.0, 1.0]) == calibrated
    select = torch.stack([of[each, "select"] for each in EXPERTS])
    wanted = greedy_ensemble(
        select, world.labels["select"], average=average, temperatures=rates, tie="ge"
    )
    weights = shares(wanted.subset, 2)
    assert found.kept["weights"].tolist() == weights
    each = [of[e, "report"].double() / rate for e, rate in zip(EXPERTS, rates, strict=True)]
    if average == "probabilities":
        mean = sum(w * z.softmax(1) for w, z in zip(weights, each, strict=True)).log()
    else:
        mean = sum(w * z for w, z in zip(weights, each, strict=True))
    z = row.logits(lambda s: world.z[s, "report"], head, found.kept, EXPERTS, **params)
    torch.testing.assert_close(z.double(), mean, rtol=1e-4, atol=1e-4)


def test_what_needs_a_cosine_head_refuses_another():
    world = World()
    data = TaskEmbeddings(EXPERTS, classifier(), world.data.labels, world.data.embedded)
    with pytest.raises(InputError, match="head: LinearHead; a cosine head needed"):
        METHODS["wise_ft_linear"].fit(data)
    assert METHODS["linear_probe"].fit(data).kept["weight"].shape == (3, 12)


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
