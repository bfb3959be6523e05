"""One text for values that mean the same, and what is derived from it: hashes, keys, seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fusion.parameters import bind
from fusion.registry import METHODS

EXACT = 2**53
"""Integers up to here are floats too, and then `1` and `1.0` are one value."""


def canonical(value: Any) -> str:
    """JSON with sorted keys, in which 1 and 1.0, lists and tuples are the same.

    >>> canonical({"b": (1, True), "a": 0.1})
    '{"a":0.1,"b":[1.0,true]}'
    """
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def digest(value: Any) -> str:
    """16 hex digits that stand for a value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def trial_key(method: str, params: Mapping[str, Any], context: str = "") -> str:
    """What a trial is known by, in the ledger, in MLflow and to the searcher.

    Parameters that are left out count with their defaults: `{}` and `{scale: 0.3}` are one trial,
    and a default that changes makes another.

    Args:
        method: A name of the table, or of a reference row (`pretrained`, `experts`).
        params: The parameters of the call.
        context: All else that decides the numbers: hashes of base, experts, tasks and splits, the
            dtype, the sweep's seed for methods that draw, the version of the mathematics.

    Raises:
        InputError: parameters that the method does not take.
    """
    row = METHODS.get(method)
    bound = bind(method, row.parameters, params) if row else dict(params)
    return digest([method, bound, context])


def derive_seed(seed: int, *purpose: Any) -> int:
    """A seed below 2³² for one purpose of a sweep, the same on every machine."""
    return int(hashlib.sha256(canonical([seed, *purpose]).encode()).hexdigest()[:8], 16)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= EXACT:
        return float(value)
    return value
