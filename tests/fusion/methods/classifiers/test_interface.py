"""Classifiers fitted in the logit plane, over the whole table: laws, honesty, what is kept."""

import pytest
import torch

from fusion.errors import InputError
from fusion.registry import METHODS
from tests.fusion.laws import FITTED
from tests.fusion.logit_world import EXPERTS, C, World


@pytest.mark.parametrize("name", FITTED)
def test_reads_no_row_that_is_reported_and_no_fit_row_it_does_not_name(name):
    world = World()
    METHODS[name].fit(world.data)
    assert world.read == ({"fit", "select"} if METHODS[name].fits else {"select"}) - (
        {"select"} if name in ("linear_probe", "surgery") else set()
    )


@pytest.mark.parametrize("name", FITTED)
def test_what_is_kept_is_all_that_its_logits_need(name):
    world = World()
    found = METHODS[name].fit(world.data)
    assert all(isinstance(each, torch.Tensor) for each in found.kept.values())
    z = world.logits(name, found.kept, "report")
    assert z.shape == (45, C)
    assert bool(z.isfinite().all())
    again = METHODS[name].fit(World().data)
    for key, tensor in found.kept.items():
        assert torch.equal(tensor, again.kept[key]), key


@pytest.mark.parametrize("name", sorted(set(FITTED) - {"linear_probe"}))
def test_what_is_chosen_on_select_is_no_worse_there_than_zero_shot(name):
    world = World()
    found = METHODS[name].fit(world.data)
    if name == "greedy_ensemble":
        floor = max(world.zero_shot("select", each) for each in EXPERTS)
    else:
        floor = world.zero_shot("select")
    assert world.accuracy(world.logits(name, found.kept, "select"), "select") >= floor


@pytest.mark.parametrize("name", FITTED)
def test_wrong_parameters_are_one_line(name):
    with pytest.raises(InputError, match="unknown parameter 'nothing'"):
        METHODS[name].fit(World().data, nothing=1)
    for key in {"features", "sources"} & METHODS[name].parameters.keys():
        value = "nobody" if key == "features" else ["nobody"]
        with pytest.raises(InputError, match="unknown source 'nobody'"):
            METHODS[name].fit(World().data, **{key: value})
