"""The tests under `tests/pretend`, in a process that believes that it has a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretend.building import NoCompiler, library
from tests.tiny_pool import TinyPool

ROOT = Path(__file__).parents[1]


def run(pool: TinyPool, which: str) -> None:
    """Run those tests; what they say is the message where one fails."""
    try:
        library()
    except NoCompiler as why:
        pytest.skip(str(why))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.pretend.plugin"]
    command += ["-p", "no:cacheprovider", "-m", which, "tests/pretend"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PRETENDED_POOL": str(pool.root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]


def test_on_a_pretended_gpu(tiny_pool):
    run(tiny_pool, "not slow and not cluster")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_on_a_pretended_gpu_at_length(tiny_pool):
    run(tiny_pool, "slow")
