"""Copies from main memory to a device, through pinned memory where the device is a GPU.

A copy from pageable memory makes the host wait until it is done. One from pinned (page-locked)
memory only starts. PyTorch keeps pinned memory for reuse, and keeps it until its copies are done.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def staging(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised CPU tensor to be sent to `device`; pinned if that is a GPU.

    >>> staging((2, 3), torch.uint8, torch.device("cpu")).shape
    torch.Size([2, 3])
    """
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=device.type == "cuda")


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; the host does not wait for a copy to a GPU.

    >>> sent(torch.ones(2), torch.device("cpu")).tolist()
    [1.0, 1.0]
    """
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    return send(staging(tensor.shape, tensor.dtype, device).copy_(tensor), device)


def send(staged: Tensor, device: torch.device) -> Tensor:
    """A tensor of `staging` on its device; it must not be written again."""
    return staged.to(device, non_blocking=True)
