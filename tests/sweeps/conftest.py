"""No sweep of a test reads or fills the user's cache; trials as a ledger holds them."""

from pathlib import Path
from typing import Any

import pytest

from sweeps.results.ledger import Entry


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> Path:
    """No test reads or fills the user's cache; one cache a run, as a user would have."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("FUSION_SWEEPS_CACHE", str(folder))
    return folder


def entry(key: str, method: str = "ties", **known: Any) -> Entry:
    """A finished trial of a static method, judged on `select`; `known`: its other fields."""
    given = {"kind": "static", "params": {}, "status": "done", "split": "select"} | known
    return Entry(key, method, **given)
