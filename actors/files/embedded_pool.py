"""Paths of the embedded pool (the small CLIP of `make demo`), and whether it is complete."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.files.cache_dir import cache_dir

VERSION = 2
"""Increased when the same seed gives another pool; pools of older versions are not used."""

MARKER = "pool.json"
"""File that is written last: if it exists, the pool is complete."""


@dataclass(frozen=True)
class EmbeddedPool:
    """The folders of an embedded pool."""

    root: Path
    base: Path
    """Complete CLIP: both towers, tokenizer, image processor."""
    experts: dict[str, Path]
    """Task -> folder of a fine-tuned vision tower."""
    data: dict[str, Path]
    """Task -> folder with `train.parquet`, `test.parquet` and `meta.json`."""
    extractor: Path
    """A small ResNet whose features a gate reads; pools of the first releases lack it."""


def folders(root: Path, tasks: Sequence[str]) -> EmbeddedPool:
    """The folders of a pool under `root`, which need not exist."""
    return EmbeddedPool(
        root,
        root / "base",
        {task: root / "experts" / task for task in tasks},
        {task: root / "data" / task for task in tasks},
        root / "extractor",
    )


def default_root(seed: int) -> Path:
    """The pool's folder in the user's cache."""
    return cache_dir() / "embedded" / f"v{VERSION}-seed{seed}"


def locate(seed: int = 0, root: Path | None = None) -> EmbeddedPool | None:
    """The complete pool of this seed, or None if it is missing or incomplete.

    Args:
        seed: the pool's seed.
        root: its folder; default: in the cache folder.
    """
    root = default_root(seed) if root is None else root
    made = made_from(root)
    return None if made is None else folders(root, made["tasks"])


def made_from(root: Path) -> dict[str, Any] | None:
    """Content of the marker file of a complete pool, or None."""
    try:
        made: dict[str, Any] = json.loads((root / MARKER).read_text())
    except FileNotFoundError:
        return None
    return made
