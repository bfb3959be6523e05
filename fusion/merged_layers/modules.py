"""Replace the layers of a module, in place, by layers that read merged weights.

The new layers share one `Mixer`. It holds base and task vectors and, during one forward pass, the
columns of the coding. Parts without weights (attention, activations, the residual stream) remain
the library's code, so any model that consists of known layers can be merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fusion.errors import InputError
from fusion.merged_layers.functional import (
    Form,
    merged_batch_norm,
    merged_conv2d,
    merged_embedding,
    merged_linear,
    merged_norm,
    merged_rms_norm,
    merged_table,
)
from fusion.merged_layers.precision import exact
from fusion.merged_layers.tables import repeated
from fusion.task_vectors.lazy import Recomputed, for_backward
from fusion.task_vectors.low_rank import LowRank, Zeros
from fusion.task_vectors.task_vectors import TaskVectors


class Mixer:
    """Task vectors, and the coefficients that merged layers read during one forward pass."""

    def __init__(
        self, vectors: TaskVectors, form: Form = "auto", dtype: torch.dtype = torch.float32
    ) -> None:
        """Store base and task vectors.

        Args:
            vectors: base and task vectors.
            form: of linear layers, see `fusion.merged_layers.functional`. Default `auto`.
            dtype: dtype of the activations. Default float32.
        """
        self.vectors, self.dtype = vectors, dtype
        self.form = form
        self.columns: Mapping[str, Tensor] = {}
        self.rows = 0

    @contextmanager
    def with_columns(self, columns: Mapping[str, Tensor], rows: int = 0) -> Iterator[None]:
        """Context manager: layers use the coefficients `columns[name]` [M, T] of each tensor.

        Args:
            columns: tensor name -> coefficients.
            rows: B, the rows of the pass, of which each model takes B/M; 0 (default): M.
        """
        self.columns, self.rows = columns, rows
        try:
            yield
        finally:
            self.columns, self.rows = {}, 0

    def rows_each(self, name: str) -> int:
        """Rows of the pass that each model of a tensor's coefficients takes."""
        return max(self.rows // len(self.columns[name]), 1)

    def parts(self, name: str) -> tuple[Tensor, Tensor, Tensor | LowRank | Zeros | Recomputed]:
        """Coefficients [M, T], base and task vectors of one tensor.

        Lazy task vectors are returned in a form that is computed by the layer, so that the layer
        keeps no task vectors for its backward pass.
        """
        deltas = for_backward(self.vectors.deltas, name)
        if isinstance(deltas, Recomputed):
            deltas = Recomputed(exact(deltas.make))
        return self.columns[name], self.vectors.base[name], deltas

    def meta_weight(self, name: str) -> Tensor:
        """Tensor on the meta device with a weight's shape and the activations' dtype.

        Library code asks layers for the dtype or shape of their weights.
        """
        return torch.empty(self.vectors.base[name].shape, dtype=self.dtype, device="meta")

    def table(self, name: str | None) -> Tensor | None:
        """Merged vector or table [M, *shape] of this name; None for None."""
        return None if name is None else merged_table(*self.parts(name))


class Linear(nn.Module):
    """Linear layer x Wᵀ + b with merged weights."""

    def __init__(self, mixer: Mixer, weight: str, bias: str | None) -> None:
        super().__init__()
        self.mixer, self.weight_name, self.bias_name = mixer, weight, bias

    @property
    def weight(self) -> Tensor:
        """See `Mixer.meta_weight`."""
        return self.mixer.meta_weight(self.weight_name)

    def forward(self, x: Tensor) -> Tensor:
        """[B, …, in] -> [B, …, out]."""
        bias = self.mixer.table(self.bias_name)
        return merged_linear(x, *self.mixer.parts(self.weight_name), bias, self.mixer.form)


class LayerNorm(nn.Module):
    """Layer normalisation with merged weight and bias."""

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
    """Root mean square normalisation with a merged weight."""

    def __init__(self, mixer: Mixer, weight: str, eps: float | None) -> None:
        super().__init__()
        self.mixer, self.weight_name, self.eps = mixer, weight, eps

    @property
    def weight(self) -> Tensor:
        """See `Mixer.meta_weight`."""
        return self.mixer.meta_weight(self.weight_name)

    def forward(self, x: Tensor) -> Tensor:
        """[B, …, d] -> [B, …, d]."""
        weight = self.mixer.table(self.weight_name)
        assert weight is not None
        return merged_rms_norm(x, weight, self.eps)


class Embedding(nn.Module):
    """Embedding: rows of a merged table."""

    def __init__(self, mixer: Mixer, weight: str) -> None:
        super().__init__()
        self.mixer, self.weight_name = mixer, weight

    def forward(self, ids: Tensor) -> Tensor:
        """[B|1, n] -> [B, n, D]."""
        name = self.weight_name
        return merged_embedding(ids, *self.mixer.parts(name), self.mixer.rows_each(name))


class BareParameter(nn.Module):
    """Module for a parameter that is in no layer of the library, such as a class token [D]."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(shape))

    def forward(self) -> Tensor:
        """[1, *shape]."""
        return self.value[None]


class Table(nn.Module):
    """A merged `BareParameter`."""

    def __init__(self, mixer: Mixer, name: str) -> None:
        super().__init__()
        self.mixer, self.name = mixer, name

    def forward(self) -> Tensor:
        """[B, *shape]; [1, *shape] if all rows have the same."""
        return repeated(merged_table(*self.mixer.parts(self.name)), self.mixer.rows_each(self.name))


class Conv2d(nn.Module):
    """Convolution with merged weights."""

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


class BatchNorm2d(nn.Module):
    """Batch norm with merged scale and shift, by the statistics of the batch, as in training.

    Those of a merged model's running statistics are not known while its coding is learned.
    """

    def __init__(self, mixer: Mixer, weight: str, bias: str, eps: float) -> None:
        super().__init__()
        self.mixer, self.weight_name, self.bias_name, self.eps = mixer, weight, bias, eps

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]; each of M models normalises its own B/M rows."""
        weight, bias = self.mixer.table(self.weight_name), self.mixer.table(self.bias_name)
        assert weight is not None
        assert bias is not None
        return merged_batch_norm(x, weight, bias, self.eps)


def pair(values: tuple[int, ...] | str) -> tuple[int, int]:
    """Two integers; padding "same" or "valid" is refused before (`replacement`)."""
    assert not isinstance(values, str)
    return int(values[0]), int(values[1])


def replacement(layer: nn.Module, mixer: Mixer, named: Callable[[str], str]) -> nn.Module | None:
    """The merged layer that replaces a layer of a known type; None for other types.

    Args:
        layer: a layer with parameters.
        mixer: read by the merged layer.
        named: name of one of the layer's own parameters -> its name in the task vectors.
    """
    bias = named("bias") if getattr(layer, "bias", None) is not None else None
    if isinstance(layer, nn.Linear):
        return Linear(mixer, named("weight"), bias)
    if isinstance(layer, nn.LayerNorm) and bias is not None:
        return LayerNorm(mixer, named("weight"), bias, layer.eps)
    if isinstance(layer, nn.RMSNorm):
        return RmsNorm(mixer, named("weight"), layer.eps)
    if isinstance(layer, BareParameter):
        return Table(mixer, named("value"))
    if isinstance(layer, nn.BatchNorm2d) and bias is not None:
        return BatchNorm2d(mixer, named("weight"), bias, layer.eps)
    if isinstance(layer, nn.Embedding):
        return Embedding(mixer, named("weight"))
    plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
    if isinstance(layer, nn.Conv2d) and plain and not isinstance(layer.padding, str):
        return Conv2d(mixer, named("weight"), bias, layer)
    return None


def merge_layers(module: nn.Module, mixer: Mixer, names: Mapping[str, str]) -> nn.Module:
    """Replace every layer of `module` that has fused weights by a merged layer, in place.

    Args:
        module: its weights are not used, so it may be on the meta device.
        mixer: read by the new layers.
        names: parameter name in the module -> name in the task vectors. A layer without a parameter
            in `mixer.vectors.deltas` is left as it is.

    Raises:
        InputError: fused weights in a layer of an unknown type; the message names the tensor.
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
                " merged; linear, layer norm, RMS norm, batch norm, embedding and plain convolution"
                " allowed"
            )
        parent, _, child = path.rpartition(".")
        setattr(module.get_submodule(parent), child, new)
    return module
