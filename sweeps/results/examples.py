"""Samples on which two rows of a comparison differ, small enough to be shown in a report.

Kept in `correct/examples.json`: class names of every task, and a few samples of each side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict

from actors.files.checksums import again, sealed_json, unsealed_json
from actors.files.documents import checked
from sweeps.results.ledger import write_text

FILE = "examples.json"

PICTURE = re.compile(r"data:image/(jpeg|png|webp);base64,[A-Za-z0-9+/=]*\Z")
"""What a shown sample is, if it is no text."""


@dataclass(frozen=True)
class Example:
    """One sample that only one of two rows has right."""

    __pydantic_config__ = ConfigDict(extra="ignore")

    index: int
    """Its number in the report split's rows."""
    right: Literal["first", "second"]
    label: int
    """Its class."""
    answers: Sequence[int]
    """Classes that the first and the second row chose; empty: not known."""
    shown: str
    """A short text, or the data URL of a small picture."""

    @property
    def pictured(self) -> bool:
        """Whether it is a picture."""
        return PICTURE.match(self.shown) is not None


@dataclass(frozen=True)
class Examples:
    """Samples on which the winner and the runner-up differ."""

    __pydantic_config__ = ConfigDict(extra="ignore")

    first: str
    second: str
    classes: Mapping[str, Sequence[str]]
    """Task -> names of its classes."""
    samples: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    """Task -> samples."""


def write(examples: Examples, folder: Path) -> None:
    """Write the file atomically.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    write_text(folder / FILE, sealed_json(asdict(examples)))


def read(folder: Path) -> Examples | None:
    """Read the file; None if it is missing or damaged."""
    path = folder / FILE
    try:
        return checked(Examples, unsealed_json(path.read_bytes()), str(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        again(path, error)
        return None
