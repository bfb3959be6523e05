"""Low-rank task vectors: T pairs of LoRA factors for one weight, never multiplied out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fusion.errors import InputError


@dataclass(frozen=True, eq=False)
class LowRank:
    """τ_t = B_t·A_t for one weight [out, in]: its shape, dtype and device are the dense ones'."""

    down: Tensor
    """A [T, r, in]."""
    up: Tensor
    """B [T, out, r]; LoRA's scale α/r is in it."""

    def __post_init__(self) -> None:
        if (
            self.down.ndim != 3
            or self.up.ndim != 3
            or (self.down.shape[0], self.down.shape[1]) != (self.up.shape[0], self.up.shape[2])
        ):
            raise InputError(
                f"low-rank task vectors: down {list(self.down.shape)}, up {list(self.up.shape)};"
                " [T, r, in] and [T, out, r] needed"
            )

    @property
    def shape(self) -> torch.Size:
        """[T, out, in]."""
        return torch.Size((self.down.shape[0], self.up.shape[1], self.down.shape[2]))

    @property
    def dtype(self) -> torch.dtype:
        """Of the factors."""
        return self.down.dtype

    def dense(self) -> Tensor:
        """The task vectors multiplied out, [T, out, in]: for tests and for rules that need them."""
        return self.up @ self.down
