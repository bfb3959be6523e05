"""Replace the layers of a module in place by layers that read merged weights.

The replaced layers share one `Mixer`: it holds base and task vectors, and for the length of one
forward pass the coding's columns. What has no weights of its own (attention, activations, the
residual stream) stays the library's code, so that any model of known layers can be merged so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fusion.errors import InputError
from fusion.merged_layers.functional import (
    Form,
    merged_conv2d,
    merged_embedding,
    merged_linear,
    merged_norm,
    merged_rms_norm,
    merged_table,
)
from fusion.task_vectors.lazy import Remade, lasting
from fusion.task_vectors.low_rank import LowRank, Zeros
from fusion.task_vectors.task_vectors import TaskVectors


class Mixer:
    """Task vectors, and the coefficients that the layers read during one forward pass."""

    def __init__(
        self, vectors: TaskVectors, form: Form = "auto", dtype: torch.dtype = torch.float32
    ) -> None:
        """`dtype`: of the activations that the layers compute in."""
        self.vectors, self.dtype = vectors, dtype
        self.form = form
        self.columns: Mapping[str, Tensor] = {}

    @contextmanager
    def coded(self, columns: Mapping[str, Tensor]) -> Iterator[None]:
        """Within it, tensor k is θ₀,k + Σ_t c_mt,k τ_t,k for `columns[k]` [M, T]."""
        self.columns = columns
        try:
            yield
        finally:
            self.columns = {}

    def parts(self, name: str) -> tuple[Tensor, Tensor, Tensor | LowRank | Zeros | Remade]:
        """Coefficients [M, T], base and task vectors of one tensor.

        Task vectors that are made when they are read are handed on unmade, so that a layer keeps
        none of them for its backward pass.
        """
        return self.columns[name], self.vectors.base[name], lasting(self.vectors.deltas, name)

    def stand_in(self, name: str) -> Tensor:
        """An empty tensor with the shape of a weight, in the dtype of activations, without memory:
        library code asks layers for the dtype or shape of their weights."""
        return torch.empty(self.vectors.base[name].shape, dtype=self.dtype, device="meta")

    def table(self, name: str | None) -> Tensor | None:
        """A merged vector or table [M, *shape]; None for None."""
        return None if name is None else merged_table(*self.parts(name))


class Linear(nn.Module):
    """x Wᵀ + b, merged."""

    def __init__(self, mixer: Mixer, weight: str, bias: str | None) -> None:
        super().__init__()
        self.mixer, self.weight_name, self.bias_name = mixer, weight, bias

    @property
    def weight(self) -> Tensor:
        """See `Mixer.stand_in`."""
        return self.mixer.stand_in(self.weight_name)

    def forward(self, x: Tensor) -> Tensor:
        """[B, …, in] -> [B, …, out]."""
        bias = self.mixer.table(self.bias_name)
        return merged_linear(x, *self.mixer.parts(self.weight_name), bias, self.mixer.form)


class LayerNorm(nn.Module):
    """Layer normalisation with merged scale and shift."""

    def __init__(self, mixer: Mixer, weight: str, bias: str, eps: float) -> None:
        super().__init__()
        self.mixer, self.weight_name, self.bias_name, self.eps = mixer, weight, bias, eps

    def forward(self, x: Tensor) -> Tensor:
        """[B, …, d] -> [B, …, d]."""
        weight, bias = self.mixer.table(self.weight_name), self.mixer.table(self.bias_name)
        assert weight is not None
        assert bias is not None
        return merged_norm(x, weight, bias, self.eps)


class RmsNorm(nn.Module):
    """Root mean square normalisation with a merged scale."""

    def __init__(self, mixer: Mixer, weight: str, eps: float | None) -> None:
        super().__init__()
        self.mixer, self.weight_name, self.eps = mixer, weight, eps

    @property
    def weight(self) -> Tensor:
        """See `Mixer.stand_in`."""
        return self.mixer.stand_in(self.weight_name)

    def forward(self, x: Tensor) -> Tensor:
        """[B, …, d] -> [B, …, d]."""
        weight = self.mixer.table(self.weight_name)
        assert weight is not None
        return merged_rms_norm(x, weight, self.eps)


class Embedding(nn.Module):
    """Rows of a merged table."""

    def __init__(self, mixer: Mixer, weight: str) -> None:
        super().__init__()
        self.mixer, self.weight_name = mixer, weight

    def forward(self, ids: Tensor) -> Tensor:
        """[B|1, n] -> [B, n, D]."""
        return merged_embedding(ids, *self.mixer.parts(self.weight_name))


class Bare(nn.Module):
    """A parameter that belongs to no layer of the library, such as a class token [D]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(size))

    def forward(self) -> Tensor:
        """[1, D]."""
        return self.value[None]


