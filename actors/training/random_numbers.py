"""Random numbers of a training step: a function of (seed, step).

So a run that continues from a checkpoint draws the same ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def draws(seed: int, step: int, purpose: str) -> np.random.Generator:
    """Random number generator of one step for one purpose."""
    return np.random.default_rng([zlib.crc32(purpose.encode()), seed, step])


@contextmanager
def seeded(seed: int, step: int, purpose: str, device: str = "cpu") -> Iterator[None]:
    """Seed torch's global generators for one step, and restore them afterwards; for dropout."""
    gpus = [torch.cuda.current_device()] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(int(draws(seed, step, purpose).integers(2**63)))
        yield
