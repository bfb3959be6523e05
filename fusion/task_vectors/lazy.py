"""Lazy task vectors: computed when they are read, from files or from other task vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fusion.task_vectors.low_rank import LowRank, Zeros


class Computed(Mapping[str, Tensor]):
    """Tensor name -> task vectors [T, *shape], made anew by `make(name)` at every access.

    Nothing is kept: a pass over all names holds one tensor's task vectors at a time. Whoever needs
    a tensor twice asks twice, or keeps what it got.
    """

    def __init__(
        self,
        names: Iterable[str],
        make: Callable[[str], Tensor],
        outline: Callable[[str], Tensor] | None = None,
        part: Callable[[str, Sequence[bool]], Tensor] | None = None,
    ) -> None:
        """Nothing is made yet.

        Args:
            names: of the tensors, in order.
            make: the task vectors [T, *shape] of one tensor.
            outline: the same without memory (on the meta device), where shape and dtype are known
                without making them; None: they are made, and let go.
            part: the task vectors of those tasks only that are marked, the other rows zero; None:
                all are made.
        """
        self.names = tuple(names)
        self.known = frozenset(self.names)
        self.make = make
        self.outline = outline
        self.part = part

    def __getitem__(self, name: str) -> Tensor:
        """[T, *shape], made now."""
        if name not in self.known:
            raise KeyError(name)
        return self.make(name)

    def __contains__(self, name: object) -> bool:
        """Whether there is such a tensor; nothing is made."""
        return name in self.known

    def __iter__(self) -> Iterator[str]:
        """Names, in order."""
        return iter(self.names)

    def __len__(self) -> int:
        """How many tensors."""
        return len(self.names)

    def held(self, name: str) -> Tensor | LowRank | Zeros | None:
        """What is in memory of a tensor's task vectors, whatever its form; None: nothing is."""
        return None

    def some(self, names: Iterable[str]) -> Computed:
        """Those of these tensors only."""
        names = [name for name in names if name in self.known]
        return Computed(names, self.make, self.outline, self.part)


@dataclass(frozen=True)
class Remade:
    """One tensor's task vectors [T, *shape], made anew by every `make()`.

    Layers that get this in place of a tensor keep it for their backward pass, and make the tensor
    again there: of all layers' task vectors one's are in memory at a time.
    """

    make: Callable[[], Tensor]

    def flatten(self, start: int) -> Remade:
        """With the axes from `start` as one."""
        return Remade(lambda: self.make().flatten(start))

    def through(self, rule: Callable[[Tensor, Tensor], Tensor], coefficients: Tensor) -> Tensor:
        """`rule(coefficients, τ)`, of which autograd keeps the coefficients alone.

        The backward pass runs the rule again: the same operations, the same bits. It is for what
        costs little to run.
        """
        found: Tensor = checkpoint(
            lambda c: rule(c, self.make()),
            coefficients,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        return found


def lasting(deltas: Mapping[str, Tensor], name: str) -> Tensor | LowRank | Zeros | Remade:
    """What may be kept of one tensor's task vectors: they themselves, their factors, or how to
    make them again."""
    if not isinstance(deltas, Computed):
        return deltas[name]
    held = deltas.held(name)
    return Remade(lambda: deltas[name]) if held is None else held


def weighed(
    deltas: Mapping[str, Tensor], name: str, coefficients: Sequence[float]
) -> Tensor | LowRank | Zeros:
    """One tensor's task vectors [T, *shape] for a sum with these coefficients.

    Where they can be made task by task, those that have no part in it are not: a soup of three of
    seventy ingredients reads three. Factors are left as they are.
    """
    if not isinstance(deltas, Computed):
        return deltas[name]
    held = deltas.held(name)
    if held is not None:
        return held
    if deltas.part is not None:
        return deltas.part(name, [bool(c) for c in coefficients])
    return deltas[name]


class Groups:
    """Task vectors in groups that are in memory together; each iteration is a pass over all.

    Of a plain mapping there is one group. Of a `Computed` each tensor is a group of its own, and
    a pass that lets go of one before it asks for the next holds one tensor's task vectors.
    """

    def __init__(self, deltas: Mapping[str, Tensor]) -> None:
        self.deltas = deltas

    def __iter__(self) -> Iterator[list[Tensor]]:
        """Lists of task vectors [T, *shape]."""
        if isinstance(self.deltas, Computed):
            for name in self.deltas:
                yield [self.deltas[name]]
        else:
            yield list(self.deltas.values())

    def outlines(self) -> Iterator[Tensor]:
        """Task vectors for their shapes and dtypes: without memory where they would be made."""
        for name in self.deltas:
            if not isinstance(self.deltas, Computed):
                yield self.deltas[name]
            elif self.deltas.outline is not None:
                yield self.deltas.outline(name)
            else:
                yield torch.empty_like(self.deltas[name], device="meta")
