"""Mapping of low-rank task vectors (LoRA factors) that expands a tensor when it is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fusion.task_vectors.lazy import Computed
from fusion.task_vectors.low_rank import LowRank, Zeros


class Factored(Computed):
    """Tensor name -> task vectors [T, *shape] of experts that are adapters.

    Held are factors of what adapters change by them, dense task vectors of what they bring whole
    (biases, norms), and nothing of all else, whose task vectors are zero. Reading a name multiplies
    out: every method works, with one tensor's task vectors in memory at a time, which have the
    bits of adapters that were multiplied out when they were loaded. Merged layers and mixes by a
    coding take `held` instead, and never multiply out; there sums are made in another order, so
    that results differ by rounding (1e-6 relative in float32).
    """

    def __init__(self, holdings: Mapping[str, LowRank | Zeros | Tensor]) -> None:
        """Nothing is made yet.

        Args:
            holdings: tensor name -> what is held, in order, all on one device.
        """
        self.holdings = dict(holdings)
        super().__init__(self.holdings, self.multiplied, self.outlined, self.parted)

    def multiplied(self, name: str) -> Tensor:
        """[T, *shape]; of what is held whole, that itself."""
        held = self.holdings[name]
        return held if isinstance(held, Tensor) else held.dense()

    def outlined(self, name: str) -> Tensor:
        """The same without memory."""
        held = self.holdings[name]
        return torch.empty(held.shape, dtype=held.dtype, device="meta")

    def parted(self, name: str, used: Sequence[bool]) -> Tensor:
        """The same of those tasks that are used; the others' rows of factors are zero."""
        held = self.holdings[name]
        return held if isinstance(held, Tensor) else held.dense(used)

    def held(self, name: str) -> LowRank | Zeros | Tensor:
        """What is held of a tensor's task vectors: a layer may keep it."""
        return self.holdings[name]

    def factors(self, name: str) -> LowRank | None:
        """A tensor's factors; None where it has none."""
        held = self.holdings[name]
        return held if isinstance(held, LowRank) else None

    def some(self, names: Iterable[str]) -> Factored:
        """Those of these tensors only, with their factors."""
        return Factored({name: self.holdings[name] for name in names if name in self.known})

    @property
    def nbytes(self) -> int:
        """Memory of what is held."""
        return sum(held.nbytes for held in self.holdings.values())
