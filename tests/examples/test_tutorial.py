"""The tutorial's blocks run in the order of the page, as a reader runs them."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import fusion
import sweeps
from sweeps.cli.main import app
from sweeps.execution.python_api import loaded_spec
from tests.examples.conftest import ROOT, Script

PAGE = ROOT / "docs" / "tutorial.md"


@dataclass(frozen=True)
class Block:
    """A fenced block of the page."""

    language: str
    text: str


def blocks(*languages: str) -> list[Block]:
    """The page's blocks of these languages, in its order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(*each) for each in found if each[0] in languages]


def commands() -> list[list[str]]:
    """Every command of the page, in words."""
    return [shlex.split(line) for block in blocks("bash") for line in block.text.splitlines()]


def code() -> str:
    """All Python of the page, which is one program."""
    return "\n".join(block.text for block in blocks("python"))


def test_every_block_is_of_a_known_kind() -> None:
    kinds = re.findall(r"^```(\w*)$", PAGE.read_text(), re.MULTILINE)
    assert set(kinds[::2]) == {"bash", "yaml", "python", "text"}
    assert set(kinds[1::2]) == {""}


def test_the_sweep_file_is_valid() -> None:
    (block,) = blocks("yaml")
    assert block.text.startswith("# tutorial.yaml\n")
    spec = loaded_spec(yaml.safe_load(block.text), [])
    assert set(spec.tasks) == set(spec.pool.experts)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_have_such_arguments_and_options(words: list[str]) -> None:
    program: Any = typer.main.get_command(app)
    if words[:2] == ["python", "-m"]:
        assert (ROOT / words[2].replace(".", "/") / "__main__.py").is_file()
    else:
        assert words[0] == "sweeps"
        program.commands[words[1]].make_context(words[1], words[2:])  # raises on wrong ones


def test_names_of_the_packages_exist() -> None:
    tree = ast.parse(code())
    names = {
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    used = {name for name in names if name[0] in ("fusion", "sweeps")}
    assert used >= {("fusion", "merge"), ("sweeps", "load"), ("sweeps", "run")}
    for package, name in used:
        assert hasattr({"fusion": fusion, "sweeps": sweeps}[package], name), name


def words_of(text: str) -> list[str]:
    """A text's words that are no numbers: those of a table whatever machine it is from."""
    return [word for word in re.findall(r"[A-Za-z_/]{2,}", text) if word != "nan"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_page_runs(script: Script, tmp_path: Path) -> None:
    for block in blocks("bash", "yaml"):
        if block.language == "yaml":
            (tmp_path / "tutorial.yaml").write_text(block.text)
        for line in block.text.splitlines() if block.language == "bash" else []:
            script("bash", "-c", line, cwd=tmp_path)
    (tmp_path / "tutorial.py").write_text(code())
    printed = script("python", "tutorial.py", cwd=tmp_path)
    (shown,) = blocks("text")
    assert set(words_of(shown.text)) == set(words_of(printed.partition("\ntask_")[0])), printed
    assert "CLIPModel" in printed
