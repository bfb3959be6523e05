"""Examples as modules, and as their readers run them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from actors.embedded import EmbeddedPool
from actors.files.embedded_pool import folders
from fusion import merge_models
from tests.tiny_pool import TASKS, TinyPool

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

Script = Callable[..., str]
"""(words of a command, cwd=…) -> what it printed."""


def example(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def installed(project: Path, site: Path) -> None:
    """What pip leaves of a project beside its modules: its name and its entry points."""
    about = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    info = site / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n"
    )
    lines = []
    for group, points in about["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def tiny(tiny_pool: TinyPool) -> EmbeddedPool:
    """The tiny pool's folders, as those of an embedded pool."""
    return folders(tiny_pool.root, list(TASKS))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This process finds the entry points of `pyproject.toml`, whatever was installed when."""
    installed(ROOT, tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert next(p.name for p in merge_models.entry_points(group=merge_models.READERS)) == "pool"


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Script:
    """Runs a command as a reader does, with a cache of this session: a pool is made once.

    The command must end with status 0.
    """
    place = tmp_path_factory.mktemp("reader")
    installed(ROOT, place / "site")
    path = os.pathsep.join([str(place / "site"), str(ROOT)])
    variables = {
        "PYTHONPATH": path,
        "FUSION_SWEEPS_CACHE": str(place / "cache"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }

    def run(*words: object, cwd: Path) -> str:
        done = subprocess.run(
            [*map(str, words)], cwd=cwd, env={**os.environ, **variables}, text=True,
            capture_output=True, timeout=1200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
        return done.stdout

    return run
