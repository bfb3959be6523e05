"""Laws of every method whose parameters live in shards, over the whole table."""

import pytest
import torch

from fusion.errors import InputError
from fusion.kinds import MergeInputs
from fusion.methods.learned.in_model import MaskOptions, RouterOptions
from fusion.methods.learned.steps import Shape
from fusion.registry import METHODS
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion import laws
from tests.fusion.laws import IN_MODEL, assert_same_bits, copied, state_dict, toy

SHAPE = Shape(laws.TASKS, ("x", "y"))
BLENDED = [name for name in IN_MODEL if METHODS[name].blend is not None]
ROUTERS = [name for name in IN_MODEL if METHODS[name].blend is None]


def logits_of(vectors, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(delta.shape[1:], generator=draw, dtype=delta.dtype)
        for name, delta in vectors.deltas.items()
    }


def blended(name, vectors, learned=None, **params):
    learned = logits_of(vectors) if learned is None else learned
    return METHODS[name].merge(vectors, MergeInputs(learned=learned), **params)


@pytest.mark.parametrize("name", IN_MODEL)
def test_a_misspelt_parameter_names_the_nearest(name):
    with pytest.raises(InputError, match="did you mean 'steps'"):
        METHODS[name].plan(SHAPE, step=3)
    with pytest.raises(InputError, match="steps: -1; int >= 0 allowed"):
        METHODS[name].plan(SHAPE, steps=-1)
    with pytest.raises(InputError, match="unknown parameter 'learned'"):
        METHODS[name].plan(SHAPE, learned={})


@pytest.mark.parametrize("name", IN_MODEL)
def test_what_fusionbench_does_is_an_option(name):
    plain, quirk = METHODS[name].plan(SHAPE), METHODS[name].plan(SHAPE, compat="fusionbench")
    if name in ROUTERS:  # images of an evaluation's batch share a model
        assert (plain.options.together, quirk.options.together) == (0, 128)
    else:  # one image a task and step
        assert (plain.batch_size, quirk.batch_size) == (16, 1)


@pytest.mark.parametrize("name", IN_MODEL)
def test_options_are_of_routers_or_masks(name):
    kind = RouterOptions if name in ROUTERS else MaskOptions
    assert isinstance(METHODS[name].plan(SHAPE).options, kind)
    assert METHODS[name].plan(SHAPE) == METHODS[name].plan(SHAPE)


@pytest.mark.parametrize("name", ROUTERS)
def test_routers_make_no_single_model(name):
    said = f"{name}: one model a sample; there is no single model to build"
    with pytest.raises(InputError, match=said):
        blended(name, toy())


@pytest.mark.parametrize("name", BLENDED)
def test_zero_task_vectors_give_the_base(name):
    for schema in laws.SCHEMAS:
        base = state_dict(schema, 0)
        vectors = TaskVectors.from_state_dicts(base, {t: copied(base) for t in laws.TASKS})
        assert_same_bits(blended(name, vectors), base)


@pytest.mark.parametrize("name", BLENDED)
@pytest.mark.parametrize("mask", ["continuous", "discrete", "expected"])
def test_inputs_are_untouched_and_the_same_again_is_equal(name, mask):
    for schema in laws.SCHEMAS:
        vectors = toy(schema)
        learned = logits_of(vectors)
        before = copied(vectors.base), copied(vectors.deltas), copied(learned)
        first = blended(name, vectors, learned, mask=mask)
        assert_same_bits(blended(name, vectors, learned, mask=mask), first)
        assert all(bool(tensor.isfinite().all()) for tensor in first.values())
        for tensor in first.values():
            tensor.zero_()
        for got, wanted in zip((vectors.base, vectors.deltas, learned), before, strict=True):
            assert_same_bits(got, wanted)


@pytest.mark.parametrize("name", BLENDED)
def test_shards_equal_the_whole(name):
    vectors = toy("mixed")
    names, learned = list(vectors.base), logits_of(vectors)
    whole = blended(name, vectors, learned)
    parts = [blended(name, vectors.restrict(p), learned) for p in (names[:3], names[3:])]
    assert_same_bits({**parts[0], **parts[1]}, whole)


@pytest.mark.parametrize("name", BLENDED)
def test_a_mask_that_is_the_same_everywhere_is_task_arithmetic(name):
    vectors = toy()
    same = {key: torch.zeros(delta.shape[1:]) for key, delta in vectors.deltas.items()}
    found = blended(name, vectors, same, mask="expected", scale=0.25)
    wanted = METHODS["task_arithmetic"].merge(vectors, scale=0.25)
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", BLENDED)
def test_logits_of_other_weights_are_one_line(name):
    vectors = toy()
    learned = logits_of(vectors)
    learned["block.0.bias"] = torch.zeros(4)
    with pytest.raises(InputError, match=r"mask: tensor 'block.0.bias': \[4\]; \[3\] needed"):
        blended(name, vectors, learned)
    with pytest.raises(InputError, match=r"coefficients: shape \[1, 3, 2\]; \[1, 3, 1 or 5\] ne"):
        blended(name, vectors, {**learned, "coefficients": torch.zeros(1, 3, 2)})
    del learned["block.0.bias"]
    with pytest.raises(InputError, match=r"mask: tensor 'block.0.bias': none; \[3\] needed"):
        blended(name, vectors, learned)
