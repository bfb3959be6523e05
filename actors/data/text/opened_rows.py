"""Rows of a task's role, opened for training: batches of token ids, and their labels.

Axes: N rows, B batch, n tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.data.protocol import Activations, Inputs, PreparedRows
from actors.data.row_file import open_lengths
from actors.data.task_rows import Cuts, Rows, cut_rows


@dataclass(frozen=True, eq=False)
class OpenedRows:
    """The rows of a role; rows are numbered from 0 within the role."""

    inputs: Inputs
    rows: Rows
    prepared: PreparedRows
    places: Tensor
    """int64 [N]: where each row is in the prepared file."""

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""
        return self.prepared.labels[self.places]

    def batch(self, at: Tensor) -> Activations:
        """The inputs of some rows, padded to the longest of them."""
        return self.inputs.collate([self.prepared.take(self.places[at])])

    def cuts(self) -> Cuts:
        """Batches of all rows for evaluation, of near-equal length."""
        lengths = open_lengths(self.rows.file)
        own = None if lengths is None else lengths[self.places.numpy()]
        return cut_rows(len(self.places), own, torch.arange(len(self.places)))

    def batches(self, cuts: Cuts) -> Iterator[Activations]:
        """The inputs of each of `cuts`."""
        for part in cuts.parts:
            assert isinstance(part, Tensor)
            yield self.batch(part)


def open_role(inputs: Inputs, rows: Rows) -> OpenedRows:
    """Open the rows of a role.

    Raises:
        InputError: a missing or damaged file.
    """
    prepared = inputs.open(rows.file)
    every = torch.arange(len(prepared.labels))
    at = every if rows.indices is None else torch.from_numpy(rows.indices)
    return OpenedRows(inputs, rows, prepared, at)


def outputs_of_role(inputs: Inputs, rows: Rows, model: Callable[[Activations], Tensor]) -> Tensor:
    """Outputs [N, …] of a model for a role's rows, in their order; computed by near-equal length.

    Raises:
        InputError: see `open_role`.
    """
    role = open_role(inputs, rows)
    cuts = role.cuts()
    return cuts.joined(map(model, role.batches(cuts)))
