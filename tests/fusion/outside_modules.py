"""Modules with methods, as users write them outside this package; what they register is undone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from fusion import outside_methods, registry

MODULE = '''
"""A module with one method."""
from fusion.kinds import Static
from fusion.task_vectors.coding import mix
import torch

def {name}(vectors, *, scale: float = 0.5):
    """θ₀ + λ·Σ τ. Source: these tests."""
    return mix(vectors, torch.full((1, len(vectors.tasks), 1), scale))

METHODS = {{"{name}": Static({name}, paper="none", defaults="ours")}}
'''
"""Text of a module with one method of its name, which is task arithmetic."""


def write(folder: Path, module: str, text: str = MODULE) -> Path:
    """Write a module; its names should begin with `outside_`."""
    file = folder / f"{module}.py"
    file.write_text(text.format(name=module), encoding="utf-8")
    return file


@contextmanager
def undone() -> Iterator[None]:
    """Forget modules and methods that are loaded in the block, and what is handed on to others."""
    table, origins, path = dict(registry.TABLE), dict(outside_methods.ORIGINS), list(sys.path)
    modules = set(sys.modules)
    variables = dict.fromkeys((outside_methods.MODULES, outside_methods.FOLDERS), "")
    with patch.dict(os.environ, variables):
        yield
    for kept, was in ((registry.TABLE, table), (outside_methods.ORIGINS, origins)):
        kept.clear()
        kept.update(was)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("outside_"):
            del sys.modules[name]
