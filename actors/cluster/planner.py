"""Plan the placement: replicas, shards, devices and memory, as one pure function.

`partition.py` computes the memory of shards and `bin_packing.py` assigns them to nodes; this file
makes the decisions and writes the message where nothing fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal, TypeAlias

from actors.cluster.bin_packing import Node as Node
from actors.cluster.bin_packing import Plan as Plan
from actors.cluster.bin_packing import Resources as Resources
from actors.cluster.bin_packing import Wish, fit
from actors.cluster.node_labels import matches
from actors.cluster.partition import Load as Load
from actors.cluster.partition import cut as cut
from actors.cluster.partition import gigabytes as gigabytes
from actors.cluster.partition import memory, needs, round_up
from fusion.errors import InputError

SHARED = 4
"""Shards that `gpus: auto` puts on one GPU at most: they take turns on its cores, so more of them
only fill the gaps."""


def plan(
    load: Load,
    resources: Resources,
    *,
    replicas: int | None = None,
    shards: int | None = None,
    device: str = "auto",
    gpus: float | Literal["auto"] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Plan:
    """Place as many replicas as fit, cut into shards only where memory demands it.

    CPU: one shard a core, as many replicas as memory allows. GPU: one shard a GPU, or 1/`gpus`.
    The shards of a replica go to as few nodes as can hold them. GPUs without room for passes of
    several tasks' models get a plan without such passes.

    Args:
        load: the model and experts to place.
        resources: the nodes.
        replicas: requested number; None: as many as fit.
        shards: requested number; None: the fewest that fit.
        device: `auto`, `cpu` or `cuda`.
        gpus: fraction of a GPU that a shard reserves; None: 1; `auto`: the smallest 1/n, n ≤ 4,
            that whole replicas fit in. Ignored on CPU.
        labels: labels that nodes must have, in the syntax of Ray's label selectors.

    Raises:
        InputError: it does not fit, or the request exceeds the resources; suggests changes.
    """
    resources = labelled(resources, labels or {})
    if device == "auto":
        device = "cuda" if resources.gpus else "cpu"
    if device == "cuda" and not resources.gpus:
        raise InputError("placement.device: 'cuda'; this machine or cluster has no GPU: use 'cpu'")
    wish = Wish(replicas, shards, device, 1, labels or {})
    fraction = sharing(load, resources, wish) if gpus == "auto" else 1.0 if gpus is None else gpus
    if not 1e-4 <= fraction <= 1:
        raise InputError(f"placement.gpus: {gpus}; a fraction of a GPU, 0.0001 to 1, allowed")
    wish = replace(wish, per_gpu=int(1 / fraction + 1e-9))
    check(wish, load, resources)
    found = fit(load, resources.nodes, wish)
    if found is None and device == "cuda" and load.stacked_bytes:
        load = replace(load, stacked_bytes=0)
        alone = fit(load, resources.nodes, wish)
        found = alone and replace(alone, stacked=False)
    if found is None:
        raise InputError(refusal(load, resources, wish))
    return replace(found, gpus=fraction if device == "cuda" else 0.0, labels=dict(labels or {}))


def labelled(resources: Resources, labels: Mapping[str, str]) -> Resources:
    """The nodes that have these labels.

    Raises:
        InputError: no node has; lists the labels of the nodes.
    """
    if not labels:
        return resources
    nodes = tuple(node for node in resources.nodes if matches(node.labels, labels))
    if nodes:
        return Resources(nodes)
    carried = sorted(
        {f"{key}={node.labels.get(key, '-')}" for node in resources.nodes for key in labels}
    )
    raise InputError(
        f"placement.labels: {dict(labels)}: no node carries them; there: {', '.join(carried)}"
    )


def sharing(load: Load, resources: Resources, wish: Wish) -> float:
    """The smallest 1/n of a GPU, n ≤ `SHARED`, in which a whole replica fits; 1 where none does."""
    if wish.device != "cuda" or wish.shards not in (None, 1) or not resources.gpu_memory:
        return 1.0
    (whole,) = needs(load, 1, "cuda")
    return 1 / min(max(resources.gpu_memory // whole.device, 1), SHARED)


def check(wish: Wish, load: Load, resources: Resources) -> None:
    """Raise InputError where there are fewer segments, GPUs or cores than requested."""
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


def refusal(load: Load, resources: Resources, wish: Wish) -> str:
    """Error message: what is needed, what there is, and which changes would fit."""
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
        bound = max(nodes, key=lambda node: node.memory).bound if nodes else ""
        granted = f" ({bound})" if bound else ""
        said = f"{who} need {need} of memory{alone}, {there} are there{granted}"
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
    """Other values of the request."""
    shards = range(1, len(load.segments) + 1 if wish.shards else 1)
    replicas = range((wish.replicas or 1) - 1, 0, -1)
    shared = range(wish.per_gpu - 1, 0, -1)
    for group in (
        ((f"shards: {n}", replace(wish, shards=n)) for n in shards),
        ((f"replicas: {n}", replace(wish, replicas=n)) for n in replicas),
        # Rounded down, so that n such shards still fit on one GPU.
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
    if load.factors and not load.factored:
        held = replace(load, filed=False, factored=True)
        yield [("placement.weights: factored", held, nodes, wish)]
    if load.largest and not load.filed:
        held = replace(load, filed=True, factored=False)
        yield [("placement.weights: files", held, nodes, wish)]
    half, name = load.halved(), load.half if gpu else "bfloat16"
    yield [
        (f"placement.dtype: {name}", half, nodes, wish),
        ("placement.delta_dtype: bfloat16", replace(load, delta_itemsize=2), nodes, wish),
        (
            f"placement.dtype: {name} with delta_dtype: bfloat16",
            replace(half, delta_itemsize=2),
            nodes,
            wish,
        ),
    ]
    fewer = range(load.experts - 1, 0, -1)
    yield ((f"{t} experts", load.of(t), nodes, wish) for t in fewer)
    if gpu:
        yield [("placement.device: cpu", load, nodes, replace(wish, device="cpu"))]


def enlarged(nodes: tuple[Node, ...], size: int, gpu: bool) -> tuple[Node, ...]:
    """The same nodes, each with at least `size` bytes of memory (or on each GPU)."""
    if gpu:
        return tuple(replace(n, gpu_memory=max(size, n.gpu_memory)) for n in nodes)
    return tuple(replace(n, memory=max(size, n.memory)) for n in nodes)


def fitting(groups: Iterable[Iterable[Option]]) -> str:
    """The first option of each group that fits: `a, b or c`."""
    firsts = (
        next((text for text, load, nodes, wish in group if fit(load, nodes, wish)), "")
        for group in groups
    )
    *rest, last = [text for text in firsts if text] or [""]
    return " or ".join(part for part in (", ".join(rest), last) if part)
