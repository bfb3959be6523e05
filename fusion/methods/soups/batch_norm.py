"""Statistics of batch norm, measured over batches as if their rows were one batch.

Axes: B rows, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fusion.errors import InputError


class BatchNormMeter:
    """Mean and variance of what batch-norm layers read, pooled over batches.

    While it measures, a layer normalises by the batch that it sees, as in training. A layer's mean
    and unbiased variance are those of all values of all batches, the variance between batches
    included, added up in float64. So the split into batches changes what later layers read, by the
    batches' own statistics, and nothing else; a single batch gives what torch would store of it.

    Deviation: Izmailov et al. 2018 (arXiv:1803.05407, §3.2) and `reestimate_batchnorm` average the
    batches' variances, which leaves out the variance between batches.
    """

    def __init__(self, layers: Mapping[str, _BatchNorm]) -> None:
        """`layers`: name -> layer; nothing is measured yet."""
        self.layers = dict(layers)
        self.counts: dict[str, int] = {}
        self.means: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        """Sums of squared differences from the mean, [C]."""

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Context manager: passes are added. Running statistics keep their values, modes are put
        back at the end."""
        hooks = [
            layer.register_forward_pre_hook(lambda _, given, name=name: self.add(name, given[0]))
            for name, layer in self.layers.items()
        ]
        modes = {name: each.training for name, each in self.layers.items()}
        kept = {name: each.running_mean for name, each in self.layers.items()}
        spread = {name: each.running_var for name, each in self.layers.items()}
        try:
            for layer in self.layers.values():
                layer.train()
                layer.running_mean = layer.running_var = None
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for name, layer in self.layers.items():
                layer.training = modes[name]
                layer.running_mean, layer.running_var = kept[name], spread[name]

    def add(self, name: str, given: Any) -> None:
        """Add one input [B, C, …] of a layer.

        Raises:
            InputError: one value a channel, which has no variance.
        """
        values = given.detach().transpose(0, 1).flatten(1).float()
        count = values.shape[1]
        if count < 2:
            raise InputError("batch norm: a batch of one value a channel; two rows at least needed")
        variance, mean = (each.double() for each in torch.var_mean(values, dim=1, correction=0))
        seen = self.counts.get(name, 0)
        if not seen:
            self.means[name], self.squares[name] = mean, count * variance
        else:
            apart, total = mean - self.means[name], seen + count
            self.means[name] = self.means[name] + apart * (count / total)
            between = apart.square() * (seen * count / total)
            self.squares[name] = self.squares[name] + count * variance + between
        self.counts[name] = seen + count

    def found(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Layer -> its running mean and running variance, float32 [C] on the CPU.

        Raises:
            InputError: nothing was measured; statistics that are not finite.
        """
        if missing := [name for name in self.layers if name not in self.counts]:
            raise InputError(f"batch norm {missing[0]!r}: no rows to take statistics from")
        found = {}
        for name, mean in self.means.items():
            variance = self.squares[name] / (self.counts[name] - 1)
            if not bool((mean.isfinite() & variance.isfinite()).all()):
                raise InputError(f"batch norm {name!r}: the statistics of the data are NaN or Inf")
            found[name] = (mean.float().cpu(), variance.float().cpu())
        return found
