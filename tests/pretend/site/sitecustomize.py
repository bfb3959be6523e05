"""With this folder on `PYTHONPATH` every Python process has a pretended GPU, once it has PyTorch.

The root of the project must be on it, too. Processes of Ray inherit it.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

os.environ.setdefault("RAY_OVERRIDE_RESOURCES", '{"GPU": 1}')  # it finds none itself
KEPT: list[Any] = []
"""Kernels that stay registered."""


class AfterPyTorch(MetaPathFinder):
    """Loads the device's guard before PyTorch, and installs the device after it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = find_spec("torch")
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            from tests.pretend import building

            building.load()
            run(module)
            from tests.pretend import device

            device.install()
            KEPT.append(device.everywhere())

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, AfterPyTorch())
