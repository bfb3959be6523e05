"""Counter-based random numbers: the same on every device, in any order, for any sharding.

A number is a hash of (key, position), computed with integer operations that wrap at 64 bits on CPUs
and GPUs alike. PyTorch's own generators give other numbers on a GPU than on a CPU.
"""

from __future__ import annotations

from hashlib import sha256

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
"""Increment of SplitMix64's state: 2⁶⁴ divided by the golden ratio, made odd."""

WORDS = 1 << 16
"""64-bit words computed at a time on a CPU, so that they stay in its cache."""


def key_of(*what: object) -> int:
    """64-bit key, a hash of the arguments' text (SHA-256).

    >>> key_of(1, "a") == key_of(1, "a"), key_of(1, "a") == key_of(1, "b")
    (True, False)
    """
    digest = sha256(" ".join(map(str, what)).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def signed(number: int) -> int:
    """The low 64 bits of an integer as a signed int64, as PyTorch stores them.

    >>> signed(2**64 - 1)
    -1
    """
    number &= 2**64 - 1
    return number - 2**64 if number >= 2**63 else number


def splitmix(key: int, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Words [start, start + count) of the SplitMix64 sequence with seed `key`: int64 [count].

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"; the
    constants are those of Vigna's `splitmix64.c`.
    """
    words = torch.arange(start + 1, start + count + 1, dtype=torch.int64, device=device)
    words.mul_(signed(GOLDEN)).add_(signed(key))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        xor_shift(words, shift).mul_(signed(factor))
    return xor_shift(words, 31)


def xor_shift(words: Tensor, shift: int) -> Tensor:
    """words ^= words >> shift, in place, with zeros shifted in."""
    return words.bitwise_xor_((words >> shift).bitwise_and_((1 << (64 - shift)) - 1))


def uniform(
    shape: torch.Size | tuple[int, ...],
    key: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Uniform random numbers in (0, 1), determined by `key` alone.

    They are (2k + 1)/2²⁴ with k uniform in [0, 2²³). Element i is made from the i-th half of a
    word, the lower half first. All these numbers are exact in float32, and neither 0 nor 1 occurs.

    Args:
        shape: shape of the result.
        key: from `key_of`.
        dtype: float32 (default) or float64; the numbers are the same.
        device: device of the result. Default: the CPU.
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
