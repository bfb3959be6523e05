"""Reaching Ray: an existing cluster by address, or one of our own on this machine's loopback."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from actors.placement import Node, Resources
from fusion.errors import InputError

# Read by Ray when it is imported or started: no telemetry, no notices that are not the user's.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# A trial that fails reports why, and no metric.
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
# A /dev/shm smaller than the weights (containers: 64 MB) costs speed, not correctness.
os.environ.setdefault("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")

PATIENCE = 60.0
"""Seconds for a cluster's nodes to say how large their GPUs are."""


def stay_on_loopback(address: str | None) -> None:
    """Make a cluster of our own listen on 127.0.0.1 only; call before `ray` is imported.

    Ray's public arguments bind the dashboard there, but its servers to the host's address. On
    macOS and Windows Ray keeps to loopback; this variable asks for the same elsewhere.
    """
    if target(address) is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def this_machine() -> Resources:
    """What a cluster of our own would offer."""
    gpus = gpu_sizes()
    cpus = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory().available
    return Resources((Node(cpus, len(gpus), memory, min(gpus, default=0), "this machine"),))


def of_cluster() -> Resources:
    """What the connected cluster offers, node by node."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    sizes = gpu_memory([node["NodeID"] for node in alive if node["Resources"].get("GPU")])
    return Resources(
        tuple(
            Node(
                cpus=int(there.get("CPU", 0)),
                gpus=int(there.get("GPU", 0)),
                memory=int(there.get("memory", 0) + there.get("object_store_memory", 0)),
                gpu_memory=sizes.get(node["NodeID"], 0),
                name=node["NodeManagerHostname"],
            )
            for node in alive
            for there in [node["Resources"]]
        )
    )


def gpu_sizes() -> list[int]:
    """Bytes of each GPU that this process may use."""
    import torch

    return [torch.cuda.mem_get_info(index)[1] for index in range(torch.cuda.device_count())]


def gpu_memory(nodes: list[str]) -> dict[str, int]:
    """Bytes of the smallest GPU, a node. Nodes that do not answer in `PATIENCE` are left out.

    Asked by a task on each node that takes no GPU of its own, and whose process ends with it, so
    that no CUDA context stays behind.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(gpu_sizes)
    asked = {
        probe.options(
            name="ask for GPU memory",
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            # Else a worker without a GPU of its own may be shown none.
            runtime_env={"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}},
        ).remote(): node
        for node in nodes
    }
    done, late = (
        ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE) if asked else ([], [])
    )
    for ref in late:
        ray.cancel(ref, force=True)
    found = {}
    for ref in done:
        # A node whose GPUs torch cannot see (or that just went) stays at "not known".
        with suppress(ray.exceptions.RayError):
            found[asked[ref]] = min(ray.get(ref), default=0)
    return found


def target(address: str | None) -> str | None:
    """The cluster to use: as asked for, else `$RAY_ADDRESS`; None: one of our own."""
    return address or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def connected(address: str | None, store_bytes: int) -> Iterator[str]:
    """Ray, for the length of a sweep. What we start we stop; what we found we leave running.

    Yields:
        The dashboard's address; empty where there is none.

    Raises:
        InputError: no cluster at that address.
    """
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if ray.is_initialized():
        yield ""
        return
    try:
        if address:
            context = ray.init(address=address, **quiet)
        else:
            # "local": without it Ray would join whatever cluster was last started on this machine.
            context = ray.init(
                address="local",
                num_cpus=len(os.sched_getaffinity(0)),
                object_store_memory=store_bytes,
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                **quiet,
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"--address: {address!r}: Ray cannot be reached: {reason}") from error
    try:
        yield f"http://{context.dashboard_url}" if context.dashboard_url else ""
    finally:
        ray.shutdown()
