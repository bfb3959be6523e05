"""Fields of sweep and training files: every one has a meaning; examples are valid."""

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from actors.families.registry import trainings
from sweeps.cli.file_formats.fields import arguments, fields_of, meanings, parameters_of
from sweeps.cli.file_formats.reference_pages import PARTS
from sweeps.spec.fields import Part
from sweeps.spec.sweep import SweepSpec
from sweeps.train.spec import SyntheticSpec, TrainSpec, schema

MODELS = (SweepSpec, TrainSpec, SyntheticSpec, *PARTS.values())


@pytest.mark.parametrize("model", MODELS)
def test_every_field_has_a_meaning_and_allowed_values(model: type[BaseModel]) -> None:
    for field in fields_of(model):
        assert field.meaning.endswith("."), field.name
        assert field.allowed, field.name


def parts_of(kind: type[BaseModel]) -> set[type[BaseModel]]:
    """Sub-classes that have none of their own in the sweep file's modules."""
    inner = [each for each in kind.__subclasses__() if each.__module__.startswith("sweeps.spec")]
    found = set() if inner else {kind}
    return found.union(*(parts_of(each) for each in kind.__subclasses__()))


def test_every_part_of_a_sweep_file_has_a_section() -> None:
    parts = {each for each in parts_of(Part) if each.__module__.startswith("sweeps.spec")}
    assert parts - {SweepSpec} == set(PARTS.values())


@pytest.mark.parametrize("model", [each for each in MODELS if each is not TrainSpec])
def test_examples_are_valid(model: type[BaseModel]) -> None:
    for field in fields_of(model):
        if not field.example:
            continue
        given = yaml.safe_load(field.example)
        assert set(given) == {field.name}
        try:
            model.model_validate(given)
        except ValidationError as error:  # other fields may be needed, or refer to others
            wrong = [each for each in error.errors() if each["loc"][:1] == (field.name,)]
            if field.name not in ("adapt_on_shift", "corruption"):
                assert not wrong, field.example


def test_every_hyper_parameter_of_training_has_a_meaning() -> None:
    for family, training in trainings().items():
        for field in parameters_of(training.options, schema(training.options)):
            assert field.meaning.endswith("."), (family, field.name)


def test_meanings_are_the_texts_below_fields() -> None:
    assert meanings(Example) == {"first": "The first, in two lines.", "third": "The third."}


def test_arguments_are_read_off_a_docstring() -> None:
    assert arguments(documented) == {"first": "The first, in two lines.", "second": "The second."}


class Example(Part):
    """An example."""

    first: int = 1
    """The first,
    in two lines."""
    second: int = 2
    third: int = 3
    """The third."""


def documented(first: int, second: int) -> int:
    """Do it.

    Args:
        first: the first,
            in two lines.
        second: the second.

    Returns:
        nothing: of interest.
    """
    return first + second
