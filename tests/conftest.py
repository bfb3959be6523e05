"""One Ray cluster for the whole test run, on loopback, of a stated size; one tiny pool."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

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
def tiny_pool(tmp_path_factory: pytest.TempPathFactory) -> TinyPool:
    """A base, three experts and three tasks, made by the project's own code."""
    return make_pool(tmp_path_factory.mktemp("pool"))
