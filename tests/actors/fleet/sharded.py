"""What the tests of sharded fleets share: plans, and what is seen of a fleet from outside."""

import os
import sys
import time

import psutil
import ray

from actors.cluster.planner import Plan

SPLIT = {1: ((0, 4),), 2: ((0, 2), (2, 4)), 3: ((0, 1), (1, 3), (3, 4))}
"""Shards -> which of the tiny pool's four segments each has."""


def plan_of(replicas: int, shards: int = 1, gpus: float = 0.0) -> Plan:
    return Plan(replicas, shards, SPLIT[shards], "cpu", 1, gpus, 0, (0,) * shards, 0)


def ours(*names: str) -> list[str]:
    """Titles of this driver's Ray workers that run one of these."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and any(name in title for name in names):
            found.append(title)
    return found


def standing() -> list[str]:
    """Placement groups that hold a place, or want one."""
    table = ray.util.placement_group_table()
    return [key for key, each in table.items() if each["state"] != "REMOVED"]


def wait_until(what, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def say(*what: object) -> None:
    """To whoever reads this process's output."""
    sys.stdout.write(" ".join(map(str, what)) + "\n")
    sys.stdout.flush()
