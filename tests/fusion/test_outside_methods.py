"""Methods of other packages: found by entry point, by name and by environment variable."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusion import outside_methods
from fusion.errors import InputError
from fusion.registry import METHODS, import_methods
from tests.fusion.outside_modules import MODULE, undone, write


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    with undone():
        yield


def installed(folder: Path, module: str, value: str | None = None) -> None:
    """An installed package, as pip leaves it: the module, and its entry point."""
    write(folder, module)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    group = outside_methods.GROUP
    (info / "entry_points.txt").write_text(f"[{group}]\n{module} = {value or module}\n")


def in_a_process(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, **variables}
    return subprocess.run([sys.executable, "-c", code], env=env, text=True, capture_output=True)


def test_a_module_is_found_in_a_folder_and_handed_on(tmp_path: Path) -> None:
    write(tmp_path, "outside_one")
    import_methods(["outside_one"], [tmp_path / "none", tmp_path])
    assert METHODS["outside_one"].bound({}) == {"scale": 0.5}
    assert outside_methods.ORIGINS["outside_one"] == "outside_one"
    assert os.environ[outside_methods.MODULES] == "outside_one"
    assert os.environ[outside_methods.FOLDERS] == str(tmp_path)
    assert sys.path[-1] == str(tmp_path)
    assert outside_methods.source_of("outside_one") == tmp_path / "outside_one.py"
    import_methods(["outside_one"], [tmp_path])  # once more: nothing happens
    assert os.environ[outside_methods.MODULES] == "outside_one"


def test_another_process_loads_what_the_variables_name(tmp_path: Path) -> None:
    write(tmp_path, "outside_two")
    code = "from fusion.registry import METHODS; print('outside_two' in METHODS)"
    variables = {
        outside_methods.MODULES: "outside_two",
        outside_methods.FOLDERS: f"/nowhere{os.pathsep}{tmp_path}",
    }
    assert in_a_process(code, tmp_path / "none", **variables).stdout == "True\n"
    lost = in_a_process(code, tmp_path / "none", **{**variables, outside_methods.FOLDERS: ""})
    assert "$FUSION_SWEEPS_IMPORT: 'outside_two': no such module: not installed" in lost.stderr


def test_installed_packages_are_found_by_their_entry_points(tmp_path: Path) -> None:
    installed(tmp_path, "outside_three", "outside_three:METHODS")
    installed(tmp_path, "outside_broken", "outside_broken:nothing_of_the_name")
    code = (
        "import fusion; from fusion.registry import METHODS;"
        " print('outside_three' in METHODS, 'outside_broken' in METHODS)"
    )
    found = in_a_process(code, tmp_path)
    assert found.stdout == "True False\n"
    assert "entry point 'outside_broken' of fusion_sweeps.methods: " in found.stderr
    assert "Traceback" not in found.stderr


def test_a_taken_name_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "outside_four", MODULE.replace("{name}", "ties").replace("{{", "{{"))
    wanted = METHODS["ties"]
    with pytest.raises(InputError, match="outside_four: method 'ties': the name is taken by this"):
        import_methods(["outside_four"], [tmp_path])
    assert METHODS["ties"] is wanted
    write(tmp_path, "outside_five")
    import_methods(["outside_five"], [tmp_path])
    write(tmp_path, "outside_six", MODULE.replace("{name}", "outside_five"))
    with pytest.raises(InputError, match="'outside_five': the name is taken by outside_five"):
        import_methods(["outside_six"], [tmp_path])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "methods.import: 'outside_bad': ZeroDivisionError: division by zero"),
        ("", "'outside_bad': has no mapping METHODS of names to methods"),
        ("METHODS = {{'a': 1}}", "METHODS: 'a': int: a row as Static(rule, …) needed"),
        ("METHODS = {{'a b': 1}}", "METHODS: 'a b': a Python identifier other than pretrained"),
        ("METHODS = {{'experts': 1}}", "METHODS: 'experts': a Python identifier other than"),
        (MODULE.replace('{{"{name}"', '{{"other"'), "its function is 'outside_bad': one name"),
    ],
)
def test_modules_at_fault(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "outside_bad", text)
    before = set(METHODS)
    with pytest.raises(InputError, match=re.escape(message)):
        import_methods(["outside_bad"], [tmp_path])
    assert set(METHODS) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("outside_none", "--import: 'outside_none': no such module: not installed, and not in /"),
        ("outside-none", "--import: 'outside-none': the name of a Python module needed"),
        ("../outside", "--import: '../outside': the name of a Python module needed"),
    ],
)
def test_names_of_no_module(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        import_methods([name], [tmp_path], where="--import")
