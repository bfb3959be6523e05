"""Methods of other packages on a running cluster and in its jobs: what Ray is given."""

from __future__ import annotations

import json
import os
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
