"""A sweep's folder `outputs/<name>/`: paths, lock, and the identity of the sweep in it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from actors.files.documents import checked, parse_json, read_bytes
from fusion.errors import InputError, reading
from sweeps.results.ledger import Ledger, write_text


@dataclass(frozen=True)
class SweepFolder:
    """Paths of one sweep's files."""

    path: Path

    @property
    def ledger(self) -> Ledger:
        """Finished trials."""
        return Ledger(self.path / "ledger")

    @property
    def correct(self) -> Path:
        """Per-sample correctness on the report split, one file for each row."""
        return self.path / "correct"

    @property
    def recipes(self) -> Path:
        """Recipe files of the rows."""
        return self.path / "recipes"

    @property
    def learned(self) -> Path:
        """Learned files (gates, codings) of trials, and checkpoints of unfinished trials."""
        return self.path / "learned"

    @property
    def surfaces(self) -> Path:
        """Tables of the search surfaces of winners."""
        return self.path / "surfaces"

    @property
    def tune(self) -> Path:
        """Tune's own folder: its state and TensorBoard events."""
        return self.path / "tune"

    @property
    def identity(self) -> Path:
        """Id, spec hash and command of the sweep."""
        return self.path / "sweep.json"


Hash = Annotated[str, Field(pattern=r"^[0-9a-zA-Z_-]{1,64}$")]
Time = Annotated[str, Field(max_length=40)]


class Known(TypedDict):
    """A sweep file that the sweep has used."""

    spec_hash: Hash
    started: Time
    spec: str
    """Its file."""


@dataclass(frozen=True)
class Identity:
    """Identity of a sweep: its id, and every sweep file it has used."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    sweep_id: Hash
    spec_hash: Hash
    """Of the spec it runs now."""
    created: Time
    history: tuple[Known, ...] = ()
    """`{spec_hash, started, spec}` of each spec it has had, the first first; `spec` is its file."""

    @property
    def spec_file(self) -> str:
        """The current sweep file, relative to the folder."""
        return self.history[-1]["spec"] if self.history else "spec.yaml"

    def dump(self) -> str:
        """JSON for `sweep.json`."""
        return json.dumps(asdict(self), indent=1)

    def having(self, spec_hash: str) -> Identity:
        """The same sweep with another sweep file."""
        now = datetime.now(UTC).isoformat()
        spec = Known(spec_hash=spec_hash, started=now, spec=spec_name(spec_hash))
        return replace(self, spec_hash=spec_hash, history=(*self.history, spec))


def spec_name(spec_hash: str) -> str:
    """Path of a kept sweep file within the folder, by its hash."""
    return f"specs/{spec_hash}.yaml"


@dataclass(frozen=True)
class Begin:
    """How a sweep starts: new, resumed, fresh or extended; and its storage."""

    resume: bool = False
    """Go on with what is there."""
    fresh: bool = False
    """Move what is there aside."""
    extend: bool = False
    """Go on with other methods, search spaces or metric."""
    storage: str | None = None
    """A URL to which the sweep's folder is copied."""

    @property
    def going_on(self) -> dict[str, bool]:
        """Options for the checks of folders."""
        return {"resume": self.resume, "fresh": self.fresh, "extend": self.extend}


def check_free(
    path: Path,
    spec_hash: str,
    spec_text: str,
    *,
    resume: bool = False,
    fresh: bool = False,
    extend: bool = False,
) -> Identity | None:
    """The sweep in `path` that may be resumed; None: a new one may start there.

    Raises:
        InputError: see `check_known`.
    """
    folder = SweepFolder(path)
    if not folder.identity.exists() or fresh:
        return None
    known = read_identity(folder)
    file = path / known.spec_file
    old = read_bytes(file).decode(errors="replace") if file.exists() else ""
    count = sum(1 for _ in folder.ledger)
    check_known(
        str(path), known, old, count, spec_hash, spec_text, resume=resume or extend, extend=extend
    )
    return known


def check_known(
    where: str,
    known: Identity,
    old_text: str,
    count: int,
    spec_hash: str,
    spec_text: str,
    *,
    resume: bool,
    extend: bool,
) -> None:
    """Refuse a sweep that exists already, unless it is to be resumed, and can be.

    Args:
        where: it is: a folder or URL.
        known: what it was started as.
        old_text: its spec's file.
        count: of its finished trials.
        spec_hash: of the spec about to run.
        spec_text: of that spec's file.
        resume: go on with it.
        extend: even where methods, search spaces or metric changed.

    Raises:
        InputError: resuming was not requested, or the spec changed: one line for each field.
    """
    if not resume:
        raise InputError(
            f"{where}: holds a sweep with {count} finished trials; "
            "--resume goes on with it, --fresh moves it aside and starts anew"
        )
    if known.spec_hash != spec_hash:
        from sweeps.spec.diff import (
            check_extends,  # start-up time: it imports torch, and `sweeps --help` this file
        )

        check_extends(where, old_text, spec_text, extend=extend)


