"""Assign shards to nodes by packing; `partition.py` computes the memory of a shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from actors.cluster.node_labels import matches
from actors.cluster.partition import (
    DATA_STORE_BYTES,
    STORE_MARGIN,
    Load,
    Need,
    balanced,
    blocks_of,
    memory,
    needs,
    store,
)


@dataclass(frozen=True)
class Node:
    """One machine: bytes of main memory, bytes of its smallest GPU (0: not known)."""

    cpus: int
    gpus: int
    memory: int
    gpu_memory: int = 0
    name: str = ""
    id: str = ""
    """Ray's; empty on a machine without a Ray yet."""
    labels: Mapping[str, str] = field(default_factory=dict)
    bound: str = ""
    """What grants less memory than the machine has, for messages; empty: nothing."""


@dataclass(frozen=True)
class Resources:
    """The nodes of a cluster and their resources."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> int:
        """CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    @property
    def memory(self) -> int:
        """Bytes of main memory on the smallest node."""
        return min((node.memory for node in self.nodes), default=0)

    @property
    def gpu_memory(self) -> int:
        """Bytes of the smallest GPU whose size is known; 0: none is known."""
        return min((n.gpu_memory for n in self.nodes if n.gpus and n.gpu_memory), default=0)


@dataclass(frozen=True)
class Plan:
    """Placement of replicas and shards."""

    replicas: int
    shards: int
    """Of each replica."""
    blocks: tuple[tuple[int, int], ...]
    """Segments [start, stop) of each shard."""
    device: str
    threads: int
    """Torch threads of a shard."""
    gpus: float
    """Fraction of a GPU that each shard asks for; 0 on CPU."""
    store_bytes: int
    """Object store of the fullest node: base and task vectors, once a node."""
    shard_bytes: tuple[int, ...]
    """Main memory of each shard beside the shared weights (GPU: all of it, on the device)."""
    total_bytes: int
    """Main memory of the fullest node in all."""
    nodes: tuple[tuple[str, int], ...] = ()
    """Name of each node that is used, and the shards on it as counted here; Ray may choose others
    of the same size."""
    places: tuple[tuple[str, ...], ...] = ()
    """Ids of the nodes that each shard may go to; empty: any."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What those nodes must carry."""
    stacked: bool = True
    """Whether the models of several tasks run in one pass where they learn, see `steps.STACKED`.
    False on GPUs that have no room for the activations of such a pass."""


@dataclass(frozen=True)
class Wish:
    """Requested values; None: as many as fit."""

    replicas: int | None
    shards: int | None
    device: str
    per_gpu: int
    labels: Mapping[str, str] = field(default_factory=dict)

    def slots(self, node: Node) -> int:
        """Number of shards that a node may take."""
        if not matches(node.labels, self.labels):
            return 0
        return node.gpus * self.per_gpu if self.device == "cuda" else node.cpus

    def room(self, node: Node) -> float:
        """Bytes of GPU memory for each shard on a node."""
        return node.gpu_memory // self.per_gpu or float("inf")

    def each(self) -> str:
        """`one a GPU`, or how many share a GPU, for messages."""
        number = "one" if self.per_gpu == 1 or self.device == "cpu" else f"{self.per_gpu}"
        return f"{number} a {'GPU' if self.device == 'cuda' else 'CPU core'}"


def pack(
    shards: Sequence[Need], nodes: Sequence[Node], wish: Wish, most: int
) -> tuple[int, list[list[int]]]:
    """Place replicas one by one, each on as few nodes as can hold it.

    Prefers the node with the largest fraction of free slots, as Ray does.

    Returns:
        The number of replicas placed (at most `most`), and the shards on each node.
    """
    placed: list[list[int]] = [[] for _ in nodes]
    for made in range(most):
        trial, start = [list(there) for there in placed], 0
        while start < len(shards):
            reach = [takes(shards, n, t, start, wish) for n, t in zip(nodes, trial, strict=True)]
            best = max(
                range(len(nodes)),
                key=lambda i: (
                    reach[i],
                    reach[i] and 1 - (len(trial[i]) + 1) / wish.slots(nodes[i]),
                    nodes[i].memory - memory(shards, trial[i]),
                ),
            )
            if reach[best] == 0:
                return made, placed
            trial[best].extend(range(start, start + reach[best]))
            start += reach[best]
        placed = trial
    return most, placed


def takes(shards: Sequence[Need], node: Node, placed: Sequence[int], start: int, wish: Wish) -> int:
    """How many of the shards from `start` on fit on a node beside those it has."""
    free, held = wish.slots(node) - len(placed), set(placed)
    weights = sum(shards[s].weights for s in held)
    host = sum(shards[s].host for s in placed) + DATA_STORE_BYTES
    for at in range(start, len(shards)):
        need = shards[at]
        weights += 0 if at in held else need.weights
        host += need.host
        fits = int(weights * STORE_MARGIN) + host <= node.memory
        if at - start == free or need.device > wish.room(node) or not fits:
            return at - start
    return len(shards) - start


def fit(load: Load, nodes: tuple[Node, ...], wish: Wish) -> Plan | None:
    """Find the plan with the fewest shards that meets the request; return None if no plan does."""
    slots = sum(wish.slots(node) for node in nodes)
    for count in (wish.shards,) if wish.shards else range(1, len(load.segments) + 1):
        most = wish.replicas or slots // count
        if most == 0 or most * count > slots:
            return None
        for chosen in balanced(load, count):
            shards = needs(chosen, count, wish.device)
            made, placed = pack(shards, nodes, wish, most)
            if made >= (wish.replicas or 1):
                break
        else:
            continue
        used = [(node, there) for node, there in zip(nodes, placed, strict=True) if there]
        cores = max(min(node.cpus // len(there) for node, there in used), 1)
        return Plan(
            replicas=made,
            shards=count,
            blocks=blocks_of(chosen, count),
            device=wish.device,
            threads=1 if wish.device == "cuda" else cores,
            gpus=0.0,
            store_bytes=max(store(shards, there) for _, there in used),
            shard_bytes=tuple(s.device if wish.device == "cuda" else s.host for s in shards),
            total_bytes=max(memory(shards, there) for _, there in used),
            nodes=tuple((node.name or node.id, len(there)) for node, there in used),
            places=places(shards, nodes, wish),
        )
    return None


def places(
    shards: Sequence[Need], nodes: Sequence[Node], wish: Wish
) -> tuple[tuple[str, ...], ...]:
    """Ids of the nodes that each shard fits on; empty where all shards fit on all nodes.

    Ray does not know the memory size of GPUs, so placement must be given where sizes differ.
    """
    known = [node for node in nodes if node.id and wish.slots(node)]
    found = []
    for index in range(len(shards)):
        good = [n.id for n in known if takes(shards[: index + 1], n, [], index, wish)]
        found.append(tuple(good))
    return () if all(len(good) == len(known) for good in found) else tuple(found)
