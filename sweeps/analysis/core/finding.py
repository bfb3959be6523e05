"""Result of one part of an analysis: tables and sentences, written as JSON, Parquet and CSV."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from pydantic import ConfigDict

from actors.files.atomic import replacing
from actors.files.documents import checked, parse_json, read_bytes
from actors.files.paths import Plain
from fusion.errors import InputError
from sweeps.results.comparison import finite
from sweeps.results.ledger import write_text

Line = Mapping[str, Any]
"""A row of a table: column -> value."""


@dataclass(frozen=True)
class Finding:
    """Result of one part; written as `<part>.json`, and each table as `<part>-<table>`."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    part: Plain
    context: str
    """Hash of what it depends on: models, data, splits, precision."""
    about: str
    """What was measured, on what: one sentence."""
    lines: Sequence[str] = ()
    """What the numbers say, in sentences; of a part that was skipped, why."""
    tables: Mapping[Plain, Sequence[Line]] = field(default_factory=dict)
    shown: Sequence[str] = ()
    """Tables that the page shows; the others are for programs."""


def write(finding: Finding, folder: Path) -> list[Path]:
    """Write JSON, and each table as Parquet and CSV, atomically; returns the files.

    Tables of an earlier call that this one has not are deleted.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    paths = [folder / f"{finding.part}.json"]
    for name, rows in finding.tables.items():
        if not rows:
            continue
        table = pa.Table.from_pylist(finite(list(rows)))
        for kind in ("parquet", "csv"):
            paths.append(folder / f"{finding.part}-{name}.{kind}")
            with replacing(paths[-1]) as part:
                if kind == "csv":
                    pyarrow.csv.write_csv(table, part)
                else:
                    pyarrow.parquet.write_table(table, part)
    # Last: what is read back, with its tables beside it.
    text = json.dumps(finite(asdict(finding)), ensure_ascii=False, allow_nan=False)
    write_text(paths[0], text + "\n")
    for old in folder.glob(f"{finding.part}-*.*"):
        if old not in paths:
            old.unlink()
    return paths


def read(folder: Path, part: str, context: str) -> Finding | None:
    """Read an earlier result; None if it is missing, or of other models or data."""
    try:
        file = folder / f"{part}.json"
        found = checked(Finding, parse_json(read_bytes(file), str(file)), str(file))
    except InputError:
        return None
    return found if (found.part, found.context) == (part, context) else None
