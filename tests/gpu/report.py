"""Rows of the acceptance: checked or measured one by one, each written as it comes."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environment import machine
from tests.gpu.places import Place

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
"""Where results of a GPU are kept."""

ELSEWHERE = Path("outputs") / "gpu"
"""Where those of the pretended GPU, and of the CPU, are written."""


@dataclass(frozen=True)
class Found:
    """What a row has found."""

    cells: Sequence[str]
    """Of the columns after the first."""
    right: bool | None = None
    """Whether it is as it must be; None: it is a measurement."""


def within(value: float, most: float, note: str = "") -> Found:
    """A difference, and the most that it may be."""
    return Found((f"{value:.2e}", f"≤ {most:g}", note), value <= most)


@dataclass(frozen=True)
class Row:
    """One line of a part, not yet computed."""

    name: str
    find: Callable[[], Found]


@dataclass(frozen=True)
class Part:
    """Rows of one kind, with the head of their table and the most seconds that they may take."""

    name: str
    columns: Sequence[str]
    limit: float
    rows: Callable[[], Iterable[Row]]
    note: str = ""


CHECKED = ("what", "found", "allowed", "note")
"""Columns of parts whose rows are right or wrong."""


def results_file(place: Place, day: str, given: Path | None = None) -> Path:
    """A new file for the results: those of a GPU under benchmarks/results, all others elsewhere.

    `given`: a folder for either.
    """
    kinds = {"cuda": "gpu", "pretend": "pretended_gpu", "cpu": "cpu_as_gpu"}
    folder = given or (RESULTS if place.kind == "cuda" else ELSEWHERE)
    names = (
        f"{kinds[place.kind]}_{day}{more}.md" for more in ("", *map("-{}".format, range(2, 99)))
    )
    return next(folder / name for name in names if not (folder / name).exists())


@dataclass
class Report:
    """A Markdown file, and a file of JSON lines beside it, that hold every row found so far."""

    file: Path
    place: Place
    command: str
    seconds: float = 480.0
    """Most seconds of all parts, on a GPU; elsewhere there is no limit, nor for a part."""
    wrong: int = 0
    """Rows that are not as they must be, or raised."""
    late: int = 0
    """Rows that were left out for want of time."""
    start: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Write the head."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lines = ["# GPU acceptance", "", f"`{self.command}`: {machine()}.", ""]
        if self.place.kind != "cuda":
            lines[0] += f": not on a GPU, but on {self.place.name}"
            lines += ["**No GPU was used: no figure here is one of a GPU.**", ""]
        self.write("\n".join(lines))

    def write(self, text: str) -> None:
        """Append to the file and to the terminal, at once."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        with self.file.open("a") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())

    def keep(self, **row: Any) -> None:
        """Append a JSON line."""
        with self.file.with_suffix(".jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def run(self, part: Part) -> None:
        """All rows of a part; one that raises is wrong, and the next goes on."""
        head = [*part.columns, "", "s"]
        lines = ["", f"## {part.name}", "", *([part.note, ""] if part.note else [])]
        self.write("\n".join([*lines, "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]))
        end = min(time.monotonic() + part.limit, self.start + self.seconds)
        end = end if self.place.kind == "cuda" else math.inf
        left = []
        for row in prepared(part):
            if time.monotonic() > end:
                left.append(row.name)
                continue
            self.one(part, row)
        if left:
            self.late += len(left)
            self.write(f"\nNot run, for want of time: {', '.join(left)}.")

    def one(self, part: Part, row: Row) -> None:
        """Find a row and write it."""
        began = time.monotonic()
        try:
            found = row.find()
        except Exception as error:  # any: the other rows are wanted all the same
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            found = Found((said.replace("|", "/"),), False)
        took = time.monotonic() - began
        self.wrong += found.right is False
        cells = [*found.cells, *[""] * (len(part.columns) - 1 - len(found.cells))]
        verdict = {True: "right", False: "WRONG", None: ""}[found.right]
        self.write("| " + " | ".join([row.name, *cells, verdict, f"{took:.1f}"]) + " |")
        about = dict(zip(part.columns[1:], cells, strict=False))
        self.keep(part=part.name, row=row.name, **about, right=found.right, seconds=round(took, 2))

    def end(self) -> None:
        """Write how it ended."""
        took = time.monotonic() - self.start
        said = f"{self.wrong} wrong, {self.late} not run for want of time; {took:.0f} s."
        self.write(f"\n{said}")


def prepared(part: Part) -> Iterator[Row]:
    """A part's rows; where they cannot be prepared, the reason as a last row."""
    try:
        yield from part.rows()
    except Exception as error:  # any: the other parts are wanted all the same
        known = error

        def fail() -> Found:
            raise known

        yield Row("what the part needs", fail)
