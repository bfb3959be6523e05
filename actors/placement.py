"""How many replicas of how many shards, on what, with how much memory: one pure function.

What a shard takes is in `cut.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from actors.cut import (
    DATA_STORE_BYTES,
    STORE_MARGIN,
    Need,
    blocks_of,
    memory,
    needs,
    round_up,
    store,
)
from actors.cut import Load as Load
from actors.cut import cut as cut
from actors.cut import gigabytes as gigabytes
from fusion.errors import InputError


@dataclass(frozen=True)
class Node:
    """One machine. Bytes of main memory; bytes of its smallest GPU (0: not known)."""

    cpus: int
    gpus: int
    memory: int
    gpu_memory: int = 0
    name: str = ""


@dataclass(frozen=True)
class Resources:
    """What a cluster offers."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> int:
        """Of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        """Of all nodes."""
        return sum(node.gpus for node in self.nodes)

    @property
    def memory(self) -> int:
        """Bytes of main memory on the smallest node."""
        return min((node.memory for node in self.nodes), default=0)

    @property
    def gpu_memory(self) -> int:
        """Bytes of the smallest GPU whose size is known; 0: none is."""
        return min((n.gpu_memory for n in self.nodes if n.gpus and n.gpu_memory), default=0)


@dataclass(frozen=True)
class Plan:
    """Where the experts go."""

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


@dataclass(frozen=True)
class Wish:
    """What was asked for; None: whatever fits."""

    replicas: int | None
    shards: int | None
    device: str
    per_gpu: int

    def slots(self, node: Node) -> int:
        """Shards that a node may take."""
        return node.gpus * self.per_gpu if self.device == "cuda" else node.cpus

    def room(self, node: Node) -> float:
        """Bytes on a GPU for each shard."""
        return node.gpu_memory // self.per_gpu or float("inf")

    def each(self) -> str:
        """`one a GPU`."""
        number = "one" if self.per_gpu == 1 or self.device == "cpu" else f"{self.per_gpu}"
        return f"{number} a {'GPU' if self.device == 'cuda' else 'CPU core'}"


def plan(
    load: Load,
    resources: Resources,
    *,
    replicas: int | None = None,
    shards: int | None = None,
    device: str = "auto",
    gpus: float | None = None,
) -> Plan:
    """Replicas first, shards where memory demands.

    CPU: one shard a core, as many replicas as memory allows. GPU: one shard a GPU, or 1/`gpus`.
    The shards of a replica go to as few nodes as hold them.

    Args:
        load: what has to be placed.
        resources: what there is.
        replicas: a wish; None: as many as fit.
        shards: a wish; None: the fewest that fit.
        device: `auto`, `cpu` or `cuda`.
        gpus: fraction of a GPU that a shard asks for; None: 1. Without meaning on CPU.

    Raises:
        InputError: it does not fit, or more is asked for than there is; says what would do.
    """
    if device == "auto":
        device = "cuda" if resources.gpus else "cpu"
    if device == "cuda" and not resources.gpus:
        raise InputError("placement.device: 'cuda'; this machine or cluster has no GPU: use 'cpu'")
    fraction = 1.0 if gpus is None else gpus
    if not 1e-4 <= fraction <= 1:
        raise InputError(f"placement.gpus: {gpus}; a fraction of a GPU, 0.0001 to 1, allowed")
    wish = Wish(replicas, shards, device, int(1 / fraction + 1e-9))
    check(wish, load, resources)
    found = fit(load, resources.nodes, wish)
    if found is None:
        raise InputError(refusal(load, resources, wish))
    return replace(found, gpus=fraction if device == "cuda" else 0.0)


def check(wish: Wish, load: Load, resources: Resources) -> None:
    """Raise InputError where there are fewer segments, GPUs or cores than wished for."""
    slots = sum(wish.slots(node) for node in resources.nodes)
    shards, replicas, count = wish.shards or 1, wish.replicas or 1, len(load.segments)
    if shards > count:
        has = f"the model has {count} segments: 1 to {count} allowed"
        raise InputError(f"placement.shards: {shards}; {has}")
    if replicas * shards <= slots:
        return
    asked = f".shards: {shards}" if shards > 1 else f".replicas: {replicas}"
    if replicas > 1 and shards > 1:
        asked = f": {replicas} replicas of {shards} shards are {replicas * shards}"
    fewer = f"; replicas: {slots // shards} would do" if slots >= shards > 1 < replicas else ""
    raise InputError(f"placement{asked}; at most {slots}: {wish.each()}{fewer}")


def pack(
    shards: Sequence[Need], nodes: Sequence[Node], wish: Wish, most: int
) -> tuple[int, list[list[int]]]:
    """Place replicas one by one, each on as few nodes as hold it, the emptiest first.

    Returns:
        How many found their place (at most `most`), and the shards on each node.
    """
    placed: list[list[int]] = [[] for _ in nodes]
    for made in range(most):
        trial, start = [list(there) for there in placed], 0
        while start < len(shards):
            reach = [takes(shards, n, t, start, wish) for n, t in zip(nodes, trial, strict=True)]
            best = max(
                range(len(nodes)),
                key=lambda i: (reach[i], nodes[i].memory - memory(shards, trial[i])),
            )
            if reach[best] == 0:
                return made, placed
            trial[best].extend(range(start, start + reach[best]))
            start += reach[best]
        placed = trial
    return most, placed


def takes(shards: Sequence[Need], node: Node, placed: Sequence[int], start: int, wish: Wish) -> int:
    """How many of the shards from `start` on a node can take beside those it has."""
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
    """The plan with the fewest shards that keeps the wish; None where there is none."""
    slots = sum(wish.slots(node) for node in nodes)
    for count in (wish.shards,) if wish.shards else range(1, len(load.segments) + 1):
        most = wish.replicas or slots // count
        if most == 0 or most * count > slots:
            return None
        shards = needs(load, count, wish.device)
        made, placed = pack(shards, nodes, wish, most)
        if made < (wish.replicas or 1):
            continue
        used = [(node, there) for node, there in zip(nodes, placed, strict=True) if there]
        cores = max(min(node.cpus // len(there) for node, there in used), 1)
        return Plan(
            replicas=made,
            shards=count,
            blocks=blocks_of(load.segments, count),
            device=wish.device,
            threads=1 if wish.device == "cuda" else cores,
            gpus=0.0,
            store_bytes=max(store(shards, there) for _, there in used),
            shard_bytes=tuple(s.device if wish.device == "cuda" else s.host for s in shards),
            total_bytes=max(memory(shards, there) for _, there in used),
        )
    return None


def refusal(load: Load, resources: Resources, wish: Wish) -> str:
    """What is needed, what is there, and what would do."""
    shards, replicas, nodes = wish.shards or 1, wish.replicas or 1, resources.nodes
    found = needs(load, shards, wish.device)
    if wish.device == "cuda" and fit(load, enlarged(nodes, 2**62, True), wish):
        who = f"the largest of {shards} shards" if shards > 1 else "one replica"
        need = gigabytes(max(shard.device for shard in found))
        shared = f" shared by {wish.per_gpu}" if wish.per_gpu > 1 else ""
        said = f"{who} needs {need} on a GPU of {gigabytes(resources.gpu_memory)}{shared}"
    else:
        who = f"{replicas} replica(s)" + (f" of {shards} shards" if shards > 1 else "")
        need = gigabytes(memory(found, [*range(shards)] * replicas))
        alone = " on one node" if len(nodes) > 1 else ""
        there = gigabytes(max((node.memory for node in nodes), default=0))
        said = f"{who} need {need} of memory{alone}, {there} are there"
    if adjusted := fitting(adjustments(load, nodes, wish)):
        return f"placement: {said}; {adjusted} fits"
    why = "no number of shards fits"
    if wish.device == "cpu" and len(nodes) == 1:
        why = "shards of one machine share its weights, so more of them save nothing"
    ways = fitting(changes(load, nodes, replace(wish, shards=None)))
    return f"placement: {said}; {why}; {ways or 'no one change'} would do"


Option: TypeAlias = tuple[str, Load, tuple[Node, ...], Wish]
"""What is said of it, and what would then have to fit."""


def adjustments(load: Load, nodes: tuple[Node, ...], wish: Wish) -> Iterator[Iterable[Option]]:
    """Other values of what was wished for."""
    shards = range(1, len(load.segments) + 1 if wish.shards else 1)
    replicas = range((wish.replicas or 1) - 1, 0, -1)
    shared = range(wish.per_gpu - 1, 0, -1)
    for group in (
        ((f"shards: {n}", replace(wish, shards=n)) for n in shards),
        ((f"replicas: {n}", replace(wish, replicas=n)) for n in replicas),
        # Rounded down, so that n shards of it still fit on one GPU.
        ((f"gpus: {int(1000 / n) / 1000:g}", replace(wish, per_gpu=n)) for n in shared),
    ):
        yield ((f"placement.{text}", load, nodes, other) for text, other in group)


def changes(load: Load, nodes: tuple[Node, ...], wish: Wish) -> Iterator[Iterable[Option]]:
    """Other machines, precisions or pools."""
    gpu = wish.device == "cuda"
    *others, best = sorted(nodes, key=lambda n: (n.gpu_memory if gpu else 0, n.memory))
    if gpu:
        grown = [(*others, replace(best, gpus=best.gpus + more)) for more in range(1, 17)]
    else:
        grown = [(*nodes, *(best,) * more) for more in range(1, 17)]
    of = gigabytes(best.gpu_memory if gpu else best.memory)
    count, kind = (sum(n.gpus for n in nodes), "GPUs") if gpu else (len(nodes), "nodes")
    yield ((f"{count + i} {kind} of {of}", load, n, wish) for i, n in enumerate(grown, start=1))
    one = replace(wish, replicas=wish.replicas or 1)
    for on_gpu, what in ((True, "GPU memory"), (False, "main memory")):
        if found := fit(load, enlarged(nodes, 2**62, on_gpu), one):
            least = max(found.shard_bytes) * wish.per_gpu if on_gpu else found.total_bytes
            size = round_up(least)
            yield [(f"{what} of {gigabytes(size)}", load, enlarged(nodes, size, on_gpu), wish)]
    half = load.halved()
    yield [
        ("placement.dtype: float16", half, nodes, wish),
        ("float16 for model and task vectors", replace(half, delta_itemsize=2), nodes, wish),
    ]
    fewer = range(load.experts - 1, 0, -1)
    yield ((f"{t} experts", replace(load, experts=t), nodes, wish) for t in fewer)
    if gpu:
        yield [("placement.device: cpu", load, nodes, replace(wish, device="cpu"))]


def enlarged(nodes: tuple[Node, ...], size: int, gpu: bool) -> tuple[Node, ...]:
    """The same with at least `size` bytes of memory (on each GPU) everywhere."""
    if gpu:
        return tuple(replace(n, gpu_memory=max(size, n.gpu_memory)) for n in nodes)
    return tuple(replace(n, memory=max(size, n.memory)) for n in nodes)


def fitting(groups: Iterable[Iterable[Option]]) -> str:
    """The first of each group that fits: `a, b or c`."""
    firsts = (
        next((text for text, load, nodes, wish in group if fit(load, nodes, wish)), "")
        for group in groups
    )
    *rest, last = [text for text in firsts if text] or [""]
    return " or ".join(part for part in (", ".join(rest), last) if part)
