"""Low-rank task vectors (LoRA factors) of a whole model, multiplied out when a tensor is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fusion.task_vectors.lazy import LazyTensors
from fusion.task_vectors.low_rank import LowRank, Zeros


class LowRankTaskVectors(LazyTensors):
    """Tensor name -> task vectors [T, *shape] of experts that are LoRA adapters.

    Stored are low-rank factors of the adapted weights, dense task vectors of tensors that adapters
    hold whole (biases, norms), and nothing for all other tensors, whose task vectors are zero.
    Reading a name multiplies the factors out, so every method works, with one tensor's dense task
    vectors in memory at a time. The result has the same bits as adapters that are multiplied out
    when they are loaded.

    Merged layers and merges by a coding read `held` and never multiply out. They add in another
    order, so results differ by rounding (relative 1e-6 in float32).
    """

    def __init__(self, holdings: Mapping[str, LowRank | Zeros | Tensor]) -> None:
        """Store the factors; nothing is multiplied out yet.

        Args:
            holdings: tensor name -> what is stored (factors, zeros or dense task vectors), in
                order, all on one device.
        """
        self.holdings = dict(holdings)
        super().__init__(self.holdings, self.multiplied, self.outlined, self.parted)

    def multiplied(self, name: str) -> Tensor:
        """Dense task vectors [T, *shape] of one tensor; stored dense ones are returned uncopied."""
        held = self.holdings[name]
        return held if isinstance(held, Tensor) else held.dense()

    def outlined(self, name: str) -> Tensor:
        """The same shape and dtype on the meta device, without memory."""
        held = self.holdings[name]
        return torch.empty(held.shape, dtype=held.dtype, device="meta")

    def parted(self, name: str, used: Sequence[bool]) -> Tensor:
        """Dense task vectors in which rows of tasks not marked in `used` may be zero."""
        held = self.holdings[name]
        return held if isinstance(held, Tensor) else held.dense(used)

    def held(self, name: str) -> LowRank | Zeros | Tensor:
        """The stored form of a tensor's task vectors, which a layer may keep without a copy."""
        return self.holdings[name]

    def factors(self, name: str) -> LowRank | None:
        """The low-rank factors of a tensor; None if it is stored in another form."""
        held = self.holdings[name]
        return held if isinstance(held, LowRank) else None

    def some(self, names: Iterable[str]) -> LowRankTaskVectors:
        """The mapping restricted to some tensors, stored as before; unknown names are ignored."""
        return LowRankTaskVectors(
            {name: self.holdings[name] for name in names if name in self.known}
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        return sum(held.nbytes for held in self.holdings.values())
