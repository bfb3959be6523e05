"""Which nodes can work on files: those that see them; and this process, where none does."""

from __future__ import annotations

from collections.abc import Iterable

import ray

from actors.cluster.node_labels import selector
from actors.cluster.nodes import ask, seeing


def workplaces(files: Iterable[str]) -> dict[str, str] | None:
    """Where tasks that read these files may go, as a label selector; empty: to any node.

    Nodes without processors do not count. On one machine nothing is asked.

    Returns:
        None where no node sees all files: this process, which does, must read them itself.

    Raises:
        InputError: a node lacks the project.
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
