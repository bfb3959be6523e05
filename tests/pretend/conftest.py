"""These tests run in a process of their own (`tests/test_pretended_gpu.py` starts it)."""

import os
import sys
from pathlib import Path

import pytest

from tests.tiny_pool import TinyPool, make_pool

POOL = "PRETENDED_POOL"
"""Environment: where the process that starts this one has made the tiny pool."""

# Once PyTorch believes in a GPU it does so for good: not in the process of all other tests.
collect_ignore_glob = [] if "tests.pretend.plugin" in sys.modules else ["*.py"]


@pytest.fixture(scope="session")
def tiny_pool(tmp_path_factory: pytest.TempPathFactory) -> TinyPool:
    given = os.environ.get(POOL)
    return TinyPool(Path(given)) if given else make_pool(tmp_path_factory.mktemp("pool"))
