"""The ledger: one JSON file for each finished trial. Resume, MLflow and the report read it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from actors.files.atomic import replacing
from actors.files.documents import checked, parse_json, read_bytes
from actors.files.paths import Plain, inside
from fusion.errors import InputError

CHECK = "check"
"""The field of a file that holds a hash of all others; files of before it have none."""

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Stopped:
    """Why a raced trial was stopped before all rows were evaluated."""

    metric: str
    """What it was compared by."""
    best: float
    """The value of the candidate that it could not reach."""
    at_most: float
    """The highest value that was possible for it when it was stopped."""
    rows: Whole
    """Rows that were evaluated."""
    of: Whole
    """All rows."""
    confidence: float | None = None
    """Probability with which the winner is none of the stopped trials; None: it is none of them."""


@dataclass(frozen=True)
class Entry:
    """One finished trial."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    trial_key: Plain
    """Hash of the recipe and of what it was evaluated on: the permanent identity of the trial."""
    method: Plain
    kind: Plain
    params: Mapping[str, Any]
    status: Literal["done", "failed", "stopped"]
    """`stopped`: in a race, before all rows were evaluated; it has no metrics."""
    split: str
    """The role of the rows it was evaluated on: `select`."""
    metrics: Mapping[str, int | float] = field(default_factory=dict)
    n: Mapping[str, Whole] = field(default_factory=dict)
    """Task -> samples."""
    trial_s: Amount = 0.0
    """Seconds of merging and evaluating, in the replica."""
    peak_bytes: Whole = 0
    busy_s: Amount = 0.0
    """Seconds that replicas worked for it, all calls together."""
    gpu_s: Amount = 0.0
    """GPU-seconds: `busy_s` times the GPUs (or parts of one) of a replica."""
    started: str = ""
    """ISO time at which the trial submitted its evaluation."""
    ended: str = ""
    """ISO time at which it had the result."""
    seed: Whole = 0
    steps: Whole = 0
    """Training steps of a method that learns; fewer than configured if it was stopped."""
    curve: Sequence[Mapping[str, int | float]] = field(default_factory=list)
    """Of a method that learns: losses and coding range at each checkpoint."""
    choices: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """For a method that selects: every candidate that was tried, and its result."""
    error: str | None = None
    stopped: Stopped | None = None


def fields_of(entries: Iterable[Entry], status: str) -> list[dict[str, Any]]:
    """The entries with a status, field by field."""
    return [asdict(entry) for entry in entries if entry.status == status]


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: under a temporary name, then renamed.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def dump_entry(entry: Entry) -> str:
    """JSON of an entry, with its hash."""
    content = asdict(entry)
    return json.dumps({**content, CHECK: hash_of(content)}, indent=1, sort_keys=True)


def parse_entry(data: bytes, name: str, where: str) -> Entry:
    """Parse an entry's file.

    Args:
        data: the content.
        name: of the file, `<trial key>.json`; the entry of another name is none of this file.
        where: begins the message.

    Raises:
        InputError: damaged, or of another trial.
    """
    content = parse_json(data, where, finite=False)
    if isinstance(content, dict) and content.pop(CHECK, None) not in (None, hash_of(content)):
        raise InputError(f"{where}: its hash is another than when it was written")
    entry = checked(Entry, content, where)
    if f"{entry.trial_key}.json" != name:
        raise InputError(f"{where}: trial_key: {entry.trial_key!r}: not the file's name")
    return entry


def hash_of(content: Mapping[str, Any]) -> str:
    """Hash of an entry's fields, 16 hex digits."""
    text = json.dumps({k: v for k, v in content.items() if k != CHECK}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Ledger:
    """The finished trials of a sweep, in a folder.

    A damaged entry counts as none: its trial runs again, which replaces it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, entry: Entry) -> None:
        """Write one entry; it replaces an earlier one of the same key."""
        write_text(self.file(entry.trial_key), dump_entry(entry))

    def file(self, trial_key: str) -> Path:
        """Path of a trial's entry.

        Raises:
            InputError: a key that is no plain name.
        """
        return inside(self.folder, f"{trial_key}.json", "trial_key")

    def __iter__(self) -> Iterator[Entry]:
        """All entries, in the order of their keys; damaged ones are logged and left out."""
        for path in sorted(self.folder.glob("*.json")):
            try:
                yield parse_entry(read_bytes(path), path.name, str(path))
            except InputError as error:
                logging.getLogger(__name__).warning(
                    "%s; its trial counts as not run, and --resume runs it again", error
                )

    def done(self) -> dict[str, Entry]:
        """Trials by key that need not run again: successful ones, and those stopped in a race."""
        return {entry.trial_key: entry for entry in self if entry.status != "failed"}

    def clear_failed(self) -> int:
        """Delete entries of failed trials, so that they run again; returns how many."""
        failed = [entry for entry in self if entry.status == "failed"]
        for entry in failed:
            self.file(entry.trial_key).unlink(missing_ok=True)
        return len(failed)

    def set_aside(self) -> list[str]:
        """Rename damaged entries; returns their names.

        They stay in the folder, as `.<name>.damaged`.
        """
        found = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                parse_entry(read_bytes(path), path.name, str(path))
            except InputError:
                path.rename(path.with_name(f".{path.name}.damaged"))
                found.append(path.name)
        return found
