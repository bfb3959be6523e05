"""What `sweeps methods` prints."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fusion.errors import InputError
from fusion.registry import METHODS
from sweeps.cli import list_methods, methods_table
from sweeps.results.comparison import Comparison, Row
from sweeps.results.comparison_file import write
from sweeps.results.folder import claim


def printed(name: str | None = None) -> str:
    console = Console(width=140, color_system=None)
    with console.capture() as capture:
        console.print(list_methods.describe(name))
    return capture.get()


def test_the_table_is_that_of_the_registry() -> None:
    written = methods_table.PATH.read_text(encoding="utf-8")
    assert written == methods_table.text(), "run: python -m sweeps.cli.methods_table"
    assert list_methods.as_json() == methods_table.table()


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--help"], "quickstart"), (["methods"], "ties"), (["methods", "ties"], "density"),
        (["list"], "task_arithmetic 0.7000"),
    ],
)  # fmt: skip
def test_light_commands_import_neither_torch_nor_ray(
    arguments: list[str], shown: str, tmp_path: Path
) -> None:
    rows = (Row("task_arithmetic", "static", test={"acc/mean": 0.7}),)
    claim(tmp_path / "outputs" / "one", "a" * 16, "name: x\n")
    write(Comparison("one", "a" * 16, "val", rows), tmp_path / "outputs" / "one")
    code = (
        "import sys\n"
        "from sweeps.__main__ import main\n"
        "try:\n    main()\n"
        "finally:\n    assert not {'torch', 'ray', 'mlflow', 'scipy'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


def test_all_methods_are_listed_with_their_parameters() -> None:
    text = printed()
    for name, method in METHODS.items():
        assert name in text
        assert method.paper.split(",")[0] in text
        assert all(parameter in text for parameter in method.parameters)


@pytest.mark.parametrize("name", METHODS)
def test_one_method_is_told_in_full(name: str) -> None:
    text, method = printed(name), METHODS[name]
    for fact in (name, method.kind, method.paper, method.defaults, method.scope, method.needs):
        assert fact in text
    for parameter in method.parameters.values():
        row = next(line for line in text.splitlines() if line.startswith(f"{parameter.name} "))
        assert parameter.allowed in row
    for line in inspect.cleandoc(method.doc).splitlines():
        assert line in text


def test_markup_in_docstrings_is_text() -> None:
    assert "float in [0, 1]" in printed("ties")


def test_json() -> None:
    listed = json.loads(json.dumps(list_methods.as_json()))
    assert [method["name"] for method in listed] == list(METHODS)
    ties = list_methods.as_json("ties")
    assert isinstance(ties, dict)
    assert ties in listed
    assert ties["parameters"][0] == {
        "name": "density", "type": "float", "allowed": "float in [0, 1]", "required": False,
        "default": 0.2,
    }  # fmt: skip
    merge = next(each for each in ties["parameters"] if each["name"] == "merge")
    assert (merge["type"], merge["choices"]) == ("choice", ["mean", "sum", "max"])
    assert ties["doc"].startswith(ties["summary"])
    for method in listed:
        assert {"kind", "paper", "defaults", "scope", "needs"} <= set(method)


@pytest.mark.parametrize("ask", [list_methods.describe, list_methods.as_json])
def test_an_unknown_name_gets_the_nearest(ask: object) -> None:
    assert callable(ask)
    with pytest.raises(InputError, match=r"^unknown method 'tie'; did you mean 'ties'\? \(valid: "):
        ask("tie")


@pytest.mark.parametrize(
    "arguments",
    [["export", "recipe.yaml", "out"], ["merge", "ties", "base", "a", "b", "-o", "out"]],
)
def test_the_first_line_of_export_and_merge_comes_before_torch(
    arguments: list[str], tmp_path: Path
) -> None:
    code = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *rest):\n"
        "        assert name not in ('torch', 'ray', 'mlflow', 'scipy', 'pandas'), name\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from sweeps.__main__ import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout == "loading torch …\n"
    assert done.stderr.count("torch") == 1
