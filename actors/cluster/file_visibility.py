"""Find the nodes that can read a set of files, as a Ray label selector."""

from __future__ import annotations

from collections.abc import Iterable

import ray

from actors.cluster.node_labels import selector
from actors.cluster.nodes import ask, seeing


def workplaces(files: Iterable[str]) -> dict[str, str] | None:
    """Label selector of the nodes that see these files; empty: any node.

    Nodes without processors do not count. On a single machine no node is queried.

    Returns:
        None where no node sees all files: then this process, which does, must read them itself.

    Raises:
        InputError: the project is not installed on a node.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    able = [node["NodeID"] for node in alive if node["Resources"].get("CPU", 0) >= 1]
    if len(alive) == 1:
        return {}
    wanted = sorted(set(files))
    found = ask(dict.fromkeys(able, False), wanted)
    good = seeing(able, found, wanted)
    if good == able:
        return {}
    return selector(tuple(good), {}) if good else None
