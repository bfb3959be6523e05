"""Shift sets of a file: the report rows corrupted, or other data with the same classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pydantic import Field, model_validator

from actors.data.images.corruptions import CORRUPTIONS as OF_IMAGES
from actors.data.images.corruptions import SEVERITIES
from actors.data.protocol import Corruption
from actors.data.text.corruptions import CORRUPTIONS as OF_TEXTS
from fusion.errors import unknown
from sweeps.spec.errors import NOT_GIVEN, Fault, raise_all
from sweeps.spec.fields import Part, Source, Text

CORRUPTIONS = (*OF_IMAGES, *OF_TEXTS)


class ShiftSpec(Part):
    """A shift set: the report rows corrupted, or another data set."""

    corruption: Text | None = Field(
        None, description=f"one of {', '.join(CORRUPTIONS)}", examples=["gaussian_noise"]
    )
    """Corruption of the report rows. A shift set has this or `dataset`."""
    severity: int = Field(3, ge=1, le=len(SEVERITIES), strict=True, description="1, 2, 3, 4 or 5")
    """Strength of the corruption."""
    seed: int = Field(0, ge=0, strict=True, description="an integer of at least 0")
    """Seed of the corruption's draws."""
    dataset: Source | None = Field(
        None, description="a hub id or a folder", examples=["data/flowers-sketches"]
    )
    """Another data set with the classes of `task`."""
    image: Text = Field("image", description="the name of the image column")
    """Column of images of that data set."""
    label: Text = Field("label", description="the name of the label column")
    """Column of labels of that data set."""
    task: Text | None = Field(
        None, description="the name of a task, or null (all)", examples=["flowers"]
    )
    """Task that is shifted. A data set needs one where the sweep has several tasks."""

    @model_validator(mode="after")
    def _one_kind(self) -> ShiftSpec:
        if (self.corruption is None) == (self.dataset is None):
            given = self.corruption
            raise_all(
                [Fault(("corruption",), given, "exactly one of corruption and dataset needed")]
            )
        if self.corruption is not None and self.corruption not in CORRUPTIONS:
            hint = unknown("corruption", self.corruption, CORRUPTIONS)
            raise_all([Fault(("corruption",), self.corruption, hint)])
        return self

    def as_corruption(self) -> Corruption:
        """The corruption of a shift set that is one."""
        assert self.corruption is not None
        return Corruption(self.corruption, self.severity, self.seed)


def check_adapted(name: str | None, shifts: Mapping[str, ShiftSpec]) -> None:
    """Raise a ValidationError if `adapt_on_shift` names no corruption of all tasks' rows.

    Raises:
        ValidationError: for pydantic to add to others.
    """
    if name is None:
        return
    fit = [each for each, shift in shifts.items() if shift.corruption and shift.task is None]
    if name not in fit:
        there = f"one of {', '.join(fit)}" if fit else "one that is there (`shifts` has none)"
        reason = f"a corruption of all tasks among `shifts` needed: {there}"
        raise_all([Fault(("adapt_on_shift",), name, reason)])


def check_shifts(shifts: Mapping[str, ShiftSpec], tasks: Collection[str]) -> None:
    """Raise a ValidationError if a shift set's task is missing or unknown.

    Raises:
        ValidationError: for pydantic to add to others.
    """
    for name, shift in shifts.items():
        if shift.task is not None and shift.task not in tasks:
            hint = unknown("task", shift.task, tasks)
            raise_all([Fault(("shifts", name, "task"), shift.task, hint)])
        if shift.dataset is not None and shift.task is None and len(tasks) > 1:
            reason = f"one of {', '.join(tasks)} needed, whose classes the data set has"
            raise_all([Fault(("shifts", name, "task"), NOT_GIVEN, reason)])
