"""Counter-based random numbers: the same on every device, in any order, for any sharding.

A number is a hash of (key, position), computed with integer operations that wrap at 64 bits on CPUs
and GPUs alike. PyTorch's own generators give other numbers on a GPU than on a CPU.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.staging import sent

GOLDEN = 0x9E3779B97F4A7C15
"""Increment of SplitMix64's state: 2⁶⁴ divided by the golden ratio, made odd."""

ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
"""(shift, factor) of SplitMix64: a word is xored with itself shifted, then multiplied."""

Words: TypeAlias = NDArray[np.uint64]

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
    return sequences([key], start, count, device)[0]


def sequences(
    keys: Sequence[int], start: int, count: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Words [start, start + count) of the SplitMix64 sequences of K seeds: int64 [K, count].

    On a CPU by numpy, whose unsigned shifts fill with zeros, in half of torch's time.
    """
    device = torch.device(device)
    if device.type == "cpu":
        found = np.empty((len(keys), count), dtype=np.uint64)
        hash_places(keys, start, found, np.empty_like(found))
        return torch.from_numpy(found.view(np.int64))
    places = torch.arange(start + 1, start + count + 1, dtype=torch.int64, device=device)
    seeds = sent(torch.tensor([signed(key) for key in keys]), device)
    words = places.mul_(signed(GOLDEN)) + seeds[:, None]
    for shift, factor in ROUNDS:
        xor_shift(words, shift)
        if factor != 1:
            words.mul_(signed(factor))
    return words


def hash_places(keys: Sequence[int], start: int, out: Words, scratch: Words) -> None:
    """Write words [start, start + n) of K sequences to `out` [K, n]; `scratch` has its shape."""
    seeds = [key + start * GOLDEN & 2**64 - 1 for key in keys]
    np.add(multiples(out.shape[1]), np.array(seeds, dtype=np.uint64)[:, None], out=out)
    for shift, factor in ROUNDS:
        np.right_shift(out, np.uint64(shift), out=scratch)
        np.bitwise_xor(out, scratch, out=out)
        if factor != 1:
            np.multiply(out, np.uint64(factor), out=out)


@lru_cache(4)
def multiples(count: int) -> Words:
    """The first multiples of `GOLDEN`, modulo 2⁶⁴: uint64 [count]."""
    return np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)


def xor_shift(words: Tensor, shift: int) -> Tensor:
    """words ^= words >> shift, in place, with zeros shifted in."""
    return words.bitwise_xor_((words >> shift).bitwise_and_((1 << (64 - shift)) - 1))


class Scratch(threading.local):
    """Memory that a thread uses again: fresh memory costs page faults, as long as the hash."""

    def __init__(self) -> None:
        self.flat = np.empty(0, dtype=np.uint64)

    def words(self, rows: int, columns: int, count: int) -> list[Words]:
        """Arrays [rows, columns] whose contents are lost when the thread asks again."""
        if len(self.flat) < count * rows * columns:
            self.flat = np.empty(count * rows * columns, dtype=np.uint64)
        flat = self.flat[: count * rows * columns]
        return [*flat.reshape(count, rows, columns)]


SCRATCH = Scratch()


def bernoulli(
    keys: Sequence[int],
    density: float,
    span: slice,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Entries `span` of K random masks, determined by their keys alone: 0 or 1, [K, n].

    Element i is 1 if the i-th half of a word, the lower half first, is below `density`, as a
    fraction of 2³². So its probability is `density` up to 2⁻³³, and the ones of a higher density
    include those of a lower.

    Args:
        keys: from `key_of`.
        density: probability of 1, in (0, 1).
        span: positions of the entries; an even start.
        dtype: of the result. Default float32.
        device: of the result. Default: the CPU.
    """
    count = span.stop - span.start
    start, device = span.start // 2, torch.device(device)
    if device.type == "cpu":
        words = SCRATCH.words(len(keys), (count + 1) // 2, 2)
        hash_places(keys, start, *words)
        halves = torch.from_numpy(words[0].view(np.int32))[:, :count]
    else:
        halves = sequences(keys, start, (count + 1) // 2, device).view(torch.int32)[:, :count]
    found = torch.empty(halves.shape, dtype=dtype, device=device)
    return torch.lt(halves, min(round(density * 2**32), 2**32 - 1) - 2**31, out=found)


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
