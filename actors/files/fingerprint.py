"""Fingerprints: what an object was read from, all of it, as a hash.

Caches, trial keys and recipes are keyed by fingerprints and by nothing else. Only the objects that
compute something make them, from all that they were read from: a checkpoint, a preprocessing, a
tokenizer, a head, an extractor, a split of a data set, a pool's member on a device. A key can so
forget an input only where the object that is used forgets it. `tests/test_architecture.py` holds
the list of modules that may make one.

Imports nothing heavy, for the reason `preprocess.py` gives.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import NewType

Fingerprint = NewType("Fingerprint", str)
"""32 hex digits. Plain text where it is written; to mypy no plain text is one."""

NOTHING = Fingerprint("")
"""Of a search whose results depend on its parameters alone."""

NUMBERS = 4
"""Raised when a change of this code changes results: finished trials are then not reused."""


def fingerprint(kind: str, *parts: object) -> Fingerprint:
    """The fingerprint of an object.

    Args:
        kind: of the object, with a number that is raised when the meaning of `parts` changes.
        parts: all that it was read from: fingerprints, and plain values.
    """
    return Fingerprint(hash_text(kind, *parts))


def hash_text(*parts: object) -> str:
    """sha256 of JSON: equal values, equal hash; 32 hex digits.

    >>> hash_text("a", [1, 2]) == hash_text("a", [1, 2]) != hash_text("a", [2, 1])
    True
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def software(*packages: str) -> str:
    """What computes numbers: `NUMBERS`, and the packages' versions without their last part.

    A release that only mends (2.13.0 to 2.13.1) keeps caches and trials.

    >>> software("torch").startswith(f"{NUMBERS} torch ")
    True
    """
    return " ".join([str(NUMBERS), *(f"{name} {release(name)}" for name in packages)])


def release(package: str) -> str:
    """A package's version, its first two parts; empty where it is not installed."""
    try:
        return ".".join(version(package).split("+")[0].split(".")[:2])
    except PackageNotFoundError:
        return ""
