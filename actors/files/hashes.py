"""Content hashes (SHA-256) of files, cached by path, size and times."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from actors.files.atomic import replacing
from actors.files.cache_dir import cache_dir
from actors.files.checksums import TICK_NS, again, sealed_json, unsealed_json
from actors.files.fingerprint import hash_text as hash_text


def hash_files(files: Mapping[str, Path]) -> str:
    """SHA-256 of names and contents of files, in the order given.

    The result is cached under the files' paths, sizes and times of change, so that gigabytes are
    read once. Each result is a small file of its own, so that two processes cannot overwrite each
    other's.

    Args:
        files: name -> file; the name is hashed, the path is not.
    """
    state = states(files)
    if (known := known_hash(files, state)) is not None:
        return known
    total = hashlib.sha256()
    for name, file in files.items():
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{name}\0{content}\n".encode())
    digest = total.hexdigest()
    if states(files) != state:
        return digest  # a file changed meanwhile
    with replacing(entry_of(files, state)) as part:
        part.write_text(sealed_json({"sha256": digest, "files": len(files)}))
    return digest


State: TypeAlias = list[tuple[str, int, int, int]]


def known_hash(files: Mapping[str, Path], state: State | None = None) -> str | None:
    """What `hash_files` has cached for these files; None: nothing, so that it would read them.

    `state`: their states, if they are known.
    """
    state = states(files) if state is None else state
    entry = entry_of(files, state)
    try:
        known = str(unsealed_json(entry.read_bytes())["sha256"])
        # A file that changed just before it was read may have changed again just after with the
        # same time of change.
        if all(changed + TICK_NS < entry.stat().st_mtime_ns for *_, changed in state):
            return known
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        again(entry, error)
    return None


def entry_of(files: Mapping[str, Path], state: State) -> Path:
    """Cache file of the hash of files in this state."""
    key = hashlib.sha256(json.dumps(["hashes-2", list(files), state]).encode()).hexdigest()
    return cache_dir() / "hashes" / f"{key}.json"


def states(files: Mapping[str, Path]) -> State:
    """Path, size, time of modification and time of change of each file."""
    stats = [(str(file.resolve()), file.stat()) for file in files.values()]
    # ctime as well as mtime: copying may preserve mtime.
    return [(path, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in stats]
