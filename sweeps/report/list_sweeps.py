"""The sweeps in the outputs folder as `sweeps list` shows them, as far as their files tell.

Nothing here imports torch, so that the list is there at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import ConfigDict
from rich.table import Table
from rich.text import Text

from actors.files.documents import checked, parse_json, read_bytes
from actors.files.paths import Plain
from fusion.errors import InputError
from sweeps.results.folder import SweepFolder, check_not_running, read_identity


@dataclass(frozen=True)
class Listed:
    """One sweep, as far as its files tell."""

    name: str
    state: str
    """`running`, `finished`, `stopped` (`--resume` goes on with it) or `damaged`."""
    trials: int
    best: str
    """Method and score of the best row; empty: no row is reported yet."""
    date: str
    """When it was created, in local time."""


@dataclass(frozen=True)
class Best:
    """The best row."""

    method: Plain
    score: float


@dataclass(frozen=True)
class Headline:
    """What is listed of `comparison.json`; the rest is not looked at."""

    __pydantic_config__ = ConfigDict(extra="ignore")

    spec_hash: str
    best: Best | None = None
    """Comparisons of earlier versions do not name it."""


def listed(outputs: Path) -> list[Listed]:
    """The sweeps in a folder, the newest first.

    Raises:
        InputError: no such folder.
    """
    if not outputs.is_dir():
        raise InputError(f"--outputs: {outputs}: no such folder; `sweeps run` makes it")
    found = [described(folder) for folder in sweep_folders(outputs)]
    return sorted(found, key=lambda sweep: (sweep.date, sweep.name), reverse=True)


def sweep_folders(outputs: Path) -> Iterator[Path]:
    """Folders with a sweep's identity."""
    for folder in outputs.iterdir():
        if folder.is_dir() and SweepFolder(folder).identity.is_file():
            yield folder


def described(folder: Path) -> Listed:
    """One sweep; a damaged file is a state, and no error."""
    try:
        identity = read_identity(SweepFolder(folder))
    except InputError:
        return Listed(folder.name, "damaged", 0, "", "")
    trials = sum(1 for _ in (folder / "ledger").glob("*.json"))
    made = datetime.fromisoformat(identity.created).astimezone()
    headline = None
    with suppress(InputError):
        content = read_bytes(folder / "comparison.json")
        headline = checked(Headline, parse_json(content, folder.name), folder.name)
    finished = headline is not None and headline.spec_hash == identity.spec_hash
    try:
        check_not_running(folder)
        state = "finished" if finished else "stopped"
    except InputError:
        state = "running"
    best = headline.best if headline is not None and finished else None
    text = "" if best is None else f"{best.method} {best.score:.4f}"
    return Listed(folder.name, state, trials, text, f"{made:%Y-%m-%d %H:%M}")


def shown(sweeps: list[Listed]) -> Table:
    """One row a sweep."""
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("sweep", "state", "trials", "best", "created"):
        rows.add_column(column, overflow="fold", justify="right" if column == "trials" else "left")
    for each in sweeps:
        fields = (each.name, each.state, str(each.trials), each.best or "–", each.date or "–")
        rows.add_row(*map(Text, fields))
    return rows
