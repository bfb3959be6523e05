"""The device guard of `guard.cpp`, compiled once for a version of PyTorch, and loaded."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE / "guard.cpp"
KEPT = HERE.parents[1] / ".pytest_cache" / "pretend"


class NoCompiler(RuntimeError):
    """Why there is no pretended device here."""


def load() -> None:
    """Load the guard; to be called before PyTorch is imported, which may ask at once.

    Raises:
        NoCompiler: no g++, or one that does not compile it.
    """
    ctypes.CDLL(str(library()), mode=ctypes.RTLD_GLOBAL)


def library() -> Path:
    """The compiled guard, from the cache or made now."""
    key = hashlib.sha256(SOURCE.read_bytes() + version("torch").encode()).hexdigest()[:16]
    path = KEPT / f"guard-{key}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        compiled(part)
        part.replace(path)
    return path


PATHS = """
from torch.utils import cpp_extension
print(*("-I" + path for path in cpp_extension.include_paths()), sep="\\n")
print(*(f"-L{path}\\n-Wl,-rpath,{path}" for path in cpp_extension.library_paths()), sep="\\n")
"""
"""Asked in a process of its own: see `load`."""


def compiled(out: Path) -> None:
    """Run the compiler.

    Raises:
        NoCompiler: see `load`.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        raise NoCompiler("no g++: the pretended device cannot be compiled")
    asked = subprocess.run(
        [sys.executable, "-c", PATHS], capture_output=True, text=True, check=True
    )
    options = ["-O0", "-shared", "-fPIC", "-std=c++20", str(SOURCE), "-o", str(out)]
    libraries = ["-ltorch", "-ltorch_cpu", "-lc10"]
    done = subprocess.run(
        [compiler, *options, *asked.stdout.split("\n")[:-1], *libraries],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise NoCompiler(f"{compiler}: {done.stderr.strip().splitlines()[-1:]}")
