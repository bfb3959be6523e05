"""What import-linter cannot say: no Tune below sweeps, a test file a method."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from fusion.registry import METHODS

ROOT = Path(__file__).parent.parent
PACKAGES = ("fusion", "actors", "sweeps")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def dotted(path: Path) -> str:
    """A file as the name of its module."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """Names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_layers(path):
    names = imported(path)
    if path.is_relative_to(ROOT / "actors"):
        assert not [name for name in names if name.startswith(("ray.tune", "sweeps"))]
    if path.is_relative_to(ROOT / "sweeps") and path.parent.name != "tracking":
        assert not [name for name in names if name.partition(".")[0] == "mlflow"]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_test_file(name):
    method = METHODS[name]
    *folders, module = method.rule.__module__.split(".")
    text = ROOT.joinpath("tests", *folders, f"test_{module}.py").read_text()
    assert name in text


def test_the_readme_names_every_method_and_the_sweep_of_all_has_it():
    told = (ROOT / "README.md").read_text().partition("## The methods")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([a-z_]+)`", told)) == set(METHODS)
    swept = yaml.safe_load((ROOT / "sweeps" / "configs" / "real8_all.yaml").read_text())
    assert set(swept["methods"]) == set(METHODS)


MAKERS = {
    "actors": {
        "actors.checkpoints.checkpoint",
        "actors.data.images.pixel_cache",
        "actors.data.images.preprocess",
        "actors.data.images.shifted_pixels",
        "actors.data.task",
        "actors.experts.embedding_cache",
        "actors.families.clip.zero_shot_heads",
        "actors.files.fingerprint",
        "actors.gate_features.extractor",
        "actors.gate_features.feature_cache",
    },
    "sweeps": {
        "sweeps.planning.learning_needs",
        "sweeps.planning.prepare",
        "sweeps.planning.shift_data",
        "sweeps.train.run",
    },
    "fusion": set(),
}
"""Modules that make fingerprints: each of an object, from all that it was read from."""


@pytest.mark.parametrize("package", PACKAGES)
def test_only_these_modules_make_fingerprints(package):
    def makes(path: Path) -> bool:
        calls = (node.func for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Call))  # fmt: skip
        return any(
            isinstance(f, ast.Name) and f.id in ("fingerprint", "Fingerprint") for f in calls
        )

    found = {dotted(path) for path in (ROOT / package).rglob("*.py") if makes(path)}
    assert found == MAKERS[package]
