"""JSON schema of sweep and training files, for editors: `sweeps schema`.

An editor that knows it completes names and marks faults while a file is written, for example by
`# yaml-language-server: $schema=sweep.schema.json` in the file's first line. It is a help: what
only data or models decide, and what depends on several fields, is checked by `sweeps plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, PydanticSchemaGenerationError, TypeAdapter

from actors.families.registry import trainings
from fusion.parameters import Parameter
from fusion.registry import METHODS
from sweeps.cli.file_formats.fields import fields_of
from sweeps.spec.shift import ShiftSpec
from sweeps.spec.sweep import (
    IMPORT,
    MlflowSpec,
    PlacementSpec,
    PoolSpec,
    SplitSpec,
    SweepSpec,
    TaskSpec,
)
from sweeps.train.spec import SyntheticSpec, TrainSpec, TrainTaskSpec, schema

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SPACE = {"$ref": "#/$defs/Space"}
ENDS = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
VALUES = {"type": "array", "minItems": 1}
MODULES = {
    "description": "Modules with methods of your own. Allowed: a name, or a list of names.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}

RACED = {
    "type": "object",
    "additionalProperties": False,
    "required": ["racing"],
    "properties": {
        "racing": {
            "type": ["object", "null"],
            "additionalProperties": False,
            "properties": {"confidence": {"type": "number", "minimum": 0.5, "exclusiveMaximum": 1}},
        }
    },
}
"""`evaluate: {racing: {confidence: …}}`"""


def sweep_schema() -> dict[str, Any]:
    """JSON schema of a sweep file."""
    found = described(
        SweepSpec, (PoolSpec, TaskSpec, SplitSpec, PlacementSpec, ShiftSpec, MlflowSpec)
    )
    found["properties"]["methods"] |= {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": {
            IMPORT: MODULES,
            **{
                name: entry(row.parameters) | {"description": row.doc.strip().partition("\n")[0]}
                for name, row in METHODS.items()
            },
        },
    }
    found["properties"]["methods"].pop("$ref", None)
    found["properties"]["evaluate"]["anyOf"] = [{"enum": ["all", "racing"]}, RACED]
    part = found["properties"]["placement"]
    found["properties"]["placement"] = {
        "anyOf": [{"const": "auto"}, {"$ref": part.pop("$ref")}],
        **part,
    }
    return found


def train_schema() -> dict[str, Any]:
    """JSON schema of a training file: hyper-parameters of all families of models are allowed."""
    found = described(TrainSpec, (TrainTaskSpec, SyntheticSpec, SplitSpec, ShiftSpec))
    known: dict[str, Parameter] = {}
    for each in trainings().values():
        known = {**schema(each.options), **known}
    found["properties"]["finetune"] |= entry(known)
    found["properties"]["finetune"].pop("$ref", None)
    found["properties"]["pretrain"]["type"] = ["object", "null"]
    found["properties"]["keep"]["anyOf"] = [
        {"enum": ["best", "all"]},
        {"type": "integer", "minimum": 1},
    ]
    return found


def described(model: type[BaseModel], parts: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    """JSON schema of a file whose fields have their meaning and allowed values as description."""
    found = model.model_json_schema()
    places = {model: found, **{part: found["$defs"][part.__name__] for part in parts}}
    for part, place in places.items():
        for field in fields_of(part):
            text = " ".join(filter(None, (field.meaning, f"Allowed: {field.allowed}.")))
            place["properties"][field.name]["description"] = text
    found["$schema"] = DIALECT
    found["$defs"].pop("MethodSpec", None)
    found["$defs"]["Space"] = {
        "description": "A search space: grid (every value), choice, uniform or loguniform.",
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
        "properties": {"grid": VALUES, "choice": VALUES, "uniform": ENDS, "loguniform": ENDS},
    }
    return found


def entry(known: Mapping[str, Parameter]) -> dict[str, Any]:
    """JSON schema of a method's entry: its parameters, trials, searcher and scheduler."""
    return {
        "type": ["object", "null"],
        "additionalProperties": False,
        "required": [name for name, each in known.items() if each.required],
        "properties": {
            **{name: parameter(each) for name, each in known.items()},
            "trials": {"type": "integer", "minimum": 1, "description": "Samples of the spaces."},
            "searcher": {"enum": ["random", "tpe", "cmaes"]},
            "scheduler": {"enum": [None, "asha", "pbt"]},
        },
    }


def parameter(each: Parameter) -> dict[str, Any]:
    """JSON schema of one parameter: a value of its type, or a search space."""
    found: dict[str, Any] = {
        "anyOf": [value(each), SPACE],
        "description": f"Allowed: {each.allowed}.",
    }
    return found if each.required else {**found, "default": each.default}


def value(each: Parameter) -> dict[str, Any]:
    """JSON schema of a parameter's values. Inside lists and mappings anything is allowed: they may
    hold search spaces."""
    if each.choices:
        return {"enum": list(each.choices)}
    typed: Any = each.annotation
    if each.interval:
        typed = Annotated[typed, each.interval]
    try:
        found = TypeAdapter(typed).json_schema()
    except PydanticSchemaGenerationError:  # a type of torch or of this project
        return {}
    return opened(found)


def opened(found: dict[str, Any]) -> dict[str, Any]:
    """A schema without what it demands of the parts of lists and mappings."""
    if "anyOf" in found:
        return {"anyOf": [opened(each) for each in found["anyOf"]]}
    if found.get("type") in ("array", "object"):
        return {"type": found["type"]}
    return {key: each for key, each in found.items() if key != "$defs"}
