"""A sweep's folder, `outputs/<name>/`: what is where, who owns it, and what it was started as."""

from __future__ import annotations

import fcntl
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fusion.errors import InputError
from sweeps.ledger import Ledger, write_text


@dataclass(frozen=True)
class SweepFolder:
    """The files of one sweep."""

    path: Path

    @property
    def ledger(self) -> Ledger:
        """Finished trials."""
        return Ledger(self.path / "ledger")

    @property
    def correct(self) -> Path:
        """Per-sample correctness on the report split, a file a row."""
        return self.path / "correct"

    @property
    def recipes(self) -> Path:
        """What rebuilds each row."""
        return self.path / "recipes"

    @property
    def learned(self) -> Path:
        """Gates and codings of trials that learn, and checkpoints of those that have not ended."""
        return self.path / "learned"

    @property
    def tune(self) -> Path:
        """Tune's own folder: its state and TensorBoard events."""
        return self.path / "tune"

    @property
    def identity(self) -> Path:
        """Id, spec hash and command of the sweep."""
        return self.path / "sweep.json"


@dataclass(frozen=True)
class Identity:
    """What a sweep was started as."""

    sweep_id: str
    spec_hash: str
    created: str


def check_free(path: Path, spec_hash: str, *, resume: bool, fresh: bool) -> Identity | None:
    """The sweep that is in `path` and may be gone on with; None: a new one may start there.

    Raises:
        InputError: there is one and neither `resume` nor `fresh` was asked for, or it was started
            from another spec and is to be resumed.
    """
    folder = SweepFolder(path)
    if not folder.identity.exists() or fresh:
        return None
    known = read_identity(folder)
    if not resume:
        count = sum(1 for _ in folder.ledger)
        raise InputError(
            f"{path}: holds a sweep with {count} finished trials; "
            "--resume goes on with it, --fresh moves it aside and starts anew"
        )
    if known.spec_hash != spec_hash:
        raise InputError(
            f"{path}: was started from another spec (hash {known.spec_hash}, now {spec_hash}); "
            f"compare with {path / 'spec.yaml'}, give another name, or use --fresh"
        )
    return known


def read_identity(folder: SweepFolder) -> Identity:
    """What the sweep in a folder was started as."""
    try:
        return Identity(**json.loads(folder.identity.read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{folder.identity}: damaged ({error}); use --fresh") from error


def claim(path: Path, spec_hash: str, spec_text: str, *, resume: bool, fresh: bool) -> Identity:
    """Start a sweep's folder, or take up the one that is there.

    Args:
        path: `outputs/<name>`.
        spec_hash: of the spec about to run.
        spec_text: kept as `spec.yaml`.
        resume: go on with what is there (and start where nothing is).
        fresh: move what is there aside, to `<name>.<time>`.

    Raises:
        InputError: see `check_free`.
    """
    if known := check_free(path, spec_hash, resume=resume, fresh=fresh):
        return known
    folder = SweepFolder(path)
    if folder.identity.exists():
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        path.rename(path.with_name(f"{path.name}.{stamp}.{uuid.uuid4().hex[:4]}"))
    identity = Identity(uuid.uuid4().hex, spec_hash, datetime.now(UTC).isoformat())
    write_text(path / "spec.yaml", spec_text)
    write_text(folder.identity, json.dumps(vars(identity), indent=1))
    return identity


@contextmanager
def owned(path: Path) -> Iterator[None]:
    """Hold the folder against a second process; the lock goes with the process, however it ends.

    Raises:
        InputError: another process is running this sweep, or the folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise InputError(f"{lock}: cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{path}: another process is running this sweep") from None
        yield
