"""The public names of `fusion`, which are imported on first use."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fusion
from fusion.errors import InputError
from fusion.kinds import MergeInputs
from fusion.registry import METHODS
from tests.fusion.laws import assert_same_bits, toy


def test_public_names_are_those_of_their_modules() -> None:
    for name, module in fusion.EXPORTS.items():
        assert getattr(fusion, name) is getattr(importlib.import_module(module), name)
        assert name in dir(fusion)
    assert fusion.METHODS is METHODS
    assert fusion.InputError is InputError


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'fusion' has no attribute 'no_name'"):
        _ = fusion.no_name


def test_no_public_name_hides_a_sub_package() -> None:
    folder = Path(fusion.__file__).parent
    inside = {path.stem for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert not inside & {*fusion.EXPORTS, *fusion.METHOD_MODULES}


def test_every_method_is_a_function_of_its_name() -> None:
    modules = {name: row.rule.__module__ for name, row in METHODS.items()}
    assert modules == fusion.METHOD_MODULES
    for name, row in METHODS.items():
        function = getattr(fusion, name)
        assert callable(function)
        assert function.__name__ == name
        assert function.__doc__ == row.rule.__doc__
        assert inspect.signature(function) == inspect.signature(row.rule)
        assert name in dir(fusion)


def test_methods_check_hyper_parameters_as_sweep_files_do() -> None:
    with pytest.raises(InputError, match=re.escape("ties: density: 2.0; float in [0, 1] allowed")):
        fusion.ties(toy(), density=2.0)
    with pytest.raises(InputError, match="did you mean 'density'"):
        fusion.ties(toy(), densty=0.5)  # type: ignore[call-arg]
    wanted = METHODS["ties"].merge(toy(), density=0.4)
    assert_same_bits(fusion.ties(toy(), density=0.4), wanted)
    assert_same_bits(fusion.ties(vectors=toy(), density=0.4), wanted)
    emr = METHODS["emr"].merge(toy(), MergeInputs(task="svhn"))
    assert_same_bits(fusion.emr(toy(), task="svhn"), emr)


def test_types_for_editors_are_the_names_that_are_imported() -> None:
    tree = ast.parse(Path(fusion.__file__).read_text(encoding="utf-8"))
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in typed.body if isinstance(node, ast.ImportFrom)]
    found = {alias.name: node.module for node in imports for alias in node.names}
    assert found == {**fusion.EXPORTS, **fusion.METHOD_MODULES}


@pytest.mark.parametrize(
    "module", ["fusion", "fusion.errors", "fusion.parameters", "fusion.outside_methods"]
)
def test_errors_and_schemas_import_no_torch(module: str) -> None:
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
