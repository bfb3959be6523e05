"""Statistics of data for merging: which ones a method needs, and how they are accumulated."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from fusion.errors import InputError

Statistic: TypeAlias = Literal["fisher", "gram", "prefix_gram"]


@dataclass(frozen=True)
class Asked:
    """Request for statistics: which ones, of how many samples of each expert's own task."""

    kind: Statistic
    """`fisher`: mean squared gradients of each tensor; `gram`: XᵀX of each linear layer's inputs;
    `prefix_gram`: the same, where the layers before are merged already."""
    examples: int
    batch_size: int
    seed: int
    """Of which images, and of sampled labels."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """`fisher`: estimate; `prefix_gram`: what layers are merged with."""


class Statistics(Mapping[str, Tensor]):
    """Tensor name -> [T, …], where several tensors may share one statistic.

    Args:
        stacks: key -> [T, …]; may be made at every access.
        keys: tensor name -> key; q, k and v of one attention read the same inputs.
    """

    def __init__(self, stacks: Mapping[str, Tensor], keys: Mapping[str, str] | None = None) -> None:
        self.stacks = stacks
        self.keys_of = dict(keys) if keys is not None else {name: name for name in stacks}

    def key(self, name: str) -> str:
        """Equal for tensors that share their statistic."""
        return self.keys_of[name]

    def __getitem__(self, name: str) -> Tensor:
        """[T, …]."""
        return self.stacks[self.keys_of[name]]

    def __contains__(self, name: object) -> bool:
        """Whether there is a statistic of that tensor; none is made."""
        return name in self.keys_of

    def __iter__(self) -> Iterator[str]:
        """Names of tensors."""
        return iter(self.keys_of)

    def __len__(self) -> int:
        """How many tensors have one."""
        return len(self.keys_of)


def held(method: str, statistics: Mapping[str, Tensor], name: str, shape: Iterable[int]) -> Tensor:
    """The statistic of one tensor, where it is: that of a file is on the CPU.

    Raises:
        InputError: none, or of another shape.
    """
    wanted = list(shape)
    if name not in statistics:
        raise InputError(f"{method}: statistics: tensor {name!r}: none; {wanted} needed")
    found = statistics[name]
    if list(found.shape) != wanted:
        raise InputError(
            f"{method}: statistics: tensor {name!r}: shape {list(found.shape)}; {wanted} needed:"
            " they are of other weights"
        )
    return found


def sized(
    method: str,
    statistics: Mapping[str, Tensor],
    name: str,
    shape: Iterable[int],
    device: torch.device,
) -> Tensor:
    """The statistic of one tensor, on the device where it is used.

    Raises:
        InputError: see `held`.
    """
    return held(method, statistics, name, shape).to(device)


def checked(
    method: str,
    statistics: Mapping[str, Tensor],
    name: str,
    shape: Iterable[int],
    device: torch.device,
) -> Tensor:
    """As `sized`, every entry looked at before it is moved.

    Raises:
        InputError: see `held`; not finite.
    """
    found = held(method, statistics, name, shape)
    if not bool(found.sum(dtype=torch.float32).isfinite()):
        raise InputError(f"{method}: statistics: tensor {name!r}: NaN or Inf")
    return found.to(device)


class Grams:
    """Σ xᵀx of the inputs of linear layers, while a model runs: [in, in] float32 a distinct input.

    Layers that are called with the very same tensor (q, k and v of an attention) share one sum.

    Args:
        modules: whose linear layers are looked at, as (module, its parameters' global names).
        fused: global names of the weights that matter.
    """

    def __init__(
        self, modules: Iterable[tuple[nn.Module, Mapping[str, str]]], fused: Container[str]
    ) -> None:
        self.sums: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}
        self.keys: dict[str, str] = {}
        self.last: tuple[Tensor | None, str] = (None, "")
        self.on = False
        """Whether it is looking now."""
        self.mask: Tensor | None = None
        """[B, S]: which tokens are no padding; set before a forward pass of padded rows."""
        self.handles = [
            layer.register_forward_pre_hook(
                self.hook(names[f"{path}.weight" if path else "weight"])
            )
            for module, names in modules
            for path, layer in module.named_modules()
            if isinstance(layer, nn.Linear)
            and names[f"{path}.weight" if path else "weight"] in fused
        ]

    def hook(self, name: str) -> Any:
        """Adds a layer's inputs to its sum."""

        def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if not self.on:
                return
            x, shared = inputs[0], self.last
            if shared[0] is x and self.keys.get(name, shared[1]) == shared[1]:
                self.keys[name] = shared[1]
                return
            rows = self.real(x.detach()).reshape(-1, x.shape[-1]).float()
            self.keys[name] = name
            if name not in self.sums:
                self.sums[name] = torch.zeros(rows.shape[1], rows.shape[1], device=x.device)
                self.rows[name] = 0
            self.sums[name].addmm_(rows.T, rows)
            self.rows[name] += len(rows)
            self.last = (x, name)

        return add

    def real(self, x: Tensor) -> Tensor:
        """An input [B, S, d] without its padded tokens; any other input as it is."""
        padded = self.mask is not None and x.shape[:-1] == self.mask.shape
        return x[self.mask] if padded else x

    def means(self) -> dict[str, Tensor]:
        """key -> Σ xᵀx / rows."""
        return {name: total / max(1, self.rows[name]) for name, total in self.sums.items()}

    def close(self) -> None:
        """No more hooks."""
        for handle in self.handles:
            handle.remove()
        self.last = (None, "")
