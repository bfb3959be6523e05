"""Content hashes of files, computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from actors.files.atomic import replacing
from actors.files.cache_dir import cache_dir
from actors.files.checksums import TICK_NS, again, sealed_json, unsealed_json
from actors.files.fingerprint import hash_text as hash_text


def hash_files(files: Mapping[str, Path]) -> str:
    """sha256 over names and contents of files, in the order given.

    Remembered in the cache folder under where the files are, their sizes and their times of
    change, so that gigabytes are read once. One small file an entry: two processes cannot lose
    each other's.

    Args:
        files: name -> file; the name is hashed, where the file lies is not.
    """
    state = states(files)
    key = hashlib.sha256(json.dumps(["hashes-2", list(files), state]).encode()).hexdigest()
    entry = cache_dir() / "hashes" / f"{key}.json"
    try:
        known = str(unsealed_json(entry.read_bytes())["sha256"])
        # A file that changed just before it was read may have changed once more just after,
        # without another time of change.
        if all(changed + TICK_NS < entry.stat().st_mtime_ns for *_, changed in state):
            return known
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        again(entry, error)
    total = hashlib.sha256()
    for name, file in files.items():
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{name}\0{content}\n".encode())
    digest = total.hexdigest()
    if states(files) != state:
        return digest  # one changed meanwhile
    with replacing(entry) as part:
        part.write_text(sealed_json({"sha256": digest, "files": len(files)}))
    return digest


def states(files: Mapping[str, Path]) -> list[tuple[str, int, int, int]]:
    """Where each file is, its size, and its times of modification and of change."""
    stats = [(str(file.resolve()), file.stat()) for file in files.values()]
    # The time of change (ctime) beside that of modification, which a copy may preserve.
    return [(path, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in stats]
