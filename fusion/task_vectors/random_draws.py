"""Counter-based random numbers: the same on every device, in any order, for any sharding.

A number is a hash of (key, position), in whole-number operations that wrap at 64 bits alike on
CPUs and GPUs. PyTorch's own generators give other numbers on a GPU than on a CPU.
"""

from __future__ import annotations

from hashlib import sha256

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
"""What SplitMix64 adds to its state at each step: 2⁶⁴ over the golden ratio, odd."""

WORDS = 1 << 16
"""64-bit words hashed at a time on a CPU: they stay in its cache through all operations."""


def key_of(*what: object) -> int:
    """A 64-bit key of these words alone.

    >>> key_of(1, "a") == key_of(1, "a"), key_of(1, "a") == key_of(1, "b")
    (True, False)
    """
    digest = sha256(" ".join(map(str, what)).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def signed(number: int) -> int:
    """The 64 bits of a number as PyTorch's signed whole number.

    >>> signed(2**64 - 1)
    -1
    """
    number &= 2**64 - 1
    return number - 2**64 if number >= 2**63 else number


def splitmix(key: int, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Words [start, start + count) of SplitMix64 seeded by `key`: int64 [count].

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"; constants
    of Vigna's `splitmix64.c`.
    """
    words = torch.arange(start + 1, start + count + 1, dtype=torch.int64, device=device)
    words.mul_(signed(GOLDEN)).add_(signed(key))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed_in(words, shift).mul_(signed(factor))
    return mixed_in(words, 31)


def mixed_in(words: Tensor, shift: int) -> Tensor:
    """words ^= words >> shift, with zeros shifted in, in place."""
    return words.bitwise_xor_((words >> shift).bitwise_and_((1 << (64 - shift)) - 1))


def uniform(
    shape: torch.Size | tuple[int, ...],
    key: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Numbers of (0, 1), by `key` alone: (2k + 1)/2²⁴ with k uniform in [0, 2²³).

    Element i is made of the i-th half of a word, the lower half first. Float32 holds all these
    numbers as they are, so no sum is rounded, and neither 0 nor 1 comes out.

    Args:
        shape: of the result.
        key: of `key_of`.
        dtype: float32 or float64; the numbers are the same.
        device: where they are made.
    """
    found = torch.empty(shape, dtype=dtype, device=device)
    flat = found.view(-1)
    step = 2 * WORDS if found.device.type == "cpu" else max(len(flat), 1)
    for start in range(0, len(flat), step):
        part = flat[start : start + step]
        words = splitmix(key, start // 2, (len(part) + 1) // 2, found.device)
        halves = words.view(torch.int32)[: len(part)].bitwise_right_shift_(9)
        part.copy_(halves).add_(2**22 + 0.5).mul_(2.0**-23)
    return found
