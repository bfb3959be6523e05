"""Reaching Ray: an existing cluster by address, or one of our own on this machine's loopback."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from actors.placement import Resources
from fusion.errors import InputError

# Read by Ray when it is imported or started: no telemetry, no notices that are not the user's.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# A trial that fails reports why, and no metric.
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
# A /dev/shm smaller than the weights (containers: 64 MB) costs speed, not correctness.
os.environ.setdefault("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")


def stay_on_loopback(address: str | None) -> None:
    """Make a cluster of our own listen on 127.0.0.1 only; call before `ray` is imported.

    Ray's public arguments bind the dashboard there, but its servers to the host's address. On
    macOS and Windows Ray keeps to loopback; this variable asks for the same elsewhere.
    """
    if target(address) is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def this_machine() -> Resources:
    """What a cluster of our own would offer."""
    import torch

    gpus = torch.cuda.device_count()
    smallest = min((torch.cuda.mem_get_info(i)[1] for i in range(gpus)), default=0)
    cpus = len(os.sched_getaffinity(0))
    return Resources(cpus, gpus, psutil.virtual_memory().available, smallest)


def of_cluster() -> Resources:
    """What the connected cluster offers; the memory of its smallest node."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Resources(
        cpus=int(sum(node.get("CPU", 0) for node in nodes)),
        gpus=int(sum(node.get("GPU", 0) for node in nodes)),
        memory=int(
            min(node.get("memory", 0) + node.get("object_store_memory", 0) for node in nodes)
        ),
    )


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
            context = ray.init(
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
