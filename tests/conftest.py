"""Fixtures of all tests: one Ray cluster and one tiny pool a run; which tests run side by side."""

import os
from collections.abc import Iterator

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits

from sweeps.cluster import ray_connection
from tests.tiny_pool import TinyPool, make_pool

ray_connection.stay_on_loopback(None)  # before any test module imports ray
os.environ.pop("MLFLOW_TRACKING_URI", None)  # no test sends to the user's server

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

LONGEST = "tests/test_pretended_gpu.py"
"""The file, without Ray, whose tests take longest: begun first, or all would wait for it."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group the tests for `pytest -n 2 --dist loadgroup`.

    All that use Ray are one group, and first: one process has the session's cluster, and no two
    clusters start at a time. Of the other tests each file is a group, so that what a file's tests
    share is made once.
    """
    if not beside_another(config):
        return
    groups = {item: "ray" if on_ray(item) else item.nodeid.split("::")[0] for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    first = {"ray": 0, LONGEST: 1}
    items.sort(key=lambda item: first.get(groups[item], 2))


def beside_another(config: pytest.Config) -> bool:
    """Whether this is one of the processes of `pytest -n`."""
    return hasattr(config, "workerinput")


def on_ray(item: pytest.Item) -> bool:
    """Whether a test starts Ray, or uses the session's."""
    marked = item.get_closest_marker("ray") is not None
    return marked or "ray_cluster" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    import ray

    ray.init(
        address="local",
        num_cpus=4,  # logical: a fleet of two stands while others start
        object_store_memory=300 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
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
