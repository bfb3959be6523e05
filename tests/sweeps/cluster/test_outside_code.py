"""Methods of other packages on a running cluster and in its jobs: what Ray is given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusion import outside_methods
from fusion.registry import import_methods
from sweeps.cli.ray_job import environment
from sweeps.cluster.ray_connection import outside_code
from tests.fusion.outside_modules import undone, write


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    with undone():
        yield


def test_nothing_is_sent_without_modules() -> None:
    assert outside_code() == {}


def test_modules_are_sent_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    files = [write(tmp_path, name) for name in ("outside_a", "outside_b")]
    import_methods(["outside_a", "outside_b"], [tmp_path])
    assert outside_code() == {
        "runtime_env": {
            "py_modules": [str(file) for file in files],
            "env_vars": {outside_methods.MODULES: "outside_a,outside_b"},
        }
    }


def test_a_job_has_the_variables_and_sends_the_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, "outside_a")
    import_methods(["outside_a"], [tmp_path])
    given = environment(os.environ)["env_vars"]
    assert given[outside_methods.MODULES] == "outside_a"
    assert given[outside_methods.FOLDERS] == str(tmp_path)
    config = {"runtime_env": {"env_vars": given}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    assert outside_code() == {"runtime_env": {"py_modules": [str(file)]}}


def with_neighbours(folder: Path) -> list[Path]:
    """A module that imports a module and a package from its folder, and these another one."""
    first = write(folder, "outside_a")
    first.write_text("import outside_b\nfrom outside_pkg.part import VALUE\n" + first.read_text())
    (folder / "outside_b.py").write_text("def later():\n    import outside_c\n")
    (folder / "outside_c.py").write_text("import outside_a\n")
    (folder / "outside_d.py").write_text("nobody imports this\n")
    (folder / "fusion").mkdir()  # a name that every process has already
    (folder / "fusion/__init__.py").touch()
    (folder / "outside_pkg").mkdir()
    (folder / "outside_pkg/__init__.py").touch()
    (folder / "outside_pkg/part.py").write_text("VALUE = 3\n")
    return [first, *(folder / name for name in ("outside_b.py", "outside_pkg", "outside_c.py"))]


def test_what_a_module_imports_from_its_folder_is_sent_too(tmp_path: Path) -> None:
    wanted = with_neighbours(tmp_path)
    import_methods(["outside_a"], [tmp_path])
    assert outside_methods.sources_of("outside_a") == wanted
    assert outside_code()["runtime_env"]["py_modules"] == [str(path) for path in wanted]


def test_beside_an_installed_module_nothing_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (first, *_) = with_neighbours(folder)
    monkeypatch.syspath_prepend(str(folder))
    import_methods(["outside_a"])
    assert outside_methods.sources_of("outside_a") == [first]


SCRIPT = """
import shutil, sys
import ray
from pathlib import Path
from fusion.registry import METHODS, import_methods
from sweeps.cluster.ray_connection import outside_code, stay_on_loopback

stay_on_loopback(None)
folder = Path(sys.argv[1])
import_methods(["outside_a"], [folder])
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False,
         **outside_code())
shutil.rmtree(folder)  # as on a node that has no such folder

@ray.remote
def there():
    import outside_a, outside_c
    from fusion.registry import METHODS
    return "outside_a" in METHODS, outside_a.VALUE, str(outside_c.__file__)

known, value, file = ray.get(there.remote())
assert known and value == 3 and not file.startswith(str(folder)), (known, value, file)
print("found")
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_worker_without_the_folder_has_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    with_neighbours(tmp_path / "code")
    (tmp_path / "code/fusion/__init__.py").unlink()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "code")],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.stdout.strip().endswith("found"), done.stdout + done.stderr[-3000:]
