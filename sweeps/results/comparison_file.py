"""Files of the comparison: `comparison.json`, and the same as a Parquet table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.files.atomic import replacing
from actors.files.documents import checked, parse_json, read_bytes
from fusion.errors import InputError
from sweeps.results.comparison import Comparison, finite
from sweeps.results.ledger import write_text


def document(comparison: Comparison) -> dict[str, Any]:
    """Content of `comparison.json`: the comparison's fields, and `best`: the best row's method and
    score, null where no row is the best."""
    content: dict[str, Any] = finite(asdict(comparison))
    best = comparison.best
    content["best"] = best and {"method": best.method, "score": comparison.score(best)}
    for pair in content["pairs"]:
        if pair["difference"] is None:  # it follows from the counts
            del pair["difference"]
    return content


def write(comparison: Comparison, folder: Path) -> None:
    """Write `comparison.json` atomically.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    content = document(comparison)
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(folder / "comparison.json", text + "\n")


def write_table(comparison: Comparison, folder: Path) -> None:
    """Write `comparison.parquet` atomically."""
    with replacing(folder / "comparison.parquet") as part:
        pq.write_table(as_table(document(comparison)), part)


def as_table(content: Mapping[str, Any]) -> pa.Table:
    """Rows as flat columns (`test/acc/mean`, `test_ci95/acc/mean/low`, …; parameters as JSON).

    All but the rows is the schema's metadata, under `sweep`: nothing of the JSON is lost.
    """
    flat = []
    for row in content["rows"]:
        line = {name: value for name, value in row.items() if not isinstance(value, dict)}
        line["params"] = json.dumps(row["params"], sort_keys=True)
        line["notes"] = "; ".join(row["notes"])
        for group in ("val", "test", "cost"):
            line |= {f"{group}/{name}": row[group][name] for name in sorted(row[group])}
        for name in sorted(row["test_ci95"]):
            low, high = row["test_ci95"][name]
            line |= {f"test_ci95/{name}/low": low, f"test_ci95/{name}/high": high}
        for shift in sorted(row["shifts"]):
            found = row["shifts"][shift]
            line |= {f"shift/{shift}/{name}": found[name] for name in sorted(found)}
            for name, (low, high) in sorted(row["shifts_ci95"].get(shift, {}).items()):
                line |= {f"shift_ci95/{shift}/{name}/low": low}
                line |= {f"shift_ci95/{shift}/{name}/high": high}
        flat.append(line)
    names = list(dict.fromkeys(name for line in flat for name in line))
    schema = pa.schema((name, column_type(name)) for name in names)
    rest = {name: value for name, value in content.items() if name != "rows"}
    metadata = {"sweep": json.dumps(rest, sort_keys=True)}
    return pa.Table.from_pylist(flat, schema=schema.with_metadata(metadata))


def column_type(name: str) -> pa.DataType:
    """Column type by name, because a column of a young sweep may be all null."""
    if name in ("trials", "cost/peak_bytes"):
        return pa.int64()
    if name == "asked":
        return pa.bool_()
    return pa.float64() if "/" in name else pa.string()


def read(folder: Path) -> Comparison:
    """Read the comparison in `folder`.

    Raises:
        InputError: the file is missing, or is not a comparison.
    """
    path = folder / "comparison.json"
    if not path.exists():
        raise InputError(f"{path}: no comparison; it is written as a sweep runs")
    where = f"{path}: not a comparison"
    return checked(Comparison, parse_json(read_bytes(path), where), where)
