"""Durable storage of a sweep's files: any `fsspec` URL, or a shared folder.

`URL/<name>/` holds what `outputs/<name>/` holds, but for Tune's own state. A file there is whole or
absent: on local file systems by a rename, on object stores by nature.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from actors.files.atomic import replacing
from actors.files.paths import is_plain
from fusion.errors import InputError, one_line
from sweeps.console import redact

T = TypeVar("T")

FOLDERS = ("correct", "ledger", "learned", "plots", "recipes", "specs")
OURS: Mapping[str, tuple[str, ...]] = {
    "correct": (".arrow", ".json"),
    "ledger": (".json",),
    "learned": (".safetensors", ".state"),
    "plots": (".png", ".svg", ".pdf"),
    "recipes": (".yaml", ".safetensors"),
    "specs": (".yaml",),
}
"""Folder -> suffixes of its files; other files there do not belong to a sweep."""

FILES = ("comparison.json", "comparison.parquet", "report.html", "spec.yaml", "sweep.json")

Stamp: TypeAlias = tuple[str, ...]
"""Version of a file, as far as the file system reports it: size first."""

STAMPS = ("size", "ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True)
class Store:
    """One sweep's files on a storage. Every call may raise the file system's errors."""

    fs: Any
    root: str
    """The path of the sweep's folder, as the file system knows it."""
    url: str
    """The same for people, without passwords."""

    def path(self, name: str) -> str:
        """Path of the file `name` (`ledger/….json`)."""
        return f"{self.root}/{name}"

    def list(self, folders: Iterable[str] = FOLDERS) -> dict[str, Stamp]:
        """Name -> stamp of every file of the sweep, in some of its folders."""
        self.fs.invalidate_cache()
        found = {}
        for folder in ("", *folders):
            try:
                inside = self.fs.ls(self.path(folder) if folder else self.root, detail=True)
            except FileNotFoundError:
                continue
            for info in inside:
                name = info["name"].rstrip("/").rpartition("/")[2]
                # Names with a dot are of files that are still being written.
                ours = name in FILES if not folder else is_ours(folder, name)
                if info["type"] == "file" and ours:
                    stamp = tuple(str(info.get(key)) for key in STAMPS)
                    found[f"{folder}/{name}" if folder else name] = stamp
        return found

    def read(self, name: str) -> bytes | None:
        """Content of a file; None if it is missing."""
        self.fs.invalidate_cache()
        try:
            content: bytes = self.fs.cat_file(self.path(name))
        except FileNotFoundError:
            return None
        return content

    def read_all(self, names: Iterable[str]) -> dict[str, bytes]:
        """Name -> content, several at a time if the file system can; missing files are left out."""
        paths = {self.path(name): name for name in names}
        if not paths:
            return {}
        found = self.fs.cat(list(paths), on_error="return")
        contents = {}
        for path, content in found.items():
            if isinstance(content, FileNotFoundError):
                continue
            if isinstance(content, BaseException):
                raise content
            contents[paths[path]] = content
        return contents

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically."""
        if isinstance(self.fs, LocalFileSystem):
            with replacing(Path(self.path(name))) as part:
                part.write_bytes(data)
            return
        try:
            self.fs.pipe_file(self.path(name), data)
        except FileNotFoundError:  # a file system with folders
            self.fs.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)
            self.fs.pipe_file(self.path(name), data)

    def remove(self, name: str) -> None:
        """Remove a file; a missing one is no error."""
        with suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def aside(self, suffix: str) -> None:
        """Move all files to `<name>.<suffix>`."""
        self.fs.mv(self.root, f"{self.root}.{suffix}", recursive=True)


def is_ours(folder: str, name: str) -> bool:
    """Whether a listed name is one that a sweep gives its files."""
    return is_plain(name) and name.endswith(OURS.get(folder, ()))


def open_store(url: str, name: str) -> Store:
    """Open the place of sweep `name` on a storage; no request is made.

    Raises:
        InputError: no such kind of storage, or its package is not installed.
    """
    redact.learn(url)
    shown = redact.url(url)
    if re.match(r"[A-Za-z0-9+]+:(?!//)", url) or not url:
        raise InputError(f"--storage: {shown!r}: a folder, or scheme://path (s3://bucket/path)")
    try:
        # No listing is remembered: other drivers write there too.
        fs, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
    except ImportError as error:
        raise InputError(f"--storage: {shown!r}: a package is missing: {reason(error)}") from None
    except Exception as error:  # any error of its constructor
        raise InputError(f"--storage: {shown!r}: cannot be used: {reason(error)}") from None
    root = path.rstrip("/")
    return Store(fs, f"{root}/{name}" if name else root, f"{shown.rstrip('/')}/{name}".rstrip("/"))


def reach(url: str, folder: Path) -> Store:
    """Open the place of the sweep in `folder` on a storage, and check that it can be written.

    Raises:
        InputError: as `open_store`; or it cannot be reached or written, or is the folder itself.
    """
    store = open_store(url, folder.name)
    if isinstance(store.fs, LocalFileSystem) and Path(store.root).resolve() == folder.resolve():
        raise InputError(
            f"--storage: {store.url!r}: holds the sweep's own folder; another one needed"
        )
    above = Store(store.fs, store.root.rpartition("/")[0], store.url)
    probe = f".probe-{uuid.uuid4().hex[:8]}"

    def tried() -> Store:
        above.write(probe, b"can be written")
        above.remove(probe)
        return store

    return guarded(store, tried)


def guarded(store: Store, question: Callable[[], T]) -> T:
    """Call a storage; its errors become InputErrors.

    Raises:
        InputError: the storage raised an error.
    """
    try:
        return question()
    except Exception as error:  # each file system has its own exceptions
        raise InputError(f"--storage: {store.url}: cannot be used: {reason(error)}") from None


def reason(error: BaseException) -> str:
    """An error in at most one line, without secrets."""
    return redact.text(one_line(error))[:200]
