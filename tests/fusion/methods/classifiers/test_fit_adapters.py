"""Fitted caches and adapters: tip_adapter, tip_adapter_f, clip_adapter, cafo."""

import torch

from fusion.logits.cosine_head import logits
from fusion.registry import METHODS
from tests.fusion.logit_world import C, D, World


def test_shots_are_a_class_each_and_a_cafo_of_one_source_is_a_cache():
    world = World()
    tip = METHODS["tip_adapter"].fit(world.data, shots=2)
    assert tip.kept["keys"].shape == (2 * C, D)
    assert torch.bincount(tip.kept["classes"]).tolist() == [2] * C
    assert tip.kept["surface.beta"].shape == (200,)
    assert tip.kept["surface.grid"].shape == (200, len(tip.kept["surface.alphas"]))
    cafo = METHODS["cafo"].fit(world.data, shots=2, sources=["b"])
    assert cafo.kept["keys.0"].shape == (2 * C, D)
    assert cafo.kept["surface.temperature"][-1].isinf()


def test_tip_adapter_f_of_no_epochs_is_tip_adapter_at_its_alpha_and_beta():
    world = World()
    tuned = METHODS["tip_adapter_f"].fit(world.data, shots=4, epochs=0)
    plain = METHODS["tip_adapter"].fit(world.data, shots=4)
    assert torch.equal(tuned.kept["keys"], plain.kept["keys"])
    kept = {**plain.kept, "alpha": tuned.kept["alpha"], "beta": tuned.kept["beta"]}
    torch.testing.assert_close(
        world.logits("tip_adapter", kept, "report"),
        world.logits("tip_adapter_f", tuned.kept, "report"),
    )


def test_a_clip_adapter_of_ratio_zero_is_the_zero_shot_head():
    world = World()
    found = METHODS["clip_adapter"].fit(world.data, ratio=0.0, epochs=1)
    torch.testing.assert_close(
        world.logits("clip_adapter", found.kept, "report"),
        logits(world.z["pretrained", "report"], world.head),
    )
