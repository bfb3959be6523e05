"""The kinds of files in the cache folder, and how each is verified."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from actors.artifacts.head_file import parsed_head
from actors.artifacts.statistics_file import check
from actors.files.arrow import checked
from actors.files.checksums import reason_of, unsealed_json


def arrow(path: Path) -> None:
    """Raise where a file of columns is not what was written."""
    checked(path, whole=True)


def head(path: Path) -> None:
    """Raise where a head is not what was written."""
    parsed_head(path.read_bytes(), path)


def statistics(path: Path) -> None:
    """Raise where a file of statistics is not what was written."""
    check(path, whole=True)


def facts(path: Path) -> None:
    """Raise where a file of facts is not what was written."""
    unsealed_json(path.read_bytes())


KINDS: Mapping[str, tuple[str, Callable[[Path], None]]] = {
    "pixels": ("*.arrow", arrow),
    "embeddings": ("*.arrow", arrow),
    "features": ("*.arrow", arrow),
    "heads": ("*.safetensors", head),
    "statistics": ("*.safetensors", statistics),
    "hashes": ("*.json", facts),
    "peaks": ("*.json", facts),
}
"""Folder of the cache -> what its files are called, and what verifies one."""


def files_of(kind: str, root: Path) -> list[Path]:
    """The files of a kind, in order of name."""
    return sorted(path for path in (root / kind).glob(KINDS[kind][0]) if path.is_file())


def fault_of(kind: str, path: Path) -> str | None:
    """Why a file is damaged, in a line; None: it is intact, or gone by now."""
    try:
        KINDS[kind][1](path)
    except FileNotFoundError:
        return None
    except Exception as error:  # damage makes libraries raise what they like
        return reason_of(error)
    return None
