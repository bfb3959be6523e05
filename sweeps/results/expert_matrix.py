"""The experts among themselves: score of each on every task, and cosines of their task vectors.

Kept in a sweep's folder as `experts.json`, under a fingerprint of pool, data and splits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ConfigDict

from actors.files.checksums import again, sealed_json, unsealed_json
from actors.files.documents import checked
from sweeps.results.comparison import finite
from sweeps.results.ledger import write_text

FILE = "experts.json"


@dataclass(frozen=True)
class ExpertMatrix:
    """Measurements of a pool's experts on the report split."""

    __pydantic_config__ = ConfigDict(extra="ignore")

    key: str
    """Fingerprint of what they were measured on."""
    scores: Mapping[str, Mapping[str, Mapping[str, float | None]]]
    """Expert, or `pretrained` -> task -> metric -> value."""
    cosines: Mapping[str, Mapping[str, float | None]]
    """Expert -> expert -> cosine of their task vectors."""


def write(matrix: ExpertMatrix, folder: Path) -> None:
    """Write the file atomically.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    write_text(folder / FILE, sealed_json(finite(asdict(matrix))))


def read(folder: Path, key: str | None = None) -> ExpertMatrix | None:
    """Read the file; None if it is missing, damaged, or of another `key`, where one is given."""
    path = folder / FILE
    try:
        found = checked(ExpertMatrix, unsealed_json(path.read_bytes()), str(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        again(path, error)
        return None
    return found if key in (None, found.key) else None
