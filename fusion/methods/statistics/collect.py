"""Statistics of data for merging: requests of methods, lookup, and sums of Gram matrices."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fusion.errors import InputError

Statistic: TypeAlias = Literal["fisher", "gram", "norm_gram", "prefix_gram"]
"""Kind of statistic, see `StatisticsRequest.kind`."""

NO_MASKS: Mapping[str, str] = {}
"""No layer has a mask of another name than `mask`."""


@dataclass(frozen=True)
class StatisticsRequest:
    """Request of a method for statistics of each expert on its own task."""

    kind: Statistic
    """`fisher`: mean squared gradients of each tensor. `gram`: XᵀX of each linear layer's inputs.
    `norm_gram`: the same, and of each norm layer E[x̂²], the mean squares of its normalised inputs.
    `prefix_gram`: `gram` with the preceding layers merged already."""
    examples: int
    """Samples of each task."""
    batch_size: int
    """Samples of a forward pass."""
    seed: int
    """Seed of the choice of samples and of sampled labels."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """`fisher`: `estimate`; `prefix_gram`: hyper-parameters of the merge of preceding layers."""


class Statistics(Mapping[str, Tensor]):
    """Mapping from tensor name to its statistic [T, …]; several tensors may share one statistic.

    Args:
        stacks: key -> [T, …]; may be lazy.
        keys: tensor name -> key. Default: each tensor has its own. (q, k and v of an attention
            block share one, because they have the same inputs.)
    """

    def __init__(self, stacks: Mapping[str, Tensor], keys: Mapping[str, str] | None = None) -> None:
        self.stacks = stacks
        self.keys_of = dict(keys) if keys is not None else {name: name for name in stacks}

    def key(self, name: str) -> str:
        """Key of a tensor's statistic, equal for tensors that share it."""
        return self.keys_of[name]

    def __getitem__(self, name: str) -> Tensor:
        """The statistic [T, …] of a tensor."""
        return self.stacks[self.keys_of[name]]

    def __contains__(self, name: object) -> bool:
        """Whether a tensor has a statistic; nothing is computed."""
        return name in self.keys_of

    def __iter__(self) -> Iterator[str]:
        """Names of tensors."""
        return iter(self.keys_of)

    def __len__(self) -> int:
        """Number of tensors that have a statistic."""
        return len(self.keys_of)


def held(method: str, statistics: Mapping[str, Tensor], name: str, shape: Iterable[int]) -> Tensor:
    """Statistic of one tensor on its own device (the CPU if it comes from a file).

    Args:
        method: name of the method, for messages.
        statistics: tensor name -> statistic.
        name: the tensor.
        shape: required shape.

    Raises:
        InputError: no statistic of this tensor, or another shape.
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
    """Statistic of one tensor, moved to `device`.

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
    """Statistic of one tensor, checked to be finite and then moved to `device`.

    Raises:
        InputError: see `held`; NaN or Inf.
    """
    found = held(method, statistics, name, shape)
    if not bool(found.sum(dtype=torch.float32).isfinite()):
        raise InputError(f"{method}: statistics: tensor {name!r}: NaN or Inf")
    return found.to(device)


STRIPS = 4
"""Strips of a Gram matrix. More save little, and their products are slow to start."""