class Table(nn.Module):
    """A merged bare parameter."""

    def __init__(self, mixer: Mixer, name: str) -> None:
        super().__init__()
        self.mixer, self.name = mixer, name

    def forward(self) -> Tensor:
        """[M, D]."""
        return merged_table(*self.mixer.parts(self.name))


class Conv2d(nn.Module):
    """A convolution, merged."""

    def __init__(self, mixer: Mixer, weight: str, bias: str | None, like: nn.Conv2d) -> None:
        super().__init__()
        self.mixer, self.weight_name, self.bias_name = mixer, weight, bias
        self.stride, self.padding, self.dilation = like.stride, like.padding, like.dilation

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out, H', W']."""
        return merged_conv2d(
            x,
            *self.mixer.parts(self.weight_name),
            self.mixer.table(self.bias_name),
            stride=pair(self.stride),
            padding=pair(self.padding),
            dilation=pair(self.dilation),
            form=self.mixer.form,
        )


def pair(values: tuple[int, ...] | str) -> tuple[int, int]:
    """Two whole numbers; "same" and "valid" padding are refused where layers are replaced."""
    assert not isinstance(values, str)
    return int(values[0]), int(values[1])


def replacement(layer: nn.Module, mixer: Mixer, named: Callable[[str], str]) -> nn.Module | None:
    """The merged layer for one of a known kind; None for another.

    `named` gives the global name of one of the layer's own parameters.
    """
    bias = named("bias") if getattr(layer, "bias", None) is not None else None
    if isinstance(layer, nn.Linear):
        return Linear(mixer, named("weight"), bias)
    if isinstance(layer, nn.LayerNorm) and bias is not None:
        return LayerNorm(mixer, named("weight"), bias, layer.eps)
    if isinstance(layer, nn.RMSNorm):
        return RmsNorm(mixer, named("weight"), layer.eps)
    if isinstance(layer, Bare):
        return Table(mixer, named("value"))
    if isinstance(layer, nn.Embedding):
        return Embedding(mixer, named("weight"))
    plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
    if isinstance(layer, nn.Conv2d) and plain and not isinstance(layer.padding, str):
        return Conv2d(mixer, named("weight"), bias, layer)
    return None


def merge_layers(module: nn.Module, mixer: Mixer, names: Mapping[str, str]) -> nn.Module:
    """Replace, in place, every layer of `module` that has weights.

    Args:
        module: nothing of its weights is used, so it may be on the meta device.
        mixer: what the new layers read.
        names: the module's parameter names -> global names. A layer none of whose parameters is in
            `mixer.vectors.deltas` is left as it is.

    Raises:
        InputError: weights in a layer of an unknown kind; the line names it.
    """
    for path, layer in list(module.named_modules()):
        own = [key for key, _ in layer.named_parameters(recurse=False)]
        prefix = f"{path}." if path else ""
        fused = [key for key in own if names.get(prefix + key) in mixer.vectors.deltas]
        if not fused:
            continue
        new = replacement(layer, mixer, lambda key, prefix=prefix: names[prefix + key])  # type: ignore[misc]
        if new is None or len(fused) < len(own) or not path:
            raise InputError(
                f"{names[prefix + fused[0]]}: {type(layer).__name__}: a layer that cannot be"
                " merged; linear, layer norm, RMS norm, embedding and plain convolution allowed"
            )
        parent, _, child = path.rpartition(".")
        setattr(module.get_submodule(parent), child, new)
    return module
