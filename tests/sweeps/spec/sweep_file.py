"""A small sweep file, as data and as a file."""

from pathlib import Path
from typing import Any


def plain(**changes: Any) -> dict[str, Any]:
    """A small sweep file as data."""
    data = {
        "name": "s",
        "pool": {"base": "b", "experts": {"mnist": "m", "svhn": "s"}},
        "methods": {"ties": {}},
    }
    return data | changes


def write(folder: Path, text: str) -> Path:
    """A file of this text."""
    path = folder / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    return path
