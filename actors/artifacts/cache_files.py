"""Kinds of files in the cache folder, and how `sweeps cache verify` checks each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from actors.artifacts.head_file import parsed_head
from actors.artifacts.statistics_file import check
from actors.files.arrow import checked
from actors.files.checksums import reason_of, unsealed_json


def arrow(path: Path) -> None:
    """Raise if an Arrow file is damaged."""
    checked(path, whole=True)


def head(path: Path) -> None:
    """Raise if a head file is damaged."""
    parsed_head(path.read_bytes(), path)


def statistics(path: Path) -> None:
    """Raise if a file of statistics is damaged."""
    check(path, whole=True)


def facts(path: Path) -> None:
    """Raise if a JSON file is damaged."""
    unsealed_json(path.read_bytes())


KINDS: Mapping[str, tuple[str, Callable[[Path], None]]] = {
    "pixels": ("*.arrow", arrow),
    "tokens": ("*.arrow", arrow),
    "embeddings": ("*.arrow", arrow),
    "features": ("*.arrow", arrow),
    "heads": ("*.safetensors", head),
    "statistics": ("*.safetensors", statistics),
    "hashes": ("*.json", facts),
    "peaks": ("*.json", facts),
    "rates": ("*.json", facts),
    "mlflow": ("*.json", facts),
}
"""Folder of the cache -> pattern of its file names, and the function that checks a file."""


def files_of(kind: str, root: Path) -> list[Path]:
    """Files of a kind, sorted by name."""
    return sorted(path for path in (root / kind).glob(KINDS[kind][0]) if path.is_file())


def fault_of(kind: str, path: Path) -> str | None:
    """Why a file is damaged, in one line; None: intact, or deleted meanwhile."""
    try:
        KINDS[kind][1](path)
    except FileNotFoundError:
        return None
    except Exception as error:  # libraries raise many types on damaged files
        return reason_of(error)
    return None
