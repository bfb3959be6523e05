"""Location of the project's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """The cache folder: `$FUSION_SWEEPS_CACHE`, or a folder in the user's cache (XDG)."""
    chosen = os.environ.get("FUSION_SWEEPS_CACHE")
    chosen = chosen or platformdirs.user_cache_dir("fusion-sweeps")
    return Path(chosen).absolute()  # Ray workers have other working directories
