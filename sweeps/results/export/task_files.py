"""`tasks.json` and `heads.safetensors` of an export: how its model is used on each task.

`tasks.json`: task -> `data` (arguments of `datasets.load_dataset`), `rows` (their indices; null:
all), `columns`, `label`, `labels` (class -> the label as a text, in `format`), `classnames`,
`templates`, or `template` and `targets`, `max_tokens`, `metric`, `split`, `n`, `accuracy` and
`accuracy_ci95`. `heads.safetensors`: `<task>/<tensor>`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from actors.data.dataset_files import Split
from actors.data.protocol import Inputs
from actors.data.readers import ArrowRows, Columns, FileRows, LibraryRows, ParquetRows
from actors.data.task import Place, Splits, Task, assign
from actors.experts.prepare_data import MEASURED, rows
from actors.files.cache_dir import cache_dir
from actors.files.checksums import unsealed
from actors.pool.pool import Pool
from sweeps.results.export.sweep_facts import SweepFacts

TASKS, HEADS, ROWS = "tasks.json", "heads.safetensors", "rows"
"""Files of an export; folder of the lists of image files."""


def write_tasks(part: Path, pool: Pool, facts: SweepFacts) -> dict[str, dict[str, Any]]:
    """Write tasks and heads into a folder, and return what `tasks.json` says."""
    inputs = pool.family.inputs(pool.base)
    found = {}
    for name, task in facts.tasks.items():
        place = assign(task, facts.splits, select_spelled=facts.select_spelled, roles=MEASURED)[
            "report"
        ]
        chosen = indices(task, place, facts.splits, inputs)
        accuracy = f"acc/{name}"
        split = task.split(place.split)
        found[name] = {
            **read_by(split, place.split, part, name, task),
            "rows": chosen,
            "split": facts.splits.report,
            "n": split.rows if chosen is None else len(chosen),
            "dataset": task.source.dataset,
            **words_of(task, inputs),
            "metric": task.metric,
            "accuracy": facts.test(accuracy),
            "accuracy_ci95": facts.interval(accuracy),
        }
    if found:
        (part / TASKS).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        write_heads(part, pool, facts.tasks)
    return found


def indices(task: Task, place: Place, splits: Splits, inputs: Inputs) -> list[int] | None:
    """Rows of a split that are reported on; None: all."""
    if place.part == "all":
        return None
    files = inputs.prepare({task.name: task}, [(task.name, place.split)], cache_dir())
    at = rows(files[task.name, place.split], place.part, splits, inputs).indices
    return None if at is None else at.tolist()


def read_by(split: Split, name: str, part: Path, task: str, opened: Task) -> dict[str, Any]:
    """How `datasets` reads the rows of a split: `data`, `columns`, `label`, `labels`, `format`.

    Rows of image files are listed in `rows/<task>.csv`.
    """
    pieces = [piece for piece, _ in split.pieces]
    numbers = [str(at) for at in range(len(opened.classnames))]
    first = pieces[0]
    if isinstance(first, FileRows):
        lines = [
            (str(Path(file).absolute()), label)
            for each in pieces
            if isinstance(each, FileRows)
            for file, label in zip(each.files, each.labels, strict=True)
        ]
        (part / ROWS).mkdir(exist_ok=True)
        with (part / ROWS / f"{task}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("image", "label"), *lines])
        data: dict[str, Any] = {"path": "csv", "data_files": f"{ROWS}/{task}.csv", "split": "train"}
        return {
            "data": data, "columns": ["image"], "label": "label", "labels": numbers, "format": "",
        }  # fmt: skip
    columns: Columns = first.columns
    if isinstance(first, LibraryRows):
        data, names = library(first), first.names
    else:
        files = [each.file for each in pieces if isinstance(each, ParquetRows | ArrowRows)]
        kind = "parquet" if isinstance(first, ParquetRows) else "arrow"
        data = {"path": kind, "data_files": {name: list(dict.fromkeys(files))}, "split": name}
        names = None
    digits = len(columns.numbers[0].partition(".")[2]) if columns.numbers else None
    return {
        "data": data,
        "columns": list(columns.inputs),
        "label": columns.label,
        "labels": list(names or columns.numbers or numbers),
        "format": "" if digits is None else f".{digits}f",
    }


def library(rows: LibraryRows) -> dict[str, Any]:
    """Arguments of `load_dataset` for what that library reads."""
    source = rows.source
    found: dict[str, Any] = {"path": source.name, "split": source.split}
    if source.files:
        found["data_files"] = {source.split: list(source.files)}
    if source.separator:
        found["sep"] = source.separator
    more = {"name": source.config, "revision": source.revision}
    return found | {name: value for name, value in more.items() if value}


def words_of(task: Task, inputs: Inputs) -> dict[str, Any]:
    """Class names, and the words for them."""
    found: dict[str, Any] = {"classnames": list(task.classnames)}
    if task.wording is None:
        return {**found, "templates": list(task.templates)}
    words = task.wording
    limit = getattr(inputs, "limit", None)
    return {
        **found, "columns": list(words.columns), "template": words.template,
        "targets": list(words.targets), "max_tokens": limit,
    }  # fmt: skip


def write_heads(part: Path, pool: Pool, tasks: Mapping[str, Task]) -> None:
    """Write the tasks' heads where the model's family scores by heads."""
    usage = pool.family.usage(pool.base)
    if usage is None or not usage.heads:
        return
    files = pool.family.heads(pool.base, tasks, cache_dir())
    tensors = {
        f"{name}/{key}": tensor.contiguous()
        for name, file in files.items()
        for key, tensor in unsealed(file.read_bytes(), must=False)[0].items()
    }
    save_file(tensors, part / HEADS, metadata={"format": "pt"})
