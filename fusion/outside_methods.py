"""Methods of other packages: which modules have them, and how other processes find these modules.

A module with methods has a mapping `METHODS`: name -> row, as `fusion.registry` has. It is found as
an entry point of the group `fusion_sweeps.methods`, or by its name: in sweep files
(`methods: {import: my_module}`), on the command line (`--import my_module`), or in
`$FUSION_SWEEPS_IMPORT`. The variable is also set here, so that processes started later load the
same modules. This file imports no torch.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from fusion.errors import InputError, one_line

GROUP = "fusion_sweeps.methods"
"""Entry-point group of modules with methods."""

MODULES = "FUSION_SWEEPS_IMPORT"
"""Environment variable: names of modules with methods, separated by commas."""

FOLDERS = "FUSION_SWEEPS_IMPORT_FROM"
"""Environment variable: folders in which they are found, as in PATH."""

MODULE_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

OURS = ("fusion", "actors", "sweeps")
"""This project's own packages, which every process has."""

ORIGINS: dict[str, str] = {}
"""Method of another package -> the module that it was loaded from."""


def load(name: str, folders: Iterable[str | os.PathLike[str]] = (), *, where: str = "") -> Any:
    """Import a module with methods and return its `METHODS`; later processes will import it too.

    Args:
        name: of the module, with dots.
        folders: where it is looked for if it is not installed, in this order.
        where: field or option that names it, for messages.

    Raises:
        InputError: no such module, one that raises when it is imported, or one without `METHODS`.
    """
    where = where or "methods.import"
    if not MODULE_NAME.fullmatch(name):
        raise InputError(f"{where}: {name!r}: the name of a Python module needed (my_module)")
    places = [Path(folder).expanduser().resolve() for folder in folders]
    folder = find(name, places)
    if folder is None and not installed(name):
        looked = ", ".join(dict.fromkeys(map(str, places))) or "no folder"
        raise InputError(
            f"{where}: {name!r}: no such module: not installed, and not in {looked}; install it,"
            f" or name its folder in ${FOLDERS}"
        )
    if folder is not None and str(folder) not in sys.path:
        sys.path.append(str(folder))  # last: nothing that is installed is hidden by it
    rows = rows_of(imported(name, where), f"{where}: {name!r}")
    hand_on(name, folder)
    return rows


def installed(name: str) -> bool:
    """Whether a module's top-level package can be imported as it is."""
    top = name.partition(".")[0]
    return top in sys.modules or importlib.util.find_spec(top) is not None


def find(name: str, folders: Iterable[Path]) -> Path | None:
    """The first of the folders that has a module's top-level package, if it is not installed."""
    top = name.partition(".")[0]
    if installed(name):
        return None
    for folder in folders:
        if (folder / f"{top}.py").is_file() or (folder / top / "__init__.py").is_file():
            return folder
    return None


def imported(name: str, where: str) -> ModuleType:
    """Import a module.

    Raises:
        InputError: it raises.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:  # another author's code may raise what it likes
        kind = type(error).__name__
        raise InputError(f"{where}: {name!r}: {kind}: {one_line(error)[:300]}") from error


def rows_of(found: object, where: str) -> Any:
    """The mapping `METHODS` of a module, or the mapping that an entry point names.

    Raises:
        InputError: there is none.
    """
    rows = getattr(found, "METHODS", None) if isinstance(found, ModuleType) else found
    if not isinstance(rows, Mapping):
        raise InputError(f"{where}: has no mapping METHODS of names to methods")
    return rows


def hand_on(name: str, folder: Path | None) -> None:
    """Name a module, and the folder it is in, to processes that are started later."""
    for variable, value, mark in ((MODULES, name, ","), (FOLDERS, folder, os.pathsep)):
        known = [part for part in os.environ.get(variable, "").split(mark) if part]
        if value is not None and str(value) not in known:
            os.environ[variable] = mark.join([*known, str(value)])


def named() -> Iterator[tuple[str, Any]]:
    """(module, METHODS) of `$FUSION_SWEEPS_IMPORT`.

    Raises:
        InputError: see `load`.
    """
    folders = [part for part in os.environ.get(FOLDERS, "").split(os.pathsep) if part]
    for name in os.environ.get(MODULES, "").split(","):
        if name.strip():
            yield name.strip(), load(name.strip(), folders, where=f"${MODULES}")


def packaged(warn: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """(module, METHODS) of installed entry points; one that is at fault is left out with a warning,
    so that it does not keep other methods from working."""
    for point in points():
        try:
            yield point.module, rows_of(loaded(point), f"entry point {point.name!r} of {GROUP}")
        except InputError as error:
            warn(str(error))


def points() -> tuple[EntryPoint, ...]:
    """The installed entry points with methods, by name."""
    return tuple(sorted(entry_points(group=GROUP), key=lambda point: point.name))


def loaded(point: EntryPoint) -> object:
    """What an entry point names.

    Raises:
        InputError: it cannot be imported.
    """
    try:
        return point.load()
    except Exception as error:  # as in `imported`
        kind = type(error).__name__
        raise InputError(
            f"entry point {point.name!r} of {GROUP}: {point.value}: {kind}: {one_line(error)[:300]}"
        ) from error


def source_of(module: str) -> Path:
    """The folder of a module's top-level package, or its file."""
    top = sys.modules[module.partition(".")[0]]
    if paths := list(getattr(top, "__path__", ())):
        return Path(paths[0])
    return Path(str(top.__file__))


def sources_of(module: str) -> list[Path]:
    """The source of a module, then those that it imports from its own folder, and they from there.

    An installed module's folder holds other packages too, which every node has installed: then its
    own source is the only one.
    """
    first = source_of(module)
    folder = first.parent
    found, left = [first], [first]
    while left and not is_installed(folder):
        for name in imports_of(left.pop()):
            beside = next((p for p in (folder / name, folder / f"{name}.py") if is_code(p)), None)
            if name not in OURS and beside is not None and beside not in found:
                found.append(beside)
                left.append(beside)
    return found


def is_installed(folder: Path) -> bool:
    """Whether a folder is where packages are installed, or Python's own."""
    paths = {Path(path) for path in sysconfig.get_paths().values()}
    return folder in paths or folder.name in ("site-packages", "dist-packages")


def is_code(path: Path) -> bool:
    """Whether a path is a module's file, or a package's folder."""
    return path.is_file() if path.suffix == ".py" else (path / "__init__.py").is_file()


def imports_of(source: Path) -> list[str]:
    """Top-level names that a module's file, or a package's files, import; sorted."""
    files = sorted(source.rglob("*.py")) if source.is_dir() else [source]
    names: set[str] = set()
    for file in files:
        try:
            tree = ast.parse(file.read_bytes())
        except SyntaxError:  # a file that nothing has imported
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return sorted(names)
