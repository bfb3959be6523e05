"""LoRA for training: low-rank factors beside frozen linear layers.

A layer with weight W₀ [out, in] becomes y = (W₀ + (α/r)·B·A)x, with A [r, in] and B [out, r], of
which only A and B are trained (Hu et al. 2022, arXiv:2106.09685). PEFT's layers compute it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn

from actors.training.random_numbers import draws


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Hyper-parameters of LoRA; `finetune.lora` of a training file has these names and ranges.

    Defaults are those of the Flan-T5 adapters of DAWE's released code and of FusionBench.
    """

    rank: Annotated[int, Interval(ge=1)] = 16
    """r: rows of A, columns of B."""
    alpha: Annotated[float, Interval(gt=0)] = 32.0
    """α: the product B·A is multiplied by α/r."""
    targets: Sequence[str] = ("q", "v")
    """Last parts of the names of the layers that are adapted."""
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Dropout of A's input; off in evaluation."""


class LoraFactors(nn.Module):
    """The factors of a model's adapted layers: its only trainable parameters.

    They are the parameters that the layers use, so a step of an optimiser, or `load_state_dict`,
    changes the model. The state has nothing of the frozen model.
    """

    def __init__(self, layers: Mapping[str, tuple[nn.Parameter, nn.Parameter]]) -> None:
        """`layers`: name of a layer in the model -> its A [r, in] and B [out, r]."""
        super().__init__()
        self.names = tuple(layers)
        self.down = nn.ParameterList([down for down, _ in layers.values()])
        self.up = nn.ParameterList([up for _, up in layers.values()])

    def tensors(self) -> dict[str, Tensor]:
        """`<layer>.lora_A.weight` and `<layer>.lora_B.weight` -> the factors."""
        found: dict[str, Tensor] = {}
        for name, down, up in zip(self.names, self.down, self.up, strict=True):
            found |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        return found


def add_lora(model: nn.Module, options: Lora, seed: int) -> LoraFactors:
    """Freeze a model, and put factors beside its target layers, in place.

    A is drawn from U(−1/√in, 1/√in), as by the authors' code (Kaiming's draw with a = √5). B is 0,
    so the model's output is not changed.

    Args:
        model: a model with `nn.Linear` layers of the names in `options.targets`.
        options: hyper-parameters.
        seed: of the draw.
    """
    # Late: sweeps that only merge start faster without PEFT.
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # PEFT only divides it by the rank
        lora_dropout=options.dropout,
        target_modules=list(options.targets),
    )
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # PEFT draws factors of its own
        inject_adapter_in_model(config, model)
    generator = torch.Generator().manual_seed(int(draws(seed, 0, "lora").integers(2**63)))
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            down, up = weight_of(layer.lora_A), weight_of(layer.lora_B)
            drawn = 2 * torch.rand(down.shape, generator=generator) - 1
            down.data.copy_(drawn / math.sqrt(down.shape[1]))
            up.data.zero_()
            found[name] = (down, up)
    return LoraFactors(found)


def weight_of(layers: nn.ModuleDict) -> nn.Parameter:
    """The weight of the one linear layer that PEFT keeps for each of A and B."""
    (layer,) = layers.values()
    weight: nn.Parameter = layer.get_parameter("weight")
    return weight
