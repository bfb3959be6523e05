"""Paths of the embedded pools, and whether they are complete.

The pool of images (the small CLIP of `make demo`) is `embedded:NAME`, the pool of texts (a small
T5) is `embedded:text/NAME`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from actors.files.cache_dir import cache_dir

Kind: TypeAlias = Literal["images", "text"]

IMAGES: Kind = "images"

TEXT: Kind = "text"

ROOTS: Mapping[Kind, str] = {IMAGES: "embedded/v2", TEXT: "embedded-text/v1"}
"""Folders in the cache. The version is increased when the same seed gives another pool; pools of
older versions are not used."""

MARKER = "pool.json"
"""File that is written last: if it exists, the pool is complete."""


@dataclass(frozen=True)
class EmbeddedPool:
    """The folders of an embedded pool."""

    root: Path
    base: Path
    """Complete CLIP (both towers, tokenizer, image processor), or T5 with its tokenizer."""
    experts: dict[str, Path]
    """Task -> folder of a fine-tuned vision tower, or T5."""
    data: dict[str, Path]
    """Task -> folder with `train.parquet`, `test.parquet` and `meta.json`."""
    extractor: Path
    """A network whose features a gate reads: a small ResNet, which pools of the first releases
    lack; of the text pool, the base."""


def folders(root: Path, tasks: Sequence[str], kind: Kind = IMAGES) -> EmbeddedPool:
    """The folders of a pool under `root`, which need not exist."""
    return EmbeddedPool(
        root,
        root / "base",
        {task: root / "experts" / task for task in tasks},
        {task: root / "data" / task for task in tasks},
        root / ("extractor" if kind == IMAGES else "base"),
    )


def default_root(seed: int, kind: Kind = IMAGES) -> Path:
    """The pool's folder in the user's cache."""
    return cache_dir() / f"{ROOTS[kind]}-seed{seed}"


def locate(seed: int = 0, root: Path | None = None, kind: Kind = IMAGES) -> EmbeddedPool | None:
    """The complete pool of this seed, or None if it is missing or incomplete.

    Args:
        seed: the pool's seed.
        root: its folder; default: in the cache folder.
        kind: of the pool.
    """
    root = default_root(seed, kind) if root is None else root
    made = made_from(root)
    return None if made is None else folders(root, made["tasks"], kind)


def made_from(root: Path) -> dict[str, Any] | None:
    """Content of the marker file of a complete pool, or None."""
    try:
        made: dict[str, Any] = json.loads((root / MARKER).read_text())
    except FileNotFoundError:
        return None
    return made
