"""Choose the form of a merged linear layer by the rates of its device.

Form A merges the weight and multiplies; form B scales the input for each of T task vectors. For a
weight [out, in] and n tokens of a model, in seconds for each element of the weight, form B takes
n·T·q more than form A's product, or n·(2T − 1)·q more with a backward pass, and form A takes m to
merge (2m with a backward pass) and s to sum ∂L/∂coding. So form B is faster for

  n < (m/q)/T                 in a forward pass,
  n < (2·m/q + s/q)/(2T − 1)  with a backward pass.

On a GPU, with F FLOP/s of products, F₃₂ those in float32, and W bytes/s of memory:

  q = max(2/F, 2r(1/in + 1/out)/W)   r: bytes of an activation
  m = max(M/W, 2T/F₃₂)               M = 8 in float32 (written, read), 12 in 16 bits (also cast)
  s = max(S/W, 2T/F₃₂)               S = 8 in float32 (dW written, read), 12 in 16 bits (also cast)

Reads of base and task vectors are shared by all models, and not counted. On a CPU m/q and s/q are
measured. Rates are constants of a device, never timings at run time, so the same call on the same
kind of device always gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias

import torch

Form: TypeAlias = Literal["auto", "A", "B"]


@dataclass(frozen=True)
class Rates:
    """Rates of a GPU."""

    float32: float
    """FLOP/s of products in float32."""
    bits16: float
    """FLOP/s of products in bfloat16 or float16; in TF32 it is half of that."""
    memory: float
    """Bytes/s of its memory."""


@dataclass(frozen=True)
class Crossover:
    """Seconds of form A for each element of a weight, relative to those of form B for each element,
    token and task."""

    merged: float
    """m/q: of merging."""
    summed: float
    """s/q: of the sum of ∂L/∂coding."""

    def limit(self, tasks: int, training: bool) -> float:
        """Tokens for each model below which form B is faster; see the top of this file."""
        if training:
            return (2 * self.merged + self.summed) / (2 * tasks - 1)
        return self.merged / tasks


CPU = Crossover(merged=32.0, summed=146.0)
"""In any dtype: 4 tokens, or 14 with a backward pass, at T = 8. Origin:
benchmarks/fusion/layers.py."""

CORES = {7: (64, 1024), 8: (128, 1024), 9: (128, 4096), 10: (128, 8192), 12: (128, 1024)}
"""Major compute capability -> multiply-adds in float32, and FLOPs in 16 bits with sums in float32,
of a multiprocessor in a cycle. Origin: NVIDIA's white papers; 8.0 (A100) is `A100`. Cards for games
have half the 16-bit rate."""

A100 = (64, 2048)

H200 = Rates(float32=60e12, bits16=990e12, memory=4.8e12)
"""Data sheet; used where a GPU's properties are not known."""


@cache
def rates_of(device: torch.device) -> Rates:
    """Rates of a GPU at its highest clocks, from its properties; `H200` if they are not known."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return H200
    known: Any = torch.cuda.get_device_properties(device)
    if known.major not in CORES:
        return H200
    adds, flops16 = A100 if (known.major, known.minor) == (8, 0) else CORES[known.major]
    cycles = known.multi_processor_count * known.clock_rate * 1e3
    memory = 2e3 * known.memory_clock_rate * known.memory_bus_width / 8
    return Rates(2 * adds * cycles, flops16 * cycles, memory)


@cache
def crossover(
    device: torch.device,
    dtype: torch.dtype,
    tf32: bool,
    shape: tuple[int, int],
    tasks: int,
    rates: Rates | None = None,
) -> Crossover:
    """The crossover of a layer; the formulas at the top of this file.

    Args:
        device: device of the layer.
        dtype: dtype of the activations.
        tf32: whether float32 is multiplied in TF32.
        shape: (out, in) of the weight.
        tasks: T.
        rates: rates of the device. Default `rates_of(device)`; not used on a CPU.

    >>> cuda = torch.device("cuda")
    >>> [round(crossover(cuda, kind, on, (768, 768), 8, H200).merged / 8) for kind, on in (
    ...     (torch.float32, False), (torch.float32, True), (torch.bfloat16, False))]
    [6, 48, 144]
    """
    if device.type == "cpu":
        return CPU
    found = rates or rates_of(device)
    size = dtype.itemsize
    flops = found.bits16 if size == 2 else found.bits16 / 2 if tf32 else found.float32
    scaled = max(2 / flops, 2 * size * (1 / shape[0] + 1 / shape[1]) / found.memory)
    moved = 12 if size == 2 else 2 * size
    merged = max(moved / found.memory, 2 * tasks / found.float32)
    return Crossover(merged / scaled, merged / scaled)


def form_for(tokens: int, tasks: int, training: bool, costs: Crossover) -> Form:
    """Choose form `A` or `B` from the number of tokens for each model.

    Args:
        tokens: n, for each model.
        tasks: T.
        training: whether a backward pass follows.
        costs: of the layer on its device.

    >>> form_for(50, 8, False, CPU), form_for(1, 8, True, CPU)
    ('A', 'B')
    """
    return "B" if tokens < costs.limit(tasks, training) else "A"
