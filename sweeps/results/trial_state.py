"""Progress of an unfinished trial, as its checkpoint file records it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from actors.files.documents import checked, parse_json


@dataclass
class State:
    """Progress of a trial."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    step: Annotated[int, Field(ge=0)] = 0
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    choices: list[dict[str, Any]] = field(default_factory=list)
    """Of a method that selects: its decisions."""
    chosen: dict[str, int | float] = field(default_factory=dict)
    """Of a method that fits: what it chose, by name."""
    curve: list[dict[str, int | float]] = field(default_factory=list)
    """[{"step", "loss/<task>", …, "coding/min|mean|max"}] at each checkpoint."""


def read_state(note: bytes | str) -> State:
    """Parse the progress in a checkpoint's JSON.

    Raises:
        InputError: damaged.
    """
    return checked(State, parse_json(note, "state", finite=False), "state")
