"""The user's side: sweep files, Ray Tune, MLflow, reports, the command line.

From Python: `sweeps.run` runs a sweep, `sweeps.load` reads its results, `sweeps.merge` writes one
merged model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # at run time names load on first use, as in `fusion`
    from sweeps.execution.python_api import Results as Results
    from sweeps.execution.python_api import load as load
    from sweeps.execution.python_api import run as run
    from sweeps.results.export.merge_folders import merge as merge

EXPORTS = {
    "Results": "sweeps.execution.python_api",
    "load": "sweeps.execution.python_api",
    "run": "sweeps.execution.python_api",
    "merge": "sweeps.results.export.merge_folders",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the command line needs none of them.

    Raises:
        AttributeError: `sweeps` has no such name.
    """
    if name not in EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(EXPORTS[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names, and what is loaded already."""
    return sorted({*globals(), *EXPORTS})
