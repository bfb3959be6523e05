"""Temporary folder of a local Ray: sockets, logs and spilled objects.

Ray puts them under `$RAY_TMPDIR`, `$TMPDIR` or `/tmp`, readable by everybody, and its sockets fail
where that path is long: the system allows them 107 bytes. Here each run has a folder of its own
that nobody else can enter; a long path is passed to Ray as a short link.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from actors.cluster.planner import gigabytes
from fusion.errors import InputError, one_line

PREFIX = "sweeps-"

LONGEST = 26
"""Bytes of `$RAY_TMPDIR`: to the 107 of a socket's path Ray adds `/ray/`, the session (42),
`/sockets/` and a name of up to 25."""

ROOM = 10**8
"""Bytes that a session's logs and sockets may take; objects are spilled there only where memory is
short."""

STALE = 60.0
"""Seconds after which an unlocked folder counts as left by a killed process."""


@contextmanager
def session_folder() -> Iterator[Path]:
    """A folder for Ray's session, set as `$RAY_TMPDIR`; it is removed at the end.

    If the user has set `$RAY_TMPDIR` to a short path, it is used and its content kept.

    Raises:
        InputError: the folder for temporary files cannot be used; the line names the variable.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "")
    root = Path(os.environ.get(variable) or "/tmp").absolute()
    with ExitStack() as stack:
        if variable == "RAY_TMPDIR" and len(os.fsencode(root)) <= LONGEST:
            check(root, variable)
            folder = root
        else:
            folder = stack.enter_context(own(root, variable))
            if len(os.fsencode(folder)) > LONGEST:
                folder = stack.enter_context(short(folder))
                # Python's own sockets, between processes of Ray's dashboard.
                stack.enter_context(variable_set("TMPDIR", str(folder)))
        stack.enter_context(variable_set("RAY_TMPDIR", str(folder)))
        yield folder


@contextmanager
def variable_set(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for this process and its children."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


@contextmanager
def own(root: Path, variable: str = "") -> Iterator[Path]:
    """A new folder in `root`, accessible to this user only, for the length of the context.

    Raises:
        InputError: see `session_folder`.
    """
    tidy(root)
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))  # of mode 0700
    except OSError as error:
        raise refused(root, variable, error.strerror or one_line(error)) from None
    try:
        held = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            check(folder, variable, root)
            yield folder
        finally:
            os.close(held)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check(folder: Path, variable: str, named: Path | None = None) -> None:
    """Raise InputError if a folder cannot be written, or is almost full."""
    named = named or folder
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(bytes(2**16))
            file.flush()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise refused(named, variable, error.strerror or one_line(error)) from None
    if free < ROOM:
        raise refused(named, variable, f"{gigabytes(ROOM)} of disk needed, {gigabytes(free)} free")


def refused(root: Path, variable: str, why: str) -> InputError:
    """Reason why a folder cannot be used for temporary files."""
    name = f"${variable}: " if variable else ""
    return InputError(
        f"{name}{root}: Ray cannot keep its temporary files there: {why}; set TMPDIR to a folder"
        " that is there, can be written and has room"
    )


@contextmanager
def short(folder: Path) -> Iterator[Path]:
    """A short path (symbolic link) to a folder.

    Raises:
        InputError: no short place can be written.
    """
    for place in ("/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR", "")):
        try:
            made = tempfile.mkdtemp(prefix=PREFIX, dir=place) if place else None
        except OSError:
            continue
        if made is not None:
            break
    else:
        raise InputError(
            f"{folder}: too long a path for Ray's sockets ({len(os.fsencode(folder))} bytes), and"
            " /tmp cannot be written; set RAY_TMPDIR to a folder with a path of at most"
            f" {LONGEST} bytes"
        )
    link = Path(made) / "t"
    held = os.open(made, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        link.symlink_to(folder, target_is_directory=True)
        yield link
    finally:
        os.close(held)
        shutil.rmtree(made, ignore_errors=True)


def tidy(root: Path) -> None:
    """Remove folders left by killed processes, whose lock is free."""
    with suppress(OSError):
        for folder in root.glob(f"{PREFIX}????????"):
            with suppress(OSError):
                about = folder.lstat()
                old = time.time() - about.st_mtime > STALE
                if folder.is_symlink() or about.st_uid != os.geteuid() or not old:
                    continue
                held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(held)


def close_to_others(folder: Path) -> None:
    """Restrict the sessions that Ray made in a user's folder to this user.

    What is around them, `ray`, may be another user's, and stays as it is.
    """
    for session in (folder / "ray").glob("session_*"):
        with suppress(OSError):
            if not session.is_symlink() and session.stat().st_uid == os.geteuid():
                session.chmod(0o700)


def make_token() -> None:
    """Make the token of a local cluster readable to its user only, before Ray makes one that all
    can read. If the home cannot be written, the token is for this process and its children."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    try:
        file = Path.home() / ".ray" / "auth_token"
        if file.exists():
            close_token(file)
            return
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Linked when it is whole: another process may look for it, or make its own, meanwhile.
        part = file.with_name(f".auth_token-{secrets.token_hex(4)}")
        opened = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(opened, "w") as out:
            out.write(secrets.token_hex(32))
        with suppress(FileExistsError):
            os.link(part, file)
        part.unlink()
    except (OSError, RuntimeError):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def close_token(file: Path) -> None:
    """Remove other users' rights from a token that an earlier Ray made."""
    with suppress(OSError):
        mode = file.stat().st_mode
        if mode & 0o077:
            file.chmod(mode & 0o700)
