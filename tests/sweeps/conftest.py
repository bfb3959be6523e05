"""No sweep of a test reads or fills the user's cache."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> Path:
    """No test reads or fills the user's cache; one cache a run, as a user would have."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("FUSION_SWEEPS_CACHE", str(folder))
    return folder
