"""Resources of a `cluster.yaml`: its nodes, without connecting to any of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

from actors.cluster.planner import Node, Resources
from actors.files.documents import checked, read_yaml, shown
from fusion.errors import InputError, reading

MEMORY = {
    "T4": 16, "L4": 24, "A10G": 24, "V100": 16, "A100": 40, "A100-40G": 40, "A100-80G": 80,
    "H100": 80, "H200": 141, "L40S": 48, "B200": 180,
}  # fmt: skip
"""GB of the GPUs that Ray's label `ray.io/accelerator-type` names; of V100, the smaller one."""

TYPE = "ray.io/accelerator-type"
MAX_NODES = 64
"""Nodes of a type counted at most: more do not change what fits."""


MOST = 1e18
"""Of any resource."""

LATER = ConfigDict(extra="ignore")
"""The file is Ray's: it has many fields that say nothing of sizes."""

Count = Annotated[int, Field(ge=0, le=10**6)]


@dataclass(frozen=True)
class NodeType:
    """One of `available_node_types`."""

    __pydantic_config__ = LATER

    resources: dict[str, float] | None = None
    labels: dict[str, str] | None = None
    max_workers: Count | None = None
    min_workers: Count | None = None


@dataclass(frozen=True)
class Provider:
    """`provider`."""

    __pydantic_config__ = LATER

    type: str = ""
    worker_ips: list[str] | None = None


@dataclass(frozen=True)
class ClusterFile:
    """The fields of a cluster file that are read."""

    __pydantic_config__ = LATER

    provider: Provider | None = None
    head_node_type: str | None = None
    available_node_types: dict[str, NodeType] | None = None
    head_start_ray_commands: list[str] | None = None
    worker_start_ray_commands: list[str] | None = None


def of_file(path: Path, gpu_memory: float = 0.0) -> Resources:
    """Resources of all nodes that a cluster file may have: its hosts, or each node type's maximum.

    Sizes come from `available_node_types.<type>.resources` (CPU, GPU, memory) and `labels`; with
    provider `local` from the options of the two `ray start` lines (`--num-cpus`, `--num-gpus`,
    `--memory`, `--labels`).

    Args:
        path: the file.
        gpu_memory: GB of each GPU, where the label `ray.io/accelerator-type` does not say it.

    Raises:
        InputError: no such file, or it does not say how large its nodes are.
    """
    where = f"--cluster: {path}"
    data = checked(ClusterFile, read_yaml(path, "--cluster"), where)
    if data.provider is None:
        raise InputError(f"{where}: provider: missing; a file for `ray up` is needed")
    found = hosts(data, path) if data.provider.type == "local" else types(data, path)
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


def types(data: ClusterFile, path: Path) -> list[Kind]:
    """Nodes of a cloud's node types."""
    found: list[Kind] = []
    for name, node in (data.available_node_types or {}).items():
        count = (node.max_workers or 0) + (name == data.head_node_type)
        field = f"available_node_types.{name}.resources"
        size = complete(node.resources or {}, f"{path}: {field}")
        found.append((name, min(count, MAX_NODES), size, node.labels or {}))
    if not found:
        raise InputError(f"--cluster: {path}: available_node_types: missing")
    return found


def hosts(data: ClusterFile, path: Path) -> list[Kind]:
    """Nodes of provider `local`: one head, and one worker for each address."""
    workers = len(data.provider.worker_ips or ()) if data.provider else 0
    found: list[Kind] = []
    for name, key, count, commands in (
        ("head", "head_start_ray_commands", 1, data.head_start_ray_commands),
        ("worker", "worker_start_ray_commands", min(workers, MAX_NODES),
         data.worker_start_ray_commands),
    ):  # fmt: skip
        where = f"{path}: {key}: `ray start`"
        words = started(commands or [], where)
        given = {"CPU": "num-cpus", "GPU": "num-gpus", "memory": "memory"}
        told = {kind: words[word] for kind, word in given.items() if word in words}
        size = {kind: amount(text, f"{where}: --{given[kind]}") for kind, text in told.items()}
        pairs = [pair.partition("=") for pair in words.get("labels", "").split(",") if pair]
        labels = {label: value for label, _, value in pairs}
        found.append((name, count, complete(size, where), labels))
    return found


def amount(text: str, where: str) -> float:
    """Value of a numeric option of `ray start`.

    Raises:
        InputError: it is no number.
    """
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--cluster: {where}: {shown(text)}: a number needed") from None


def started(commands: list[str], where: str) -> dict[str, str]:
    """Options of the `ray start` in a list of commands.

    Raises:
        InputError: it has a quote that does not end.
    """
    for command in commands:
        if "ray start" in command:
            with reading(f"--cluster: {where}"):
                words = re.split(r"\s--", " " + " ".join(shlex.split(command)))[1:]
            pairs = (re.split(r"[=\s]", word, maxsplit=1) for word in words)
            return {pair[0]: pair[1] if len(pair) > 1 else "" for pair in pairs}
    return {}


def complete(size: Mapping[str, float], where: str) -> Mapping[str, float]:
    """Return the sizes if CPUs and memory are among them.

    Raises:
        InputError: a missing field, with an example; an invalid amount.
    """
    for kind, value in size.items():
        if not 0 <= value < MOST:
            raise InputError(f"--cluster: {where}: {kind}: {value}: at least 0, below 1e18 needed")
    missing = [kind for kind in ("CPU", "memory") if kind not in size]
    if missing:
        raise InputError(
            f"--cluster: {where}: {' and '.join(missing)} missing: nothing is asked of the hosts,"
            " so the file must say how large they are (CPU, memory in bytes, GPU); or plan against"
            " the running cluster: --address"
        )
    return size
