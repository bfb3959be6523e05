"""Links between a pipeline and shards that are actors: calls, and transport of activations.

By default, results go through Ray's object store as NumPy arrays, which readers map without a copy.
If every shard has its own GPU, Ray's direct transport (an alpha API) can move them from GPU to GPU.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.pool.vectors_in_memory import as_tensor
from actors.shards.messages import Parcel
from actors.shards.requests import ShardRequest
from fusion.errors import InputError, Vanished, one_line

log = logging.getLogger(__name__)

NO_CUPY = (
    "placement.transport: 'direct': CuPy is not installed here, so the object store is used; pip"
    " install cupy-cuda12x (cupy-cuda13x where PyTorch is for CUDA 13) on all nodes"
)

BITS = {torch.bfloat16: torch.int16}
"""dtypes that NumPy lacks -> integer dtype with the same number of bits."""


@dataclass(frozen=True, eq=False)
class PackedTensor:
    """The bits of a tensor whose dtype NumPy lacks."""

    dtype: str
    array: NDArray[np.generic]


def pack(value: Any) -> Any:
    """Convert tensors in a structure to NumPy arrays (bfloat16 as bits); other values are kept."""
    if isinstance(value, dict):
        return {name: pack(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(pack(inner) for inner in value)
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu().contiguous()
    if value.dtype in BITS:
        name = str(value.dtype).removeprefix("torch.")
        return PackedTensor(name, value.view(BITS[value.dtype]).numpy())
    return value.numpy()


def unpack(value: Any) -> Any:
    """The inverse of `pack`; arrays of the object store are not copied, and must not be written."""
    if isinstance(value, dict):
        return {name: unpack(inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray):
        return as_tensor(value, "cpu")
    if isinstance(value, PackedTensor):
        return as_tensor(value.array, "cpu").view(getattr(torch, value.dtype))
    if isinstance(value, tuple | list):
        return type(value)(unpack(inner) for inner in value)
    return value


class StoredTensors(Parcel):
    """Tensors in the object store; `open` maps them."""

    def open(self) -> Mapping[str, Tensor]:
        """The tensors."""
        found: Mapping[str, Tensor] = unpack(fetched(self.content))
        return found


class ObjectStoreLink:
    """Link that sends results through the object store."""

    def call(self, shard: Any, request: ShardRequest, *given: Any) -> Any:
        """One reference for each result of the request."""
        # No retries by Ray: if the shard dies, the dispatcher repeats the whole call.
        named = shard.call.options(
            name=f"ShardActor.{request.name}", num_returns=request.returns, max_task_retries=0
        )
        return named.remote(request, *given)

    def get(self, pending: Any) -> Any:
        """Fetched, as tensors."""
        return unpack(fetched(pending))

    def put(self, tensors: Mapping[str, Tensor]) -> Parcel:
        """Store tensors; they stay in the object store as long as the parcel exists."""
        return StoredTensors(ray.put(pack(dict(tensors))))


class GpuLink:
    """Link that moves activations between GPUs by Ray's direct transport (an alpha API).

    Other results go through an `ObjectStoreLink`.


    A direct transport allows only methods with one result, so a shard keeps the small results of a
    call until they are fetched. If a shard dies, they are lost, and the whole call is repeated.
    """

    def __init__(self, shards: Sequence[Any], transport: str) -> None:
        """Join the shards into one group of `transport` (`nccl`; `gloo` on CPUs)."""
        from ray.experimental.collective import create_collective_group

        backend = {"nccl": "nccl", "gloo": "torch_gloo"}[transport]
        create_collective_group(list(shards), backend=backend)
        self.last = shards[-1]
        self.transport = transport
        self.stored = ObjectStoreLink()

    def call(self, shard: Any, request: ShardRequest, *given: Any) -> Any:
        """References to the results; the last is to activations on the device."""
        returns = request.returns
        leaves = returns == 1 and shard == self.last  # to the coordinator, which is in no group
        if leaves or not request.returns_activations:
            return self.stored.call(shard, request, *given)
        key = uuid.uuid4().hex
        direct = shard.keep.options(tensor_transport=self.transport, max_task_retries=0)
        activations = direct.remote(key, request, *given)
        if returns == 1:
            return activations
        small = shard.kept.options(num_returns=returns - 1, max_task_retries=0).remote(key)
        return (*([small] if returns == 2 else small), activations)

    def get(self, pending: Any) -> Any:
        """Fetched, as tensors."""
        return self.stored.get(pending)

    def put(self, tensors: Mapping[str, Tensor]) -> Parcel:
        """See `ObjectStoreLink.put`."""
        return self.stored.put(tensors)


def choose(
    shards: Sequence[Any], device: str, gpus: float, wanted: str = "direct"
) -> ObjectStoreLink | GpuLink:
    """Choose the object store, or the direct transport if it is `wanted` and available.

    Direct transport needs several shards with a whole GPU each, and CuPy, which Ray's NCCL groups
    use. It is not the default: in Ray 2.60 a failed transfer ends both actors for good.
    """
    if wanted != "direct" or device != "cuda" or gpus < 1 or len(shards) < 2:
        return ObjectStoreLink()
    if find_spec("cupy") is None:
        log.warning(NO_CUPY)
        return ObjectStoreLink()
    try:
        return GpuLink(shards, "nccl")
    except (
        ImportError, AttributeError, RuntimeError, ValueError, ray.exceptions.RayError
    ) as error:  # fmt: skip
        log.warning("transport: object store, since NCCL is not to be had: %s", one_line(error))
    return ObjectStoreLink()


def fetched(ref: Any, timeout: float | None = None) -> Any:
    """The value of a reference; an error raised remotely is raised here as itself.

    Raises:
        InputError: an actor refused its input when it was built; Ray passes on only the text.
    """
    try:
        return ray.get(ref, timeout=timeout)
    except ray.exceptions.RayTaskError as error:
        raise refused(root_cause(error)) from None
    except ray.exceptions.ActorDiedError as error:
        raise refused(error) from None


def refused(error: BaseException) -> BaseException:
    """The InputError that ended an actor when it was built; otherwise the error itself."""
    if isinstance(error, ray.exceptions.ActorDiedError):
        *_, last = str(error).strip().splitlines()
        kind, _, reason = last.partition(": ")
        if kind.rpartition(".")[2] in (InputError.__name__, Vanished.__name__):
            return InputError(reason)
    return error


def root_cause(error: BaseException) -> BaseException:
    """The original exception inside Ray's, which are nested if a call went through several."""
    while isinstance(error, ray.exceptions.RayTaskError) and error.cause is not None:
        error = error.cause
    return error
