"""Low-rank task vectors: LoRA factors of one weight, multiplied out only on request.

The factors of T experts lie side by side, R = Σ_t r_t in total. Ranks may differ, and an expert
that does not change the weight has rank 0. So a weighted sum over experts is one matrix product of
inner size R.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from fusion.errors import InputError


@dataclass(frozen=True, eq=False)
class LowRank:
    """Low-rank task vectors τ_t = B_t·A_t of one weight, by their factors.

    `shape`, `dtype` and `device` are those of the dense task vectors.

    Raises:
        InputError: shapes of factors that do not fit the ranks or the weight.
    """

    down: Tensor
    """[R, in]: A_1, …, A_T stacked."""
    up: Tensor
    """[out, R]: B_1, …, B_T side by side, with LoRA's scale α/r included."""
    ranks: tuple[int, ...]
    """Ranks r_t; their sum is R."""
    dims: tuple[int, ...] = ()
    """Shape of the weight if it is no matrix (a convolution); then `out` is its first axis and `in`
    all others together."""

    def __post_init__(self) -> None:
        total = sum(self.ranks)
        if (
            self.down.ndim != 2
            or self.up.ndim != 2
            or (self.down.shape[0], self.up.shape[1]) != (total, total)
            or (self.dims and self.flat != (self.dims[0], torch.Size(self.dims[1:]).numel()))
        ):
            raise InputError(
                f"low-rank task vectors: down {list(self.down.shape)}, up {list(self.up.shape)};"
                f" [{total}, in] and [out, {total}] needed for ranks {list(self.ranks)}"
                + (f" of a weight {list(self.dims)}" if self.dims else "")
            )

    @classmethod
    def of(cls, pairs: Sequence[tuple[Tensor, Tensor]], dims: Sequence[int] = ()) -> LowRank:
        """From the factors (A_t [r_t, in], B_t [out, r_t]) of each task, copied.

        Raises:
            InputError: factors that do not fit each other.
        """
        for at, (down, up) in enumerate(pairs):
            fits = down.ndim == up.ndim == 2 and len(down) == up.shape[1]
            if not fits or (down.shape[1], len(up)) != (pairs[0][0].shape[1], len(pairs[0][1])):
                raise InputError(
                    f"low-rank task vectors: expert {at}: down {list(down.shape)},"
                    f" up {list(up.shape)}; [r, in] and [out, r] needed, in and out as all others'"
                )
        ranks = tuple(len(down) for down, _ in pairs)
        down = torch.cat([down for down, _ in pairs])
        return cls(down, torch.cat([up for _, up in pairs], dim=1), ranks, tuple(dims))

    @property
    def flat(self) -> tuple[int, int]:
        """(out, in), the shape of the weight as a matrix."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def shape(self) -> torch.Size:
        """Shape of the dense task vectors: [T, out, in], or [T, *dims]."""
        return torch.Size((len(self.ranks), *(self.dims or self.flat)))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the factors."""
        return self.down.dtype

    @property
    def device(self) -> torch.device:
        """Device of the factors."""
        return self.down.device

    @property
    def nbytes(self) -> int:
        """Bytes of the factors: R·(in + out) elements."""
        return self.down.nbytes + self.up.nbytes

    def parts(self) -> list[slice]:
        """Position of each task's factors along the R axis."""
        stops = [*accumulate(self.ranks)]
        return [slice(stop - rank, stop) for rank, stop in zip(self.ranks, stops, strict=True)]

    @cached_property
    def owners(self) -> Tensor:
        """Membership matrix [T, R]: 1 where a factor belongs to a task."""
        with torch.inference_mode(False):  # a micro-batch may want what an evaluation made
            found = torch.zeros(len(self.ranks), sum(self.ranks), dtype=self.dtype)
            for task, part in enumerate(self.parts()):
                found[task, part] = 1.0
            return found.to(self.device)

    def dense(self, used: Sequence[bool] | None = None) -> Tensor:
        """Dense task vectors [T, *shape] in new memory; rows of tasks not in `used` are zero.

        Each task is one `product`, so the bits are those of adapters that are multiplied out one by
        one.
        """
        made = torch.zeros(len(self.ranks), *self.flat, dtype=self.dtype, device=self.device)
        for at, part in enumerate(self.parts()):
            if self.ranks[at] and (used is None or used[at]):
                made[at] = product(self.down[part], self.up[:, part])
        return made.view(self.shape)

    def mixed(self, coefficients: Sequence[float], dtype: torch.dtype) -> Tensor:
        """Weighted sum Σ_t c_t τ_t as one product [out, R]·[R, in], in `dtype`; 2·R·out·in FLOPs.

        The coefficients are multiplied into `up`; tasks with coefficient zero are left out.
        """
        pairs = zip(self.parts(), coefficients, strict=True)
        terms = [(part, c) for part, c in pairs if c and part.stop > part.start]
        if not terms:
            return torch.zeros(self.shape[1:], dtype=dtype, device=self.device)
        up = torch.cat([self.up[:, part].to(dtype) * c for part, c in terms], dim=1)
        down = torch.cat([self.down[part].to(dtype) for part, _ in terms])
        return torch.mm(up, down).view(self.shape[1:])

    def flatten(self, start: int) -> LowRank:
        """The same task vectors with all axes from `start` (always 2) joined: those of a matrix."""
        assert start == 2
        return LowRank(self.down, self.up, self.ranks)


@dataclass(frozen=True, eq=False)
class Zeros:
    """Task vectors of a tensor that no expert changes: a shape and a dtype, without memory."""

    shape: torch.Size
    """Shape of the dense form, [T, *shape]."""
    dtype: torch.dtype
    device: torch.device

    @property
    def nbytes(self) -> int:
        """Zero."""
        return 0

    def dense(self, used: Sequence[bool] | None = None) -> Tensor:
        """Zeros [T, *shape], one shared element expanded: read-only."""
        return torch.zeros((), dtype=self.dtype, device=self.device).expand(self.shape)

    def flatten(self, start: int) -> Zeros:
        """The same with the axes from `start` flattened into one."""
        rest = torch.Size(self.shape[start:]).numel()
        return Zeros(torch.Size((*self.shape[:start], rest)), self.dtype, self.device)


def product(down: Tensor, up: Tensor) -> Tensor:
    """One expert's task vector τ = B·A [out, in].

    Every caller uses this function, so that results have the same bits wherever the factors come
    from. The operands are copied first, because the bits of a product may depend on their address
    in memory.

    >>> product(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [0.0]])).tolist()
    [[3.0, 6.0], [0.0, 0.0]]
    """
    left, right = (each.clone(memory_format=torch.contiguous_format) for each in (up, down))
    return left @ right
