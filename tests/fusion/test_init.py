"""The public names of `fusion`, which are imported on first use."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import fusion
from fusion.errors import InputError
from fusion.registry import METHODS


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
    assert not inside & set(fusion.EXPORTS)


def test_types_for_editors_are_the_names_that_are_imported() -> None:
    tree = ast.parse(Path(fusion.__file__).read_text(encoding="utf-8"))
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in typed.body if isinstance(node, ast.ImportFrom)]
    found = {alias.name: node.module for node in imports for alias in node.names}
    assert found == fusion.EXPORTS


@pytest.mark.parametrize("module", ["fusion", "fusion.errors", "fusion.parameters"])
def test_errors_and_schemas_import_no_torch(module: str) -> None:
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
