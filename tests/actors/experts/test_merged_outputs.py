"""Modules on the outputs of a merged model: they read that model, and the experts as they are."""

from __future__ import annotations

import pytest
import torch

from actors.artifacts.recipe import Recipe
from fusion.errors import InputError
from fusion.methods.classifiers.interface import MERGED
from tests.actors.laws.parts import NAMES


@pytest.mark.parametrize(
    ("method", "params"),
    [("ties", {"density": 0.3}), ("svc", {"of": {"task_arithmetic": {}}}), ("tsv_m", {})],
)
def test_without_steps_they_are_the_merge(parts, method, params):
    experts = parts.local()
    recipe = Recipe("surgery", {"of": {method: params}, "steps": 0})
    learned, chosen = experts.fit(recipe)
    found = experts.logits(Recipe("surgery", recipe.params, learned), "report")
    wanted = experts.logits(Recipe(method, params), "report")
    for task in NAMES:
        torch.testing.assert_close(found[task], wanted[task])
        data = experts.runner.task_embeddings(task, {method: params})
        merged, own = (data.embedded(source, "fit", None) for source in (MERGED, task))
        assert torch.equal(own, experts.runner.embedded(task, task, "fit"))
        assert chosen[f"{task}/before"] == pytest.approx(float((merged - own).abs().mean()))


def test_steps_change_logits_towards_the_expert(parts):
    experts, params = parts.local(), {"steps": 200, "learning_rate": 1e-2}
    learned, chosen = experts.fit(Recipe("surgery", params))
    for task in NAMES:
        assert chosen[f"{task}/distance"] < 0.9 * chosen[f"{task}/before"]
    found = experts.logits(Recipe("surgery", params, learned), "fit")
    wanted = experts.logits(Recipe("experts"), "fit")
    merged = experts.logits(Recipe("task_arithmetic", {}), "fit")
    near, far = (
        sum(float((each[task] - wanted[task]).abs().mean()) for task in NAMES)
        for each in (found, merged)
    )
    assert near < far


def test_there_is_no_single_model(parts):
    with pytest.raises(InputError, match="surgery: fuses logits; there is no single model to bu"):
        parts.local().merge(Recipe("surgery", {}))
