"""Where the acceptance runs: on a GPU, on the pretended one, or on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fusion.task_vectors.task_vectors import TaskVectors

Kind = Literal["cuda", "pretend", "cpu"]


@dataclass(frozen=True)
class Place:
    """A device, and whether what is measured there says anything of a GPU."""

    kind: Kind

    def __post_init__(self) -> None:
        """Refuse a GPU that is not there.

        Raises:
            RuntimeError: `cuda`, but PyTorch has no CUDA, or sees no GPU, or the GPU is pretended;
                `pretend`, but this process has no pretended GPU.
        """
        if self.kind == "cuda" and (torch.version.cuda is None or not torch.cuda.is_available()):
            raise RuntimeError(
                "no GPU here: --device cpu, or --device pretend, runs the same parts"
            )
        if self.kind == "pretend" and not hasattr(torch.cuda, "PRETENDED"):
            raise RuntimeError("the pretended GPU is not installed: python -m tests.gpu starts it")

    @property
    def device(self) -> str:
        """Its name for PyTorch."""
        return "cpu" if self.kind == "cpu" else "cuda"

    @property
    def name(self) -> str:
        """Of the device; a GPU's own where there is one."""
        if self.kind == "cuda":
            return torch.cuda.get_device_name()
        return "the CPU" if self.kind == "cpu" else "the pretended GPU (values on the CPU)"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Within it, `cuda` is this device."""
        if self.kind != "pretend":
            yield
            return
        from tests.pretend.device import pretending

        with pretending():
            yield

    def moved(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict there."""
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def vectors(self, vectors: TaskVectors) -> TaskVectors:
        """Task vectors there."""
        return replace(vectors, base=self.moved(vectors.base), deltas=self.moved(vectors.deltas))

    def synchronise(self) -> None:
        """Wait until all that was asked of the device is done."""
        if self.kind == "cuda":
            torch.cuda.synchronize()

    def peak(self, call: Callable[[], object]) -> int:
        """Most bytes that were allocated there during a call, and before it."""
        torch.cuda.reset_peak_memory_stats()
        call()
        self.synchronise()
        return int(torch.cuda.max_memory_allocated())


def doubled(vectors: TaskVectors) -> TaskVectors:
    """The same values in float64."""

    def wide(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {k: t.double() if t.is_floating_point() else t for k, t in tensors.items()}

    return replace(vectors, base=wide(vectors.base), deltas=wide(vectors.deltas))


def widened(value: Any) -> Any:
    """A floating-point tensor in float64; a dict of them likewise; anything else as it is."""
    if isinstance(value, dict):
        return {key: widened(each) for key, each in value.items()}
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    return value


def distance(found: Tensor, wanted: Tensor) -> float:
    """‖found − wanted‖/‖wanted‖, in float64 on the CPU."""
    found, wanted = found.detach().cpu().double(), wanted.detach().cpu().double()
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-300))


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """All floating-point tensors of a state dict, one after the other, in float64 on the CPU."""
    return torch.cat(
        [t.detach().cpu().double().flatten() for t in tensors.values() if t.is_floating_point()]
    )
