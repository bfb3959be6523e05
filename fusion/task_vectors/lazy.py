"""Lazy task vectors: computed each time they are read.

They are made from files, from other task vectors, or from low-rank factors (LoRA).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fusion.task_vectors.low_rank import LowRank, Zeros
from fusion.task_vectors.packed import Packed, on_gpu


class LazyTensors(Mapping[str, Tensor]):
    """Tensor name -> task vectors [T, *shape], computed by `make(name)` at each access.

    Results are not cached: a loop over all names holds one tensor's task vectors at a time. A
    caller that needs a tensor twice reads it twice, or keeps it.
    """

    def __init__(
        self,
        names: Iterable[str],
        make: Callable[[str], Tensor],
        outline: Callable[[str], Tensor] | None = None,
        part: Callable[[str, Sequence[bool]], Tensor] | None = None,
    ) -> None:
        """Store the functions; nothing is computed yet.

        Args:
            names: names of the tensors, in order.
            make: computes the task vectors [T, *shape] of one tensor.
            outline: the same shape and dtype on the meta device, if they are known without
                computing. None: the tensor is computed and released.
            part: computes only the tasks that are marked; the other rows are zero. None: all rows
                are computed.
        """
        self.names = tuple(names)
        self.known = frozenset(self.names)
        self.make = make
        self.outline = outline
        self.part = part

    def __getitem__(self, name: str) -> Tensor:
        """Compute the task vectors [T, *shape] of one tensor.

        Raises:
            KeyError: no such tensor.
        """
        if name not in self.known:
            raise KeyError(name)
        return self.make(name)

    def __contains__(self, name: object) -> bool:
        """Whether there is such a tensor; nothing is computed."""
        return name in self.known

    def __iter__(self) -> Iterator[str]:
        """Names, in order."""
        return iter(self.names)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self.names)

    def held(self, name: str) -> Tensor | LowRank | Zeros | None:
        """Task vectors that are in memory already, in any form; None: there are none."""
        return None

    def some(self, names: Iterable[str]) -> LazyTensors:
        """The mapping restricted to some tensors; unknown names are ignored."""
        names = [name for name in names if name in self.known]
        return LazyTensors(names, self.make, self.outline, self.part)


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


class NarrowTensors(LazyTensors):
    """Tensor name -> task vectors [T, *shape] that are stored in bfloat16.

    Reading a name converts one tensor's task vectors to float32. Merges, surveys and merged layers
    that work in chunks read them as they are stored (`as_stored`), and convert each chunk. Both
    have the bits of float32 task vectors with the same values.
    """

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        """`stored`: tensor name -> task vectors in bfloat16, or in float64, which stay as they
        are."""
        self.stored = stored
        super().__init__(stored, self.converted, self.outlined)

    def converted(self, name: str) -> Tensor:
        """Task vectors of one tensor in float32, or float64."""
        tensor = self.stored[name]
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

    def outlined(self, name: str) -> Tensor:
        """The same shape and dtype on the meta device."""
        tensor = self.stored[name]
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        return torch.empty(tensor.shape, dtype=dtype, device="meta")

    def held(self, name: str) -> Tensor:
        """Task vectors of one tensor as they are stored."""
        return self.stored[name]

    def some(self, names: Iterable[str]) -> NarrowTensors:
        """The mapping restricted to some tensors; unknown names are ignored."""
        if isinstance(self.stored, Packed):
            return NarrowTensors(self.stored.some(names))
        return NarrowTensors({name: self.stored[name] for name in names if name in self.known})


def widened(stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Task vectors as methods read them: those in bfloat16 as `NarrowTensors`."""
    narrow = any(tensor.dtype == torch.bfloat16 for tensor in stored.values())
    return NarrowTensors(stored) if narrow else stored


def as_stored(deltas: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Task vectors as they are in memory, for code that converts them in chunks."""
    return deltas.stored if isinstance(deltas, NarrowTensors) else deltas


@dataclass(frozen=True)
class Recomputed:
    """One tensor's task vectors [T, *shape], computed again by each call of `make()`.

    A layer keeps this object instead of the tensor for its backward pass, and computes the tensor
    again there. So only one layer's task vectors are in memory at a time.
    """

    make: Callable[[], Tensor]

    def flatten(self, start: int) -> Recomputed:
        """The same with the axes from `start` flattened into one."""
        return Recomputed(lambda: self.make().flatten(start))

    def through(self, rule: Callable[[Tensor, Tensor], Tensor], coefficients: Tensor) -> Tensor:
        """`rule(coefficients, τ)` with activation checkpointing: autograd keeps only coefficients.

        The backward pass runs the rule again, with the same operations and the same bits. Meant for
        rules that are cheap to run.
        """
        found: Tensor = checkpoint(
            lambda c: rule(c, self.make()),
            coefficients,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        return found


def for_backward(deltas: Mapping[str, Tensor], name: str) -> Tensor | LowRank | Zeros | Recomputed:
    """A form of one tensor's task vectors that a layer may keep for its backward pass.

    That is the tensor itself, its low-rank factors, or an object that computes it again.
    """
    if not isinstance(deltas, LazyTensors):
        return deltas[name]
    held = deltas.held(name)
    return Recomputed(lambda: deltas[name]) if held is None else held


def for_mixing(
    deltas: Mapping[str, Tensor], name: str, coefficients: Sequence[float], factors: bool = True
) -> Tensor | LowRank | Zeros:
    """One tensor's task vectors [T, *shape] for a weighted sum with these coefficients.

    If rows can be computed one by one, rows with coefficient zero are not computed: a soup of three
    of seventy ingredients reads three. Low-rank factors are returned as they are, unless `factors`
    is false.
    """
    if not isinstance(deltas, LazyTensors):
        return deltas[name]
    held = deltas.held(name) if factors else None
    if held is not None:
        return held
    if deltas.part is not None:
        return deltas.part(name, [bool(c) for c in coefficients])
    return deltas[name]


class TensorStream:
    """Task vectors as lists of tensors that are in memory together; each iteration is one pass.

    A plain mapping gives one list. A `LazyTensors` gives one list for each tensor, so a loop that
    releases a list before it requests the next holds one tensor's task vectors.
    """

    def __init__(self, deltas: Mapping[str, Tensor]) -> None:
        self.deltas = as_stored(deltas)

    def __iter__(self) -> Iterator[list[Tensor]]:
        """Lists of task vectors [T, *shape]; packed ones on a GPU as few [T, n]; some may be in
        bfloat16."""
        if isinstance(self.deltas, LazyTensors):
            for name in self.deltas:
                yield [self.deltas[name]]
        elif isinstance(self.deltas, Packed) and on_gpu(self.deltas):
            yield self.deltas.spans()
        else:
            yield list(self.deltas.values())

    def outlines(self) -> Iterator[Tensor]:
        """Shapes and dtypes of all task vectors, as tensors; lazy ones are on the meta device."""
        for name in self.deltas:
            if not isinstance(self.deltas, LazyTensors):
                yield self.deltas[name]
            elif self.deltas.outline is not None:
                yield self.deltas.outline(name)
            else:
                yield torch.empty_like(self.deltas[name], device="meta")
