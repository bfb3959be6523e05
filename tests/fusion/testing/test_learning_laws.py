"""Laws of every method that learns or routes, over the whole table."""

from collections.abc import Callable

import pytest

from fusion.errors import InputError
from fusion.methods.learned.steps import temperature
from fusion.methods.routed.dawin import ExpertLogits
from fusion.registry import METHODS
from fusion.testing import LEARNING_LAWS, ROUTED_LAWS, SHAPE, toy_features
from tests.fusion.draws import drawn
from tests.fusion.laws import LEARNING, ROUTED


def coding(name, **params):
    method = METHODS[name]
    return method.plan(SHAPE, **params).router(toy_features(name))


UNLABELLED = [name for name in LEARNING if not METHODS[name].labelled]


@pytest.mark.parametrize("name", UNLABELLED)
@pytest.mark.parametrize("grouping", ["task", "layer"])
def test_step_zero_is_task_arithmetic(name, grouping):
    found = coding(name, grouping=grouping, scale=0.25)
    assert found.shape[1:] == (3, 1 if grouping == "task" else 2)
    assert bool((found == 0.25).all())


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("law", LEARNING_LAWS, ids=lambda law: law.__name__)
def test_learning(law: Callable[[str], None], name: str) -> None:
    law(name)


@pytest.mark.parametrize("name", LEARNING)
def test_a_temperature_is_learned_with_labels_alone(name: str) -> None:
    method = METHODS[name]
    assert (temperature(method.plan(SHAPE).router) is not None) == method.labelled


@pytest.mark.parametrize("name", LEARNING)
def test_a_misspelt_parameter_names_the_nearest(name):
    with pytest.raises(InputError, match="did you mean 'steps'"):
        METHODS[name].plan(SHAPE, step=3)
    with pytest.raises(InputError, match="steps: -1; int >= 0 allowed"):
        METHODS[name].plan(SHAPE, steps=-1)


@pytest.mark.parametrize("name", ROUTED)
@pytest.mark.parametrize("law", ROUTED_LAWS, ids=lambda law: law.__name__)
def test_routed(law: Callable[[str], None], name: str) -> None:
    law(name)


@pytest.mark.parametrize("name", ROUTED)
def test_a_misspelt_parameter_of_a_routing_names_the_nearest(name: str) -> None:
    expert_logits = ExpertLogits(SHAPE.tasks, drawn(3, 8, 5), drawn(8, 5, seed=1))
    with pytest.raises(InputError, match="did you mean 'scale'"):
        METHODS[name].route(expert_logits, scal=1.0)
