"""Hyper-parameters read from signatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Interval

from fusion.errors import InputError
from fusion.parameters import bind, fits_type, interval_name, parameters


def rule(
    vectors: Any,
    *,
    density: Annotated[float, Interval(ge=0, le=1)] = 0.2,
    merge: Literal["mean", "sum"] = "mean",
    rank: int,
    weights: Sequence[float] | Mapping[str, float] | None = None,
    normalize: bool = True,
    survey: Any = None,
) -> None: ...


SCHEMA = parameters(rule, hidden=("survey",))


def test_the_signature_is_the_schema() -> None:
    assert list(SCHEMA) == ["density", "merge", "rank", "weights", "normalize"]
    assert SCHEMA["density"].allowed == "float in [0, 1]"
    assert SCHEMA["merge"].allowed == "one of 'mean', 'sum'"
    assert SCHEMA["weights"].allowed == "sequence or mapping or none"
    assert [name for name, parameter in SCHEMA.items() if parameter.required] == ["rank"]


def test_defaults_fill_what_is_not_given() -> None:
    assert bind("rule", SCHEMA, {"rank": 3, "density": 1}) == {
        "density": 1.0,
        "merge": "mean",
        "rank": 3,
        "weights": None,
        "normalize": True,
    }
    assert type(bind("rule", SCHEMA, {"rank": 3, "density": 1})["density"]) is float


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"densty": 1}, "rule: unknown parameter 'densty'; did you mean 'density'?"),
        ({"survey": 1}, "rule: unknown parameter 'survey'"),
        ({}, "rule: rank: not given; int needed"),
        ({"rank": 1.5}, "rule: rank: 1.5; int allowed"),
        ({"rank": True}, "rule: rank: True; int allowed"),
        ({"rank": 1, "density": 1.2}, r"rule: density: 1.2; float in \[0, 1\] allowed"),
        ({"rank": 1, "density": float("nan")}, "rule: density: nan"),
        ({"rank": 1, "density": "0.2"}, "rule: density: '0.2'"),
        ({"rank": 1, "merge": "men"}, "rule: merge: 'men'; one of 'mean', 'sum' allowed"),
        ({"rank": 1, "weights": "abc"}, "rule: weights: 'abc'"),
        ({"rank": 1, "normalize": 1}, "rule: normalize: 1; bool allowed"),
    ],
)
def test_wrong_values_are_one_clear_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bind("rule", SCHEMA, given)


def test_types() -> None:
    assert fits_type([1], Sequence[float])
    assert fits_type({"a": 1}, Mapping[str, float])
    assert fits_type(None, float | None)
    assert not fits_type(None, float)


def test_intervals() -> None:
    assert interval_name(Interval(gt=0)) == "> 0"
    assert interval_name(Interval(lt=5)) == "< 5"
    assert interval_name(Interval(ge=0, lt=1)) == "in [0, 1)"
