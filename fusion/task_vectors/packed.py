"""Tensors packed into one flat array for each dtype, and what is merged over whole runs of them.

On a GPU each operation costs a launch, so a merge there works on runs: tensors that lie one after
the other in base, task vectors and result alike. A CPU merges tensor by tensor, in chunks that stay
in its cache.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ENTRIES = 1 << 23
"""Entries [T, n] that a rule works on at a time on a GPU: its scratch memory is a few times that,
32 MiB of float32 each."""

LONGEST = 1 << 30
"""Elements of a run at most: matrix-vector products take sizes below 2³¹."""


@dataclass(frozen=True)
class Place:
    """Position of a tensor in the flat array of its dtype."""

    dtype: torch.dtype
    start: int
    """First element, on the last axis."""
    shape: tuple[int, ...]
    """Shape without the flat array's leading axes."""

    @property
    def stop(self) -> int:
        """The element after the last."""
        return self.start + math.prod(self.shape)


class Packed(Mapping[str, Tensor]):
    """Tensor name -> [*lead, *shape], views of one flat array [*lead, d] for each dtype."""

    def __init__(self, flat: Mapping[torch.dtype, Tensor], places: Mapping[str, Place]) -> None:
        """`lead` is empty for a state dict and (T,) for task vectors."""
        self.flat, self.places = dict(flat), dict(places)
        self.views = {name: self.view(place) for name, place in self.places.items()}

    def view(self, place: Place) -> Tensor:
        """The tensor at a place."""
        flat = self.flat[place.dtype]
        return flat[..., place.start : place.stop].view((*flat.shape[:-1], *place.shape))

    def __getitem__(self, name: str) -> Tensor:
        """A view; raises KeyError if there is no such tensor."""
        return self.views[name]

    def __iter__(self) -> Iterator[str]:
        """Names, in order."""
        return iter(self.views)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self.views)

    def some(self, names: Iterable[str]) -> Packed:
        """The mapping restricted to some tensors, in that order; unknown names are ignored."""
        places = {name: self.places[name] for name in names if name in self.places}
        return Packed(self.flat, places)

    def spans(self) -> list[Tensor]:
        """All tensors as few pieces [*lead, n], each the longest without a gap."""
        runs = joined(list(self.places), [self], dict.fromkeys(self.places))
        return [spanned(self, names) for names in runs]


def packed(
    shapes: Mapping[str, tuple[Sequence[int], torch.dtype]],
    device: torch.device | str,
    *,
    lead: tuple[int, ...] = (),
    aligned: int = 1,
) -> Packed:
    """Uninitialised tensors [*lead, *shape].

    Args:
        shapes: name -> (shape, dtype).
        device: where they are.
        lead: leading axes that all have. Default: none.
        aligned: elements to whose multiples starts are rounded up. Default 1: no gaps.
    """
    ends: dict[torch.dtype, int] = {}
    places = {}
    for name, (shape, dtype) in shapes.items():
        start = -(-ends.get(dtype, 0) // aligned) * aligned
        places[name] = Place(dtype, start, tuple(shape))
        ends[dtype] = places[name].stop
    flat = {
        dtype: torch.empty(*lead, end, dtype=dtype, device=device) for dtype, end in ends.items()
    }
    return Packed(flat, places)


def on_gpu(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors are held in memory of another device than a CPU."""
    if isinstance(tensors, Packed):
        return any(flat.device.type != "cpu" for flat in tensors.flat.values())
    if not isinstance(tensors, dict):  # computed when read
        return False
    return any(tensor.device.type != "cpu" for tensor in tensors.values())


def adjacent(tensors: Mapping[str, Tensor], first: str, then: str) -> bool:
    """Whether a tensor lies directly after another in one flat array."""
    if not isinstance(tensors, Packed):
        return False
    a, b = tensors.places[first], tensors.places[then]
    return a.dtype == b.dtype and a.stop == b.start


def joined(
    names: Sequence[str],
    mappings: Sequence[Mapping[str, Tensor]],
    same: Mapping[str, Hashable],
) -> list[list[str]]:
    """Split names into runs that are adjacent in all mappings and have one value of `same`."""
    runs: list[list[str]] = []
    size = 0
    for name in names:
        numel = mappings[0][name].numel()
        last = runs[-1][-1] if runs else ""
        if (
            runs
            and size + numel <= LONGEST
            and same[last] == same[name]
            and all(adjacent(each, last, name) for each in mappings)
        ):
            runs[-1].append(name)
            size += numel
        else:
            runs.append([name])
            size = numel
    return runs


def spanned(tensors: Mapping[str, Tensor], names: Sequence[str], lead: int = 0) -> Tensor:
    """A run as one tensor [*lead, n]; a view where the tensors are packed.

    `lead`: number of leading axes, for tensors that are not packed.
    """
    if isinstance(tensors, Packed):
        first, last = tensors.places[names[0]], tensors.places[names[-1]]
        return tensors.flat[first.dtype][..., first.start : last.stop]
    (name,) = names
    return tensors[name].reshape((*tensors[name].shape[:lead], -1))


def pieces(size: int, rows: int) -> list[slice]:
    """Cut [0, size) into slices of at most `ENTRIES` entries in `rows` rows."""
    step = max(1, ENTRIES // max(1, rows))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]
