"""Task vectors that are made when they are read: from files, or from other task vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor


class Computed(Mapping[str, Tensor]):
    """Tensor name -> task vectors [T, *shape], made anew by `make(name)` at every access.

    Nothing is kept: a pass over all names holds one tensor's task vectors at a time. Whoever needs
    a tensor twice asks twice, or keeps what it got.
    """

    def __init__(self, names: Iterable[str], make: Callable[[str], Tensor]) -> None:
        self.names = tuple(names)
        self.known = frozenset(self.names)
        self.make = make

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

    def some(self, names: Iterable[str]) -> Computed:
        """Those of these tensors only."""
        return Computed((name for name in names if name in self.known), self.make)
