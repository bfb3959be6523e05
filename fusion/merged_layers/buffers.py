"""Reused scratch buffers: on a CPU, touching new pages costs more than writing them.

A large block that is given back to the system comes back page by page, each with a fault; merging
one weight for seven samples takes three times as long into new memory as into old.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

LARGE = 1 << 20
"""Bytes below which an allocator keeps its memory anyway."""

lent = threading.local()
"""Of each thread: dtype -> its memory."""


def scratch(rows: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[rows, size], not filled; valid until this thread asks for the next one.

    The largest that was asked for is kept. GPUs have an allocator that keeps its memory.

    >>> scratch(2, 3, torch.float32, torch.device("cpu")).shape
    torch.Size([2, 3])
    """
    count = rows * size
    if device.type != "cpu" or count * dtype.itemsize < LARGE:
        return torch.empty(rows, size, dtype=dtype, device=device)
    kept: Tensor | None = getattr(lent, str(dtype), None)
    if kept is None or kept.numel() < count:
        setattr(lent, str(dtype), None)  # let go of the old before taking the new
        with torch.inference_mode(False):  # whoever asks next may want gradients
            kept = torch.empty(count, dtype=dtype)
        setattr(lent, str(dtype), kept)
    return kept[:count].view(rows, size)
