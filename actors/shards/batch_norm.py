"""Measure the running statistics of a merged model's batch norm in a block, batch by batch.

They stay in memory until all batches have been processed. Batches are counted: a shard that was
restarted between two batches raises `Forgotten`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from actors.artifacts.errors import Forgotten
from actors.families.protocol import Activations
from actors.shards.block import Block
from actors.shards.messages import Batch, Weights
from fusion.methods.soups.batch_norm import BatchNormMeter

MEAN, VARIANCE = "running_mean", "running_var"


class RunningCollector:
    """Measures one merged model at a time in one block."""

    def __init__(self, block: Block) -> None:
        """Nothing measured yet."""
        self.block = block
        self.under_way: tuple[str, int] = ("", 0)
        """Key of the weights that are measured, and the number of batches processed."""
        self.meter = BatchNormMeter({})

    def layers(self) -> dict[str, _BatchNorm]:
        """Canonical name of each layer of the block, without the last part -> the layer."""
        found: dict[str, _BatchNorm] = {}
        resident = self.block.resident
        for module, link in zip(resident.modules, resident.chain, strict=True):
            for own, name in link.running.items():
                layer = module.get_submodule(own.rpartition(".")[0])
                assert isinstance(layer, _BatchNorm)
                found[name.rpartition(".")[0]] = layer
        return found

    def forward(self, at: int, activations: Activations | Batch, weights: Weights) -> Activations:
        """Run batch `at` through the merged model, whose layers are measured.

        Raises:
            Forgotten: earlier batches were not processed here.
        """
        self.block.fill(weights)
        if not at:
            self.meter = BatchNormMeter(self.layers())
        else:
            self.check(weights.key, at)
        self.under_way = (weights.key, at + 1)
        with torch.inference_mode(), self.meter.measuring():
            return self.block.resident.chained(self.block.to_device(activations))

    def check(self, key: str, batches: int) -> None:
        """Raise Forgotten unless exactly the first `batches` batches of this key were processed."""
        if self.under_way != (key, batches):
            raise Forgotten(f"batch norm {key}: not the {batches} batches before were seen")

    def found(self, key: str, batches: int) -> dict[str, Tensor]:
        """Canonical name -> running statistic of this block's layers, float32 on the CPU.

        Raises:
            Forgotten: not all batches were processed here.
        """
        self.check(key, batches)
        found: dict[str, Tensor] = {}
        for name, (mean, variance) in self.meter.found().items():
            found |= {f"{name}.{MEAN}": mean, f"{name}.{VARIANCE}": variance}
        self.under_way, self.meter = ("", 0), BatchNormMeter({})
        return found
