"""How many replicas, on what, with how much memory: one pure function."""

from __future__ import annotations

from dataclasses import dataclass

from fusion.errors import InputError

PROCESS_BYTES = 700 * 2**20
"""Resident memory of a replica's process before any weight: interpreter, torch, transformers."""

GPU_CONTEXT_BYTES = 600 * 2**20
"""A CUDA context and its libraries."""

STORE_MARGIN = 1.15
"""Object store over what is put into it: Ray's own objects and fragmentation."""

DATA_STORE_BYTES = 300 * 2**20
"""Object store for images on their way into the pixel cache, and for results."""


@dataclass(frozen=True)
class Resources:
    """What a cluster offers."""

    cpus: int
    gpus: int
    memory: int
    """Bytes of main memory on the smallest node."""
    gpu_memory: int = 0
    """Bytes on the smallest GPU."""


@dataclass(frozen=True)
class Plan:
    """Where the experts go."""

    replicas: int
    device: str
    threads: int
    """Torch threads of a replica."""
    store_bytes: int
    """Object store: base and task vectors, once a node."""
    replica_bytes: int
    """Main memory of one replica beside the shared weights (GPU: memory on the device)."""
    total_bytes: int
    """Main memory of the node in all."""


def plan(
    model_bytes: int,
    experts: int,
    activation_bytes: int,
    resources: Resources,
    *,
    replicas: int | None = None,
    device: str = "auto",
) -> Plan:
    """Replicas of one resident model over shared weights.

    CPU: one replica a core (each on its share of the threads), as many as memory allows; base and
    task vectors lie once in the node's object store and are mapped by all. GPU: one replica a GPU,
    which also holds base and task vectors on the device.

    Args:
        model_bytes: the fused tensors of one model, in float32.
        experts: T.
        activation_bytes: peak of one forward batch.
        resources: what there is.
        replicas: a wish; None: as many as fit.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        InputError: it does not fit, or more is asked for than there is; says what would do.
    """
    if device == "auto":
        device = "cuda" if resources.gpus else "cpu"
    if device == "cuda" and not resources.gpus:
        raise InputError("placement.device: 'cuda'; this machine or cluster has no GPU: use 'cpu'")
    weights = model_bytes * (experts + 1)
    store = int(weights * STORE_MARGIN) + DATA_STORE_BYTES
    work = model_bytes + activation_bytes
    slots = resources.gpus if device == "cuda" else max(resources.cpus, 1)
    if replicas is not None and replicas > slots:
        raise InputError(
            f"placement.replicas: {replicas}; at most {slots}: one a "
            f"{'GPU' if device == 'cuda' else 'CPU core'}"
        )
    if device == "cuda":
        needed = weights + work + GPU_CONTEXT_BYTES
        if resources.gpu_memory and needed > resources.gpu_memory:
            raise InputError(
                f"placement: a replica needs {gigabytes(needed)} on a GPU of "
                f"{gigabytes(resources.gpu_memory)}; use fewer experts or placement.device: cpu"
            )
        each, host = needed, PROCESS_BYTES
    else:
        each, host = work + PROCESS_BYTES, work + PROCESS_BYTES
    fitting = (resources.memory - store) // host
    count = min(slots, fitting) if replicas is None else replicas
    if fitting < max(count, 1):
        wanted = max(count, 1)
        remedy = "fewer replicas" if fitting > 0 else "fewer experts or a larger node"
        raise InputError(
            f"placement: {wanted} replica(s) need {gigabytes(store + wanted * host)} of memory, "
            f"{gigabytes(resources.memory)} are there; use {remedy}"
        )
    threads = 1 if device == "cuda" else max(resources.cpus // count, 1)
    return Plan(count, device, threads, store, each, store + count * host)


def gigabytes(size: float) -> str:
    """`1.25 GB` (10⁹ bytes).

    >>> gigabytes(1_250_000_000)
    '1.25 GB'
    """
    return f"{size / 1e9:.2f} GB"