def read_identity(folder: SweepFolder) -> Identity:
    """Read the identity of the sweep in a folder."""
    return parse_identity(read_bytes(folder.identity), str(folder.identity))


def parse_identity(data: bytes, where: str) -> Identity:
    """Parse `sweep.json`; `where` names it in errors.

    Raises:
        InputError: damaged, or it names files that are no specs of the sweep's own.
    """
    try:
        identity = checked(Identity, parse_json(data, where), where)
        for at, spec in enumerate(identity.history):
            if spec["spec"] != spec_name(spec["spec_hash"]):
                raise InputError(f"{where}: history.{at}.spec: {spec['spec'][:80]!r}: not its own")
    except InputError as error:
        raise InputError(f"{error}; damaged: use --fresh") from None
    return identity


def claim(
    path: Path,
    spec_hash: str,
    spec_text: str,
    *,
    resume: bool = False,
    fresh: bool = False,
    extend: bool = False,
) -> Identity:
    """Create a sweep's folder, or reuse the existing one.

    An extended sweep keeps its id, and so its runs in MLflow; `sweep.json` lists every spec it has
    had, each kept as `specs/<hash>.yaml`. Trials that the new spec no longer means stay in the
    ledger and in MLflow, and count in the comparison while it has their method.

    Args:
        path: `outputs/<name>`.
        spec_hash: of the spec about to run.
        spec_text: kept as `spec.yaml`.
        resume: go on with what is there (and start where nothing is).
        fresh: move what is there aside, to `<name>.<time>`.
        extend: as `resume`, and methods, search spaces and metric may have changed.

    Raises:
        InputError: see `check_known`.
    """
    known = check_free(path, spec_hash, spec_text, resume=resume, fresh=fresh, extend=extend)
    if known and known.spec_hash == spec_hash:
        return known
    folder = SweepFolder(path)
    if not known:
        if folder.identity.exists():
            path.rename(path.with_name(f"{path.name}.{aside_suffix()}"))
        known = Identity(uuid.uuid4().hex, spec_hash, datetime.now(UTC).isoformat())
    elif not known.history:  # of a version that kept none
        name = spec_name(known.spec_hash)
        old = Known(spec_hash=known.spec_hash, started=known.created, spec=name)
        write_text(path / name, (path / "spec.yaml").read_text(encoding="utf-8"))
        known = replace(known, history=(old,))
    identity = known.having(spec_hash)
    write_text(path / identity.spec_file, spec_text)
    write_text(path / "spec.yaml", spec_text)
    write_text(folder.identity, identity.dump())
    return identity


def aside_suffix() -> str:
    """Suffix for the name of a sweep that is moved aside: time and a random part."""
    return f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%S')}.{uuid.uuid4().hex[:4]}"


def check_outputs(outputs: Path) -> None:
    """Raise InputError if the outputs folder is not a folder, or cannot be created or written."""
    there = next(path for path in (outputs, *outputs.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise InputError(f"--outputs: {outputs}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        sealed = os.statvfs(there).f_flag & os.ST_RDONLY
        why = os.strerror(errno.EROFS if sealed else errno.EACCES)
        raise InputError(f"--outputs: {outputs}: {there} cannot be written: {why}")


def check_not_running(path: Path) -> None:
    """Raise InputError if another process runs the sweep in `path`; creates no file."""
    check_outputs(path.parent)
    lock = path.with_name(f".{path.name}.lock")
    if not lock.is_file():
        return
    with reading(str(lock)), lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path}: another process is running this sweep") from None


@contextmanager
def owned(path: Path) -> Iterator[None]:
    """Lock the folder against a second process; the lock is released when the process ends.

    Raises:
        InputError: another process is running this sweep, or the folder cannot be written.
    """
    check_outputs(path.parent)
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


def learned_name(trial_key: str) -> str:
    """Name of a trial's learned file (gate or coding)."""
    return f"{trial_key}.safetensors"


def state_name(trial_key: str) -> str:
    """Name of an unfinished trial's checkpoint."""
    return f"{trial_key}.state"