def add_upper(total: Tensor, rows: Tensor) -> None:
    """Add XᵀX to the upper triangle of `total` [in, in], in 5/8 of the operations for all of it.

    XᵀX is symmetric, so each strip of rows is computed from its diagonal block on.

    Args:
        total: written to; entries below the diagonal blocks are not touched.
        rows: X [n, in].
    """
    width = total.shape[1]
    step = -(-width // (64 * STRIPS)) * 64
    for at in range(0, width, step):
        total[at : at + step, at:].addmm_(rows[:, at : at + step].T, rows[:, at:])


def mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrix with this upper triangle."""
    return upper.triu().add_(upper.triu(1).T)


def is_norm(layer: nn.Module) -> bool:
    """Whether a module has a parameter `weight` of one axis, which multiplies its input.

    >>> is_norm(nn.LayerNorm(2)), is_norm(nn.Linear(2, 2)), is_norm(nn.GELU())
    (True, False, False)
    """
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1


class Grams:
    """Forward hooks that sum XᵀX of the inputs of linear layers: float32 [in, in].

    Of norm layers they sum the squares of the normalised inputs, if asked: float32 [d]. A norm
    layer is a module whose own parameter `weight` has one axis; its normalised input is its output
    for weights of 1 and biases of 0.

    Layers that are called with the same tensor object (q, k and v of an attention block) share one
    sum.

    Args:
        modules: pairs (module, its parameter names -> names of tensors); their linear layers get
            hooks.
        fused: names of the weights that need a Gram matrix.
        masked: name of a weight -> name in `masks` of the mask of its layer's input; default
            `mask`.
        norms: whether norm layers get hooks too. Default false.
    """

    def __init__(
        self,
        modules: Iterable[tuple[nn.Module, Mapping[str, str]]],
        fused: Container[str],
        masked: Mapping[str, str] = NO_MASKS,
        norms: bool = False,
    ) -> None:
        self.sums: dict[str, Tensor] = {}
        """Of Gram matrices right of and on the diagonal; below it only parts (`add_upper`)."""
        self.rows: dict[str, int] = {}
        self.keys: dict[str, str] = {}
        self.last: tuple[Tensor | None, str] = (None, "")
        self.on = False
        """Whether it is looking now."""
        self.masks: Mapping[str, Tensor] = {}
        """Name -> [B, S], True for tokens that are no padding; set before a pass of padded rows.
        Other tensors may be among them."""
        self.masked = masked
        self.handles = []
        for module, names in modules:
            for path, layer in module.named_modules():
                linear = isinstance(layer, nn.Linear)
                if not (linear or (norms and is_norm(layer))):
                    continue
                name = names[f"{path}.weight" if path else "weight"]
                if name in fused:
                    hook = self.hook(name) if linear else self.norm_hook(name)
                    self.handles.append(layer.register_forward_pre_hook(hook))

    def hook(self, name: str) -> Any:
        """Hook that adds a layer's inputs to its sum."""

        def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if not self.on:
                return
            x, shared = inputs[0], self.last
            if shared[0] is x and self.keys.get(name, shared[1]) == shared[1]:
                self.keys[name] = shared[1]
                return
            rows = self.real(x.detach(), name).reshape(-1, x.shape[-1]).float()
            self.keys[name] = name
            if name not in self.sums:
                self.sums[name] = torch.zeros(rows.shape[1], rows.shape[1], device=x.device)
                self.rows[name] = 0
            add_upper(self.sums[name], rows)
            self.rows[name] += len(rows)
            self.last = (x, name)

        return add

    def norm_hook(self, name: str) -> Any:
        """Hook that adds the squares of a norm layer's normalised inputs to its sum."""

        def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if not self.on:
                return
            self.on = False  # this call of the layer is not one of the model
            unit = {
                own: torch.ones_like(value) if own == "weight" else torch.zeros_like(value)
                for own, value in layer.named_parameters()
            }
            normalised = functional_call(layer, unit, inputs).detach()
            self.on = True
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                normalised = normalised.movedim(1, -1)
            rows = self.real(normalised, name).reshape(-1, normalised.shape[-1]).float()
            found = rows.square().sum(0)
            self.keys[name] = name
            self.sums[name] = found + self.sums.get(name, torch.zeros_like(found))
            self.rows[name] = self.rows.get(name, 0) + len(rows)

        return add

    def real(self, x: Tensor, name: str) -> Tensor:
        """A layer's input [B, S, d] without padded tokens: [tokens, d]; other input unchanged."""
        mask = self.masks.get(self.masked.get(name, "mask"))
        return x[mask] if mask is not None and x.shape[:-1] == mask.shape else x

    def means(self) -> dict[str, Tensor]:
        """Key -> Gram matrix, or mean squares, divided by the number of rows."""
        found = {name: total / max(1, self.rows[name]) for name, total in self.sums.items()}
        return {name: mean if mean.ndim == 1 else mirrored(mean) for name, mean in found.items()}

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()
        self.last = (None, "")
