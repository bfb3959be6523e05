"""Trial keys: canonical JSON of a trial's recipe and context, its hash, and derived seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from actors.files.fingerprint import Fingerprint
from fusion.kinds import Row
from fusion.outside_methods import ORIGINS, sources_of
from fusion.parameters import bind
from fusion.registry import METHODS

EXACT = 2**53
"""Integers up to here are floats too, and then `1` and `1.0` are one value."""


@dataclass(frozen=True)
class Context:
    """Everything besides its recipe that decides a trial's numbers."""

    common: Fingerprint
    """What all trials depend on: base, experts, images' preprocessing, tasks and splits, heads,
    dtypes, kind of device, seed, versions."""
    extractors: Mapping[tuple[str, bool], Fingerprint] = field(default_factory=dict)
    """(`extractor`, `squash`) of a gate's parameters -> of what they name."""
    gates: Mapping[str, Fingerprint] = field(default_factory=dict)
    """`gate` of such parameters -> of the file."""
    under: Fingerprint | None = None
    """Of the shift whose images are adapted to; None: clean ones are."""
    references: Mapping[str, Fingerprint] = field(default_factory=dict)
    """Finished model beside the pool -> of its files."""

    def of(self, params: Mapping[str, Any], row: Row | None = None) -> Any:
        """The context of one trial; of files, only those that its parameters name.

        So a sweep that is extended by a method with another extractor keeps its finished trials.
        """
        source = params.get("extractor"), params.get("squash")
        named = [self.extractors.get(source), self.gates.get(params.get("gate"))]  # type: ignore[arg-type]
        if self.under and adapts(row):
            return [self.common, *named, self.under]
        return [self.common, *named] if any(named) else self.common


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys; 1 and 1.0, lists and tuples are the same.

    >>> canonical({"b": (1, True), "a": 0.1})
    '{"a":0.1,"b":[1.0,true]}'
    """
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def digest(value: Any) -> str:
    """Hash of a value, 16 hex digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def trial_key(method: str, params: Mapping[str, Any], context: Fingerprint | Context) -> str:
    """Key of a trial in the ledger, in MLflow and in the searcher.

    The key of a method of another package also holds a hash of that package's code, and that of a
    finished model beside the pool the fingerprint of its files.

    Parameters that are left out count with their defaults: `{}` and `{scale: 0.3}` are one trial,
    and a default that changes makes another.

    Args:
        method: A name of the table, or of a reference row (`pretrained`, `experts`).
        params: The parameters of the call.
        context: All else that decides the numbers. No text will do: see `actors.files.fingerprint`.

    Raises:
        InputError: parameters that the method does not take.
    """
    row = METHODS.get(method)
    bound = bind(method, row.parameters, params) if row else dict(params)
    given = context.of(bound, row) if isinstance(context, Context) else context
    decisive = [method, bound, given]
    if method in ORIGINS:
        decisive.append(code_of(ORIGINS[method]))
    if isinstance(context, Context) and method in context.references:
        decisive.append(context.references[method])
    return digest(decisive)


@cache
def code_of(module: str) -> str:
    """Hash of the source files of a module outside this project: of its top-level package, and of
    the modules beside it that it imports."""
    found = hashlib.sha256()
    for source in sources_of(module):
        for file in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
            found.update(f"{file.relative_to(source.parent)}\0".encode())
            found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()[:16]


def adapts(row: Row | None) -> bool:
    """Whether a method adapts to unlabelled images, or takes statistics of images; it then reads
    those under `adapt_on_shift`. Methods that learn from labels, or fit to them, read clean images.

    >>> [name for name in ("ties", "adamerging", "learned_soup", "fisher") if adapts(METHODS[name])]
    ['adamerging', 'fisher']
    """
    return row is not None and "inputs" in row.reads and "labels" not in row.reads


def races(row: Row) -> bool:
    """Whether candidates of a method are raced where the sweep file says `evaluate: racing`.

    Those of methods that make one model, do not learn, and have parameters: other methods report
    once, read cached outputs of the experts, or have one candidate.

    >>> [name for name in ("ties", "ensemble", "dawe", "simple_average") if races(METHODS[name])]
    ['ties']
    """
    return row.output == "one_model" and not row.learns and bool(row.parameters)


def derive_seed(seed: int, *purpose: Any) -> int:
    """Derive a seed below 2³² for one purpose of a sweep; the same on every machine."""
    return int(hashlib.sha256(canonical([seed, *purpose]).encode()).hexdigest()[:8], 16)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= EXACT:
        return float(value)
    return value
