"""The ledger: one JSON file a finished trial. What a resumed sweep, MLflow and the report go by."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from actors.atomic import replacing
from fusion.errors import InputError


@dataclass(frozen=True)
class Entry:
    """One finished trial."""

    trial_key: str
    """Hash of the recipe and of what it was evaluated on: the trial's identity for ever."""
    method: str
    kind: str
    params: Mapping[str, Any]
    status: Literal["done", "failed"]
    split: str
    """The role of the rows it was evaluated on: `select`."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    n: Mapping[str, int] = field(default_factory=dict)
    """Task -> samples."""
    trial_s: float = 0.0
    """Seconds of merging and evaluating, in the replica."""
    peak_bytes: int = 0
    busy_s: float = 0.0
    """Seconds that replicas worked for it, all calls together."""
    gpu_s: float = 0.0
    """GPU-seconds: `busy_s` times the GPUs (or parts of one) of a replica."""
    started: str = ""
    """ISO time at which the trial asked for its evaluation."""
    ended: str = ""
    """ISO time at which it had the result."""
    seed: int = 0
    steps: int = 0
    """Of a method that learns: how many it took; fewer than asked for where it was stopped."""
    curve: Sequence[Mapping[str, float]] = field(default_factory=list)
    """Of a method that learns: losses and coding range at each checkpoint."""
    choices: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """Of a method that selects: every candidate that was asked about, and what came of it."""
    error: str | None = None


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: under a temporary name, then renamed.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    with replacing(path) as part:
        part.write_text(text)


class Ledger:
    """The finished trials of a sweep, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, entry: Entry) -> None:
        """Keep one trial; a later one of the same key replaces it."""
        text = json.dumps(asdict(entry), indent=1, sort_keys=True)
        write_text(self.folder / f"{entry.trial_key}.json", text)

    def __iter__(self) -> Iterator[Entry]:
        """All trials, in the order of their keys."""
        for path in sorted(self.folder.glob("*.json")):
            try:
                yield Entry(**json.loads(path.read_text()))
            except (ValueError, TypeError) as error:
                raise InputError(f"{path}: not a ledger entry ({error}); delete it") from error

    def done(self) -> dict[str, Entry]:
        """Trials that succeeded, by key."""
        return {entry.trial_key: entry for entry in self if entry.status == "done"}

    def clear_failed(self) -> int:
        """Forget failed trials, so that they run again; how many there were."""
        failed = [entry for entry in self if entry.status == "failed"]
        for entry in failed:
            (self.folder / f"{entry.trial_key}.json").unlink()
        return len(failed)
