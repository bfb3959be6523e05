"""Normal numbers for tests, by seed."""

from __future__ import annotations

import torch
from torch import Tensor


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, drawn in their own dtype."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def drawn_as_double(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, drawn in float64 whatever the dtype."""
    return drawn(*shape, seed=seed, dtype=torch.float64).to(dtype)
