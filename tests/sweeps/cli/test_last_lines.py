"""The last lines of `sweeps run`: the pages that show the sweep."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sweeps.cli.main import where_to_look


@pytest.mark.parametrize(
    ("environment", "hint"),
    [
        ({}, "it asks for a token, which `ray get-auth-token` prints"),
        ({"RAY_AUTH_TOKEN": "x"}, "it asks for a token: $RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "x"}, "it asks for no token"),
    ],
)
def test_the_last_lines_name_the_pages(environment, hint, tmp_path, monkeypatch) -> None:
    """The dashboard's line says how to pass its question; the token itself is not printed."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    outcome = SimpleNamespace(
        mlflow="sqlite:///m.db", page="http://127.0.0.1:5000/#/x", dashboard="http://h:8265",
        folder=SimpleNamespace(path=tmp_path / "one"),
    )  # fmt: skip
    mlflow, ray = where_to_look(outcome)
    assert mlflow.startswith("mlflow   mlflow ui ")
    assert mlflow.endswith("then http://127.0.0.1:5000/#/x")
    assert ray == f"ray      http://h:8265  ({hint})"
    outcome.dashboard = ""  # its cluster ended with the sweep
    assert len(where_to_look(outcome)) == 1
