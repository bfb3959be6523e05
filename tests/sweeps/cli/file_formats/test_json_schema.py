"""JSON schemas of the files: the project's own files fit them, wrong ones do not."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from fusion.registry import METHODS
from sweeps.cli.file_formats.json_schema import sweep_schema, train_schema
from sweeps.cli.main import app

CONFIGS = sorted((Path(__file__).parents[4] / "sweeps" / "configs").rglob("*.yaml"))
SWEEP, TRAINING = sweep_schema(), train_schema()

GOOD: dict[str, Any] = {
    "name": "a",
    "pool": {"base": "b", "experts": {"x": "y"}},
    "methods": {"ties": {"density": 0.2, "scale": {"grid": [0.5, 1.0]}}, "simple_average": None},
}
TRAIN: dict[str, Any] = {
    "name": "a",
    "out": "o",
    "base": "b",
    "tasks": {"x": {"dataset": "x"}},
    "finetune": {"learning_rate": {"loguniform": [1e-5, 1e-3]}, "trials": 4, "scheduler": "pbt"},
}


def faults(schema: dict[str, Any], data: Any) -> list[str]:
    return [error.json_path for error in Draft202012Validator(schema).iter_errors(data)]


@pytest.mark.parametrize("schema", [SWEEP, TRAINING])
def test_they_are_json_schemas(schema: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(json.loads(json.dumps(schema)))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_the_projects_sweep_files_fit(file: Path) -> None:
    assert faults(SWEEP, yaml.safe_load(file.read_text())) == []


def test_good_files_fit() -> None:
    assert faults(SWEEP, GOOD) == faults(TRAINING, TRAIN) == []
    assert faults(SWEEP, {**GOOD, "placement": "auto"}) == []
    for modules in ("my_module", ["my_module", "other.module"]):
        assert faults(SWEEP, {**GOOD, "methods": {"import": modules, "ties": {}}}) == []


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"placement": {"dtype": "float8"}}, "$.placement"),
        ({"method": {}}, "$"),
        ({"methods": {"tys": {}}}, "$.methods"),
        ({"methods": {"ties": {"density": 2.0}}}, "$.methods.ties.density"),
        ({"methods": {"ties": {"lr": 0.1}}}, "$.methods.ties"),
        ({"methods": {"ties": {"density": {"gird": [1.0]}}}}, "$.methods.ties.density"),
        ({"splits": {"val_fraction": 1.5}}, "$.splits.val_fraction"),
        ({"pool": {"base": "b", "experts": {}}}, "$.pool.experts"),
    ],
)
def test_a_fault_is_found_at_its_place(change: dict[str, Any], place: str) -> None:
    assert faults(SWEEP, {**GOOD, **change}) == [place]


def test_every_method_is_there_with_its_parameters() -> None:
    found = SWEEP["properties"]["methods"]["properties"]
    assert found.keys() - {"import"} == METHODS.keys()
    for name, row in METHODS.items():
        assert found[name]["properties"].keys() >= row.parameters.keys()


def test_fields_are_described() -> None:
    text = SWEEP["$defs"]["TaskSpec"]["properties"]["dataset"]["description"]
    assert text.startswith("The data set: a folder")
    assert text.endswith("Allowed: a hub id or a folder.")


@pytest.mark.parametrize(("options", "schema"), [([], SWEEP), (["--training"], TRAINING)])
def test_the_command_prints_it(options: list[str], schema: dict[str, Any]) -> None:
    result = CliRunner().invoke(app, ["schema", *options])
    assert json.loads(result.stdout) == json.loads(json.dumps(schema))
