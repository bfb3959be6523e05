"""What a `cluster.yaml` promises: its nodes, without asking any of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.documents import read_yaml
from actors.placement import Node, Resources
from fusion.errors import InputError, reading

MEMORY = {
    "T4": 16, "L4": 24, "A10G": 24, "V100": 16, "A100": 40, "A100-40G": 40, "A100-80G": 80,
    "H100": 80, "H200": 141, "L40S": 48, "B200": 180,
}  # fmt: skip
"""GB of the GPUs that Ray's label `ray.io/accelerator-type` names; of V100, the smaller one."""

TYPE = "ray.io/accelerator-type"
MAX_NODES = 64
"""Nodes of a type counted at most: more do not change what fits."""


def of_file(path: Path, gpu_memory: float = 0.0) -> Resources:
    """All nodes that a cluster file may have: its hosts, or each node type's largest number.

    Sizes come from `available_node_types.<type>.resources` (CPU, GPU, memory) and `labels`; with
    provider `local` from the options of the two `ray start` lines (`--num-cpus`, `--num-gpus`,
    `--memory`, `--labels`).

    Args:
        path: the file.
        gpu_memory: GB of each GPU, where the label `ray.io/accelerator-type` does not say it.

    Raises:
        InputError: no such file, or it does not say how large its nodes are.
    """
    data = read_yaml(path, "--cluster")
    with reading(f"--cluster: {path}"):
        return resources_of(data, path, gpu_memory)


def resources_of(data: Any, path: Path, gpu_memory: float) -> Resources:
    """The nodes that a cluster file's content says. See `of_file`."""
    if not isinstance(data, Mapping) or not isinstance(data.get("provider"), Mapping):
        raise InputError(f"--cluster: {path}: provider: missing; a file for `ray up` is needed")
    found = hosts(data, path) if data["provider"].get("type") == "local" else types(data, path)
    nodes = tuple(
        Node(
            cpus=int(size["CPU"]),
            gpus=int(size.get("GPU", 0)),
            memory=int(size["memory"]),
            gpu_memory=int((gpu_memory or MEMORY.get(labels.get(TYPE, ""), 0)) * 1e9),
            name=name,
            id=f"{name}-{number}",
            labels=labels,
        )
        for name, count, size, labels in found
        for number in range(count)
    )
    return Resources(nodes)


Kind = tuple[str, int, Mapping[str, float], Mapping[str, str]]
"""Name, how many, resources, labels."""


def types(data: Mapping[str, Any], path: Path) -> list[Kind]:
    """The node types of a cloud."""
    found = []
    for name, node in (data.get("available_node_types") or {}).items():
        is_head = name == data.get("head_node_type")
        count = int(node.get("max_workers", 0)) + is_head
        field = f"available_node_types.{name}.resources"
        size = checked(node.get("resources") or {}, f"{path}: {field}")
        found.append((name, min(count, MAX_NODES), size, node.get("labels") or {}))
    if not found:
        raise InputError(f"--cluster: {path}: available_node_types: missing")
    return found


def hosts(data: Mapping[str, Any], path: Path) -> list[Kind]:
    """The hosts of provider `local`: one head, and a worker an address."""
    workers = len(data["provider"].get("worker_ips") or ())
    found: list[Kind] = []
    for name, key, count in (
        ("head", "head_start_ray_commands", 1),
        ("worker", "worker_start_ray_commands", min(workers, MAX_NODES)),
    ):
        words = started(data.get(key) or [])
        given = {"CPU": "num-cpus", "GPU": "num-gpus", "memory": "memory"}
        size = {kind: float(words[word]) for kind, word in given.items() if word in words}
        labels = dict(pair.split("=", 1) for pair in words.get("labels", "").split(",") if pair)
        found.append((name, count, checked(size, f"{path}: {key}: `ray start`"), labels))
    return found


def started(commands: list[str]) -> dict[str, str]:
    """The options of the `ray start` among some commands."""
    for command in commands:
        if "ray start" in command:
            words = re.split(r"\s--", " " + " ".join(shlex.split(command)))[1:]
            pairs = (re.split(r"[=\s]", word, maxsplit=1) for word in words)
            return {pair[0]: pair[1] if len(pair) > 1 else "" for pair in pairs}
    return {}


def checked(size: Mapping[str, float], where: str) -> Mapping[str, float]:
    """The sizes, if CPUs and memory are among them.

    Raises:
        InputError: what is missing, and how to say it.
    """
    missing = [kind for kind in ("CPU", "memory") if kind not in size]
    if missing:
        raise InputError(
            f"--cluster: {where}: {' and '.join(missing)} missing: nothing is asked of the hosts,"
            " so the file must say how large they are (CPU, memory in bytes, GPU); or plan against"
            " the running cluster: --address"
        )
    return size
