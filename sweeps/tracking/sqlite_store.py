"""SQLite file of an MLflow store: create it atomically, detect one that is incomplete."""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from actors.files.atomic import share

HEADER = b"SQLite format 3\0"
REVISIONS = "alembic_version"
"""The table with the revision of the others."""


def file_of(uri: str) -> Path | None:
    """File of an SQLite URI; None for other URIs.

    >>> file_of("sqlite:////tmp/mlflow.db?timeout=3"), file_of("http://host")
    (PosixPath('/tmp/mlflow.db'), None)
    """
    kind, _, path = uri.partition(":///")
    path = path.partition("?")[0]
    return Path(path) if kind.startswith("sqlite") and path and path != ":memory:" else None


def is_new(path: Path) -> bool:
    """Whether the file is missing or empty."""
    return not path.exists() or path.stat().st_size == 0


@contextmanager
def made(path: Path) -> Iterator[Path]:
    """A temporary path to create a store at; at the end it is renamed to `path`, or deleted."""
    part = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    clean = part.with_suffix(".whole")
    try:
        yield part
        # A copy: who made it may hold it open still.
        with closing(sqlite3.connect(part)) as db:
            db.execute("vacuum into ?", [str(clean)])
        share(clean)  # SQLite's own modes give a group no right to write
        clean.replace(path)
    finally:
        for each in (part, clean, *(part.with_name(part.name + end) for end in ("-wal", "-shm"))):
            with suppress(OSError):
                each.unlink(missing_ok=True)


def revision_of(path: Path) -> str | None:
    """Schema revision of a store; None if it states none."""
    with suppress(OSError, sqlite3.Error), closing(reader(path)) as db:
        found = db.execute(f"select version_num from {REVISIONS}").fetchone()
        return str(found[0]) if found else None
    return None


def reader(path: Path) -> sqlite3.Connection:
    """Open a store for reading; it is not created.

    Not `mode=ro`: a process that was killed in the middle of a transaction leaves a journal, and
    the first to read must be able to roll the transaction back. SQLite opens a file that may not be
    written read-only by itself.
    """
    return sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True)


def usable(path: Path, experiment: str) -> bool:
    """Whether a complete store can be written and holds no deleted experiment of this name.

    False where MLflow itself has to say why it cannot be used.
    """
    query = "select lifecycle_stage from experiments where name = ?"
    with suppress(sqlite3.Error), closing(reader(path)) as db:
        db.execute("begin immediate")  # waits for the right to write, and writes nothing
        db.rollback()
        return all(stage == "active" for (stage,) in db.execute(query, [experiment]))
    return False


def fault(path: Path, tables: Collection[str], revision: str) -> str | None:
    """Why a store is incomplete; None if it is complete, or of another revision.

    Args:
        path: its file.
        tables: that a store of `revision` has.
        revision: the newest.
    """
    tables_of = "select name from sqlite_master"
    try:
        with suppress(sqlite3.DatabaseError), closing(reader(path)) as db:
            db.execute(tables_of)  # rolls an unfinished transaction back, which changes the size
        if cut := missing_bytes(path):
            return f"{cut} bytes are missing at its end"
        with closing(reader(path)) as db:
            there = {name for (name,) in db.execute(tables_of)}
    except sqlite3.DatabaseError as error:
        return str(error)
    found, lacking = revision_of(path), sorted(set(tables) - there)
    if found is None:
        return "it has tables, and no revision of them" if there else "it has no tables"
    if found != revision or not lacking:
        return None
    return f"it has no table {lacking[0]}" + (f" and {n} others" if (n := len(lacking) - 1) else "")


def missing_bytes(path: Path) -> int:
    """Bytes that an SQLite file lacks of the size in its header.

    Raises:
        sqlite3.DatabaseError: not a database.
    """
    with path.open("rb") as file:
        head, size = file.read(100), os.fstat(file.fileno()).st_size
    if len(head) < 100 or not head.startswith(HEADER):
        raise sqlite3.DatabaseError("file is not a database")
    page = int.from_bytes(head[16:18], "big")
    says = (65536 if page == 1 else page) * int.from_bytes(head[28:32], "big")
    up_to_date = head[24:28] == head[92:96]  # otherwise the count of pages is of another time
    return max(0, says - size) if up_to_date else 0


def advice(path: Path, why: str) -> str:
    """Message with advice for a store that is incomplete."""
    return (
        f"is half made or damaged ({why}); move it aside (mv {path} {path}.broken), and --resume"
        " sends everything again"
    )
