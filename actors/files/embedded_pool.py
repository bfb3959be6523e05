"""Where the embedded pool lies, and whether it is finished: no framework is imported for that."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.files.cache_dir import cache_dir

VERSION = 2
"""Raised when the same seed no longer gives the same pool: an old one is then left alone."""

MARKER = "pool.json"
"""Written last, so its presence means that everything else is there."""


@dataclass(frozen=True)
class EmbeddedPool:
    """The folders of an embedded pool."""

    root: Path
    base: Path
    """A whole CLIP: towers, tokenizer, image processor."""
    experts: dict[str, Path]
    """Task -> folder of a fine-tuned vision tower."""
    data: dict[str, Path]
    """Task -> folder with `train.parquet`, `test.parquet` and `meta.json`."""
    extractor: Path
    """A small ResNet whose features a gate reads; pools of the first releases lack it."""


def folders(root: Path, tasks: Sequence[str]) -> EmbeddedPool:
    """The folders a pool under `root` has, whether they are there or not."""
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
    """The finished pool of this seed, or None where it is not built (or not to its end).

    Args:
        seed: the pool's seed.
        root: its folder; None: in the user's cache.
    """
    root = default_root(seed) if root is None else root
    made = made_from(root)
    return None if made is None else folders(root, made["tasks"])


def made_from(root: Path) -> dict[str, Any] | None:
    """What the marker of a finished pool says; None: there is none."""
    try:
        made: dict[str, Any] = json.loads((root / MARKER).read_text())
    except FileNotFoundError:
        return None
    return made
