"""Fingerprints: hashes of everything that an object was read from.

Keys of caches, trials and recipes are made of fingerprints only. An object that computes something
makes its own fingerprint from all that it was read from: a checkpoint, a preprocessing, a
tokenizer, a head, an extractor, a split of a data set, a member of a pool on a device. So a key
lacks an input only if the object itself does not know it. `tests/test_architecture.py` lists the
modules that may make fingerprints.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import NewType

Fingerprint = NewType("Fingerprint", str)
"""32 hexadecimal digits. mypy refuses a plain `str` in its place."""

NOTHING = Fingerprint("")
"""Fingerprint of a search whose results depend on its parameters only."""

NUMBERS = 7
"""Increased when a change of the code changes results; finished trials are then not reused.

7: signs are elected, and entries are compared, by sums in float64, so that the order of the experts
does not decide nearly equal ones; equal singular values are not cut apart; equal scores are ordered
by name.
6: DARE's masks are a hash of seed, task, tensor and entry, computed on the tensors' device, where a
generator on the CPU drew them: other entries are dropped.
5: the last layer of CLIP and BERT computes the tokens that are read alone, and gates and routers
learn from several tasks in one pass: last digits differ.
"""


def fingerprint(kind: str, *parts: object) -> Fingerprint:
    """The fingerprint of an object.

    Args:
        kind: kind of the object, with a number that changes when the meaning of `parts` changes.
        parts: all that it was read from: fingerprints and plain values.
    """
    return Fingerprint(hash_text(kind, *parts))


def hash_text(*parts: object) -> str:
    """The first 32 hexadecimal digits of the SHA-256 of `parts` as JSON.

    >>> hash_text("a", [1, 2]) == hash_text("a", [1, 2]) != hash_text("a", [2, 1])
    True
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def software(*packages: str) -> str:
    """Version of the numbers: `NUMBERS`, and the packages' versions without their last part.

    A patch release (2.13.0 to 2.13.1) keeps caches and trials.

    >>> software("torch").startswith(f"{NUMBERS} torch ")
    True
    """
    return " ".join([str(NUMBERS), *(f"{name} {release(name)}" for name in packages)])


def release(package: str) -> str:
    """The first two parts of a package's version; empty if it is not installed."""
    try:
        return ".".join(version(package).split("+")[0].split(".")[:2])
    except PackageNotFoundError:
        return ""
