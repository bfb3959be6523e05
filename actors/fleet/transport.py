"""How shards that are actors are called, and how activations get from one to the next.

The one seam between pipelines and Ray's transports. On a CPU, and wherever nothing better is
there, results lie in Ray's object store as NumPy arrays, which readers map without a copy. Where
every shard has a GPU of its own, Ray's direct transport (an alpha API) moves them from GPU to GPU.
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
"""dtypes that NumPy lacks, and what their bits travel as."""


@dataclass(frozen=True, eq=False)
class Bits:
    """A tensor of a dtype that NumPy lacks."""

    dtype: str
    array: NDArray[np.generic]


def pack(value: Any) -> Any:
    """Tensors of a carry as NumPy arrays (bfloat16 as its bits); anything else as it is."""
    if isinstance(value, dict):
        return {name: pack(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(pack(inner) for inner in value)
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu().contiguous()
    if value.dtype in BITS:
        name = str(value.dtype).removeprefix("torch.")
        return Bits(name, value.view(BITS[value.dtype]).numpy())
    return value.numpy()


def unpack(value: Any) -> Any:
    """The inverse of `pack`; arrays from the object store stay where they are, and are not written
    to."""
    if isinstance(value, dict):
        return {name: unpack(inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray):
        return as_tensor(value, "cpu")
    if isinstance(value, Bits):
        return as_tensor(value.array, "cpu").view(getattr(torch, value.dtype))
    if isinstance(value, tuple | list):
        return type(value)(unpack(inner) for inner in value)
    return value


class Referred(Parcel):
    """Tensors in the object store; whoever opens it maps them."""

    def open(self) -> Mapping[str, Tensor]:
        """The tensors."""
        found: Mapping[str, Tensor] = unpack(fetched(self.content))
        return found


class Stored:
    """Results through the object store."""

    def call(self, shard: Any, request: ShardRequest, *given: Any) -> Any:
        """A reference, or as many as the request has results."""
        # Where the shard dies of it, whoever made the whole call counts that, and makes it again.
        named = shard.call.options(
            name=f"ShardActor.{request.name}", num_returns=request.returns, max_task_retries=0
        )
        return named.remote(request, *given)

    def get(self, pending: Any) -> Any:
        """Fetched, as tensors."""
        return unpack(fetched(pending))

    def put(self, tensors: Mapping[str, Tensor]) -> Parcel:
        """In the object store, as long as someone holds the parcel."""
        return Referred(ray.put(pack(dict(tensors))))


class GpuToGpu:
    """Carries from device to device by Ray's direct transport; small results as `Stored`.

    A direct transport takes methods of one result only, so a shard keeps the small ones of a call
    until they are asked for. What a shard kept is lost with it: the whole call is then made again.
    """

    def __init__(self, shards: Sequence[Any], transport: str) -> None:
        """Join the shards into one group of `transport` (`nccl`; `gloo` on CPUs)."""
        from ray.experimental.collective import create_collective_group

        backend = {"nccl": "nccl", "gloo": "torch_gloo"}[transport]
        create_collective_group(list(shards), backend=backend)
        self.last = shards[-1]
        self.transport = transport
        self.stored = Stored()

    def call(self, shard: Any, request: ShardRequest, *given: Any) -> Any:
        """References; that of the carry, which comes last, is to a tensor on the device."""
        returns = request.returns
        leaves = returns == 1 and shard == self.last  # to whoever asked, who is in no group
        if leaves or not request.carries:
            return self.stored.call(shard, request, *given)
        key = uuid.uuid4().hex
        direct = shard.keep.options(tensor_transport=self.transport, max_task_retries=0)
        carry = direct.remote(key, request, *given)
        if returns == 1:
            return carry
        small = shard.kept.options(num_returns=returns - 1, max_task_retries=0).remote(key)
        return (*([small] if returns == 2 else small), carry)

    def get(self, pending: Any) -> Any:
        """Fetched, as tensors."""
        return self.stored.get(pending)

    def put(self, tensors: Mapping[str, Tensor]) -> Parcel:
        """See `Stored.put`."""
        return self.stored.put(tensors)


def choose(
    shards: Sequence[Any], device: str, gpus: float, wanted: str = "direct"
) -> Stored | GpuToGpu:
    """The object store, or, where `direct` is wanted, the GPUs' own where it can be had.

    It can where each of several shards has a whole GPU, and CuPy, on which Ray's NCCL groups are
    written, is installed. It is not the default: in Ray 2.60 a transfer that fails takes both
    actors with it, and they do not come back.
    """
    if wanted != "direct" or device != "cuda" or gpus < 1 or len(shards) < 2:
        return Stored()
    if find_spec("cupy") is None:
        log.warning(NO_CUPY)
        return Stored()
    try:
        return GpuToGpu(shards, "nccl")
    except (
        ImportError, AttributeError, RuntimeError, ValueError, ray.exceptions.RayError
    ) as error:  # fmt: skip
        log.warning("transport: object store, since NCCL is not to be had: %s", one_line(error))
    return Stored()


def fetched(ref: Any, timeout: float | None = None) -> Any:
    """The value of a reference; an error raised remotely is raised here as itself.

    Raises:
        InputError: what an actor refused when it was built; Ray hands on only its text.
    """
    try:
        return ray.get(ref, timeout=timeout)
    except ray.exceptions.RayTaskError as error:
        raise refused(root_cause(error)) from None
    except ray.exceptions.ActorDiedError as error:
        raise refused(error) from None


def refused(error: BaseException) -> BaseException:
    """What an actor refused when it was built, where it died of that; else the error itself."""
    if isinstance(error, ray.exceptions.ActorDiedError):
        *_, last = str(error).strip().splitlines()
        kind, _, reason = last.partition(": ")
        if kind.rpartition(".")[2] in (InputError.__name__, Vanished.__name__):
            return InputError(reason)
    return error


def root_cause(error: BaseException) -> BaseException:
    """The user's exception inside Ray's (nested, where a call went through others)."""
    while isinstance(error, ray.exceptions.RayTaskError) and error.cause is not None:
        error = error.cause
    return error
