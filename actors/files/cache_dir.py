"""The project's cache folder. Imports no framework."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The project's cache: `$FUSION_SWEEPS_CACHE`, else the user's cache folder (XDG)."""
    import platformdirs

    chosen = os.environ.get("FUSION_SWEEPS_CACHE")
    chosen = chosen or platformdirs.user_cache_dir("fusion-sweeps")
    return Path(chosen).absolute()  # workers of a cluster have other working directories
