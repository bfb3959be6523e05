"""Content hashes of files, computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from actors.atomic import replacing
from actors.sources import cache_dir


def hash_files(files: Mapping[str, Path]) -> str:
    """sha256 over names and contents of files, in the order given.

    Remembered in the cache folder under where the files are, their sizes and their times of
    change, so that gigabytes are read once. One small file an entry: two processes cannot lose
    each other's.

    Args:
        files: name -> file; the name is hashed, where the file lies is not.
    """
    stats = [(str(file.resolve()), file.stat()) for file in files.values()]
    # The time of change (ctime) beside that of modification, which a copy may preserve.
    state = [(path, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in stats]
    key = hashlib.sha256(json.dumps([list(files), state]).encode()).hexdigest()
    entry = cache_dir() / "hashes" / f"{key}.json"
    try:
        return str(json.loads(entry.read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there yet, or damaged: computed again
    total = hashlib.sha256()
    for name, file in files.items():
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{name}\0{content}\n".encode())
    digest = total.hexdigest()
    with replacing(entry) as part:
        part.write_text(json.dumps({"sha256": digest, "files": len(files)}))
    return digest


def hash_text(*parts: object) -> str:
    """sha256 of JSON: equal values, equal hash; 32 hex digits.

    >>> hash_text("a", [1, 2]) == hash_text("a", [1, 2]) != hash_text("a", [2, 1])
    True
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
