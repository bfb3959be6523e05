"""Protocols of a data kind (images, text): prepared rows on disk and a model's inputs.

A row is prepared once, on disk, and collated at each forward pass. Importable without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from actors.data.task import Kind, Task
from actors.data.task_rows import Rows
from actors.files.fingerprint import Fingerprint

if TYPE_CHECKING:  # torch takes seconds to load, and processes that only prepare do not need it
    from torch import Tensor

Activations: TypeAlias = "dict[str, Tensor]"
"""Named tensors between segments; the first axis of each is the batch. `Inputs.collate` gives the
first ones; the last ones hold `output` [B, …]. Where `hidden` [B, n, d] is
padded, a boolean `mask` [B, n] is False at padding, and segments hand it on: statistics and
routers leave padding out. Masks of other tensors have other names."""

OUTPUT = "output"
"""Name of the last segment's result, which heads read."""

PREFIX = "prefix"
"""Column of rows that a decoder goes on with: int64 [B, t], the tokens it has written so far."""

AVERAGED = "averaged"
"""Column of rows whose entropy is that of the mean of their logits: int64 [B], one number a task.
After `Inputs.collate` all rows of a batch have it, −1 where logits are not averaged."""

ITEMSIZES = {"uint8": 1, "int32": 4, "int64": 8, "float32": 4}
"""Bytes of a number of a prepared column."""

Progress: TypeAlias = Callable[[int, int], None]
"""progress(rows done, rows in all)."""


@dataclass(frozen=True)
class RowShape:
    """Shape of one prepared row: columns of fixed width, and ragged ones.

    >>> RowShape({"pixels": ("uint8", (3, 32, 32))}).nbytes
    3072
    >>> RowShape({}, {"tokens": ("int32", 20)}).nbytes
    88
    """

    columns: Mapping[str, tuple[str, tuple[int, ...]]]
    """Column -> (dtype, shape of a row)."""
    ragged: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Column -> (dtype, numbers a row at most). Rows are concatenated, with int64 offsets."""

    @property
    def nbytes(self) -> int:
        """Upper bound of the bytes of a row on disk, without its label."""
        fixed = sum(ITEMSIZES[kind] * math.prod(shape) for kind, shape in self.columns.values())
        return fixed + sum(ITEMSIZES[kind] * most + 8 for kind, most in self.ragged.values())


@dataclass(frozen=True)
class Corruption:
    """What is done to rows, to make a distribution shift. Each kind of data has its own names."""

    name: str
    severity: int
    """1 to 5."""
    seed: int = 0


class PreparedRows(Protocol):
    """One prepared source split: memory-mapped columns and labels."""

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""
        ...

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows by index (int64 [B]): column -> [B, …].

        A ragged column gives the concatenated values, and `<name>.lengths` [B]. A column with one
        value for all rows gives a view [B, …] of it.
        """
        ...


class Inputs(Protocol):
    """Preprocessing of one model: rows on disk, then activations of the first segment."""

    @property
    def kind(self) -> Kind:
        """What rows it reads."""
        ...

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of everything that embeddings and features of a row depend on."""
        ...

    @property
    def row(self) -> RowShape:
        """Shape of a prepared row."""
        ...

    @property
    def about(self) -> str:
        """Size of a row, short, for messages: "32 px"."""
        ...

    @property
    def dimensions(self) -> str:
        """Size of a row in full: "32 × 32 px"."""
        ...

    def check_corruption(self, name: str, what: str) -> None:
        """Raise InputError, starting with `what`, where such rows cannot be corrupted that way."""
        ...

    def prepare(
        self,
        tasks: Mapping[str, Task],
        needed: Collection[tuple[str, str]],
        root: Path,
        progress: Progress | None = None,
    ) -> dict[tuple[str, str], Path]:
        """Prepare missing files: (task, source split) -> its file of prepared rows under `root`.

        Raises:
            InputError: a row that cannot be read, by task, split and row; no space left.
        """
        ...

    def corrupted(
        self, rows: Rows, task: Task, split: str, corruption: Corruption, root: Path
    ) -> Rows:
        """The same rows under a corruption, without features; prepared where the cache lacks them.

        What a row becomes depends on (seed, its number in the source split) alone.

        Args:
            rows: clean rows of a source split.
            task: whose.
            split: the source split.
            corruption: one that `check_corruption` allows.
            root: the cache folder.

        Raises:
            InputError: see `prepare`.
        """
        ...

    def open(self, path: Path) -> PreparedRows:
        """Open a file of prepared rows, memory-mapped.

        Raises:
            InputError: missing or damaged.
        """
        ...

    def preview(self, rows: PreparedRows, at: Tensor) -> list[str]:
        """Rows by index (int64 [B]) for people: each a short text, or the data URL of a picture."""
        ...

    def collate(self, parts: Sequence[Mapping[str, Tensor]]) -> Activations:
        """Collate rows of one or several files, in order, to the inputs of the first segment."""
        ...


@runtime_checkable
class Gathering(Protocol):
    """`Inputs` that copy rows from their files straight into the memory of a batch."""

    def gather(
        self, parts: Sequence[tuple[PreparedRows, Tensor]], empty: Callable[..., Tensor]
    ) -> Activations:
        """The same as `collate` of the rows that `take` gives; each row is copied once.

        Args:
            parts: (file, int64 [B] row numbers), in order.
            empty: `empty(shape, dtype)` allocates the memory of a column of the batch.
        """
        ...


Extract: TypeAlias = "Callable[[Activations], Tensor]"
"""extract(collated inputs of B rows) -> float32 features [B, d], on the encoder's device."""


class FeatureEncoder(Protocol):
    """A frozen network that computes the features a gate reads."""

    @property
    def source(self) -> str:
        """Its source as given in the sweep file, for messages."""
        ...

    @property
    def folder(self) -> Path:
        """Folder of its files, which a worker's node must see."""
        ...

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of weights, configuration, preprocessing and libraries."""
        ...

    @property
    def width(self) -> int:
        """Number of features of a row."""
        ...

    @property
    def inputs(self) -> Inputs:
        """Its own preprocessing."""
        ...

    def load(self, device: Any) -> Extract:
        """Load the network on `device`."""
        ...
