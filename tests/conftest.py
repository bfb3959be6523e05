"""Fixtures of all tests: a Ray cluster a process, a tiny pool a run; what runs side by side."""

import os
import re
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from sweeps.cluster import ray_connection
from sweeps.console import redact
from tests.tiny_pool import TinyPool, make_pool

ray_connection.stay_on_loopback(None)  # before any test module imports ray
os.environ.pop("MLFLOW_TRACKING_URI", None)  # no test sends to the user's server
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the hub; read when its library is imported
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # Started by `nohup`: programs that tests start would ignore a hang-up, too. They do not inherit
    # a handler.
    signal.signal(signal.SIGHUP, lambda number, frame: None)

# `make test` tries the same few examples each time; `make fuzz` thousands, from a random seed that
# is printed with a failure (`--hypothesis-seed` repeats it).
ALWAYS = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("test", max_examples=40, derandomize=True, **ALWAYS)
settings.register_profile(
    "fuzz", max_examples=int(os.environ.get("FUZZ_EXAMPLES", "3000")), print_blob=True, **ALWAYS
)
settings.load_profile("test")

ROOT = Path(__file__).parents[1]
LONGEST = "tests/test_pretended_gpu.py"
"""The file, without Ray, whose tests take longest: begun first, or all would wait for it."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """How `pytest -n 2` shares tests out: the files on Ray are two groups, each other file is one.

    Tests on Ray wait for processes that start, most of their time; so those of `actors` and those
    of `sweeps` run side by side. What a file's tests share is made once.
    """
    return ByFile(config, log)


class ByFile(LoadScopeScheduling):
    """Groups of tests by the file that they are in."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return f"ray {package_of(file)}" if names_ray(file) else file


def package_of(file: str) -> str:
    """`actors` for tests/actors/…; `sweeps` for all other files."""
    return "actors" if file.startswith("tests/actors/") else "sweeps"


@cache
def names_ray(file: str) -> bool:
    """Whether a file of tests uses Ray, as its text says."""
    text = (ROOT / file).read_text()
    return bool(re.search(r"\bray_cluster\b|pytest\.mark\.ray\b", text))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the longest groups: the tests on Ray of each package, then one long file."""
    if not beside_another(config):
        return
    files = {item: item.nodeid.split("::")[0] for item in items}
    if unnamed := {files[item] for item in items if on_ray(item) and not names_ray(files[item])}:
        raise pytest.UsageError(f"use Ray without `ray_cluster` or `mark.ray`: {unnamed}")
    items.sort(key=lambda item: begins(files[item]))


def begins(file: str) -> tuple[bool, str, bool]:
    """Sort key of a file of tests: which group begins first."""
    ray = names_ray(file)
    return not ray, package_of(file) if ray else "", file != LONGEST


def beside_another(config: pytest.Config) -> bool:
    """Whether this is one of the processes of `pytest -n`."""
    return hasattr(config, "workerinput")


def on_ray(item: pytest.Item) -> bool:
    """Whether a test starts Ray, or uses the session's."""
    marked = item.get_closest_marker("ray") is not None
    return marked or "ray_cluster" in getattr(item, "fixturenames", ())


@pytest.fixture(autouse=True)
def no_secrets_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins without learnt secrets: hundreds of others' would be sought in each text."""
    monkeypatch.setattr(redact, "SECRETS", set())


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    import ray

    def start() -> None:
        ray.init(
            address="local",
            num_cpus=4,  # logical: a fleet of two stands while others start
            object_store_memory=300 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
        )

    try:
        start()
    except Exception:  # Ray's half a minute to start is short on a busy machine: as sweeps, twice
        ray.shutdown()
        start()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_pool(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> TinyPool:
    """A base, three experts and three tasks, made by the project's own code; once a run."""
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if beside_another(pytestconfig) else root) / "pool"
    with FileLock(root.with_suffix(".lock")):
        if not (root / "made").exists():
            make_pool(root)
            (root / "made").touch()
    return TinyPool(root)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One torch thread: sums are made in the same order everywhere; toy tensors wait for none."""
    import torch

    threads = torch.get_num_threads()
    with threadpool_limits(1):  # NumPy's and SciPy's too
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(threads)
