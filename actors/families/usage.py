"""Python code that uses a merged model's folder with `transformers` alone.

A card's code runs in the folder, on one of its tasks: it reads `tasks.json` and
`heads.safetensors`, counts right rows, and prints the task's accuracy. A predictor's is a module
that MLflow loads: its model gives each row of a table a class.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """How the models of a family are used with `transformers` alone."""

    pipeline: str
    """The hub's name of what the model does: `text-classification`."""
    imports: tuple[str, ...]
    """Lines beside those of `code_of`."""
    loading: tuple[str, ...]
    """Lines that load the model and what prepares rows."""
    scoring: tuple[str, ...]
    """Lines that make `scores` [B, C] of `batch`, column -> list of B values."""
    preparing: tuple[str, ...] = ()
    """Lines that make of `task` what scoring needs beside the model."""
    reading: tuple[str, ...] = ()
    """Lines of a card that change how `rows` are read."""
    reading_imports: tuple[str, ...] = ()
    column: str | None = None
    """Column of a predictor's table that holds files, as bytes; None: the task's columns, texts."""
    opening: tuple[str, ...] = ()
    """Lines that make of `batch`, of such files, what scoring reads."""
    opening_imports: tuple[str, ...] = ()
    heads: bool = False
    """Whether scores need the tasks' heads, which are then written as a file; `head` holds those
    of the task, by tensor."""


HEAD = 'head = {key.split("/")[1]: part for key, part in heads if key.startswith(f"{name}/")}'


def code_of(usage: Usage, task: str, dtype: str = "float32") -> str:
    """The code of a card, for one task.

    Args:
        usage: of the model's family.
        task: name in `tasks.json`.
        dtype: what the model computes in; a name of `torch`.
    """
    lines = [
        "import json",
        "import torch",
        "from datasets import load_dataset",
        *(["from safetensors.torch import load_file"] if usage.heads else []),
        *usage.reading_imports,
        *usage.imports,
        "",
        f"name, dtype = {task!r}, torch.{dtype}",
        'task = json.load(open("tasks.json"))[name]',
        *usage.loading,
        *usage.preparing,
        *(['heads = load_file("heads.safetensors").items()', HEAD] if usage.heads else []),
        'rows = load_dataset(**task["data"])',
        'rows = rows.select(task["rows"] or range(len(rows)))',
        *usage.reading,
        "right = 0",
        "for batch in rows.iter(batch_size=32):",
        '    values = [format(value, task["format"]) for value in batch[task["label"]]]',
        '    labels = torch.tensor([task["labels"].index(value) for value in values])',
        "    with torch.inference_mode():",
        *indented(8, usage.scoring),
        "    right += int((scores.argmax(1) == labels).sum())",
        "print(right / len(rows))",
    ]
    return "\n".join(lines) + "\n"


def predictor_of(usage: Usage, task: str, dtype: str = "float32") -> str:
    """A Python module whose `_load_pyfunc(folder)` gives a model with `predict(table, params)`.

    `predict` takes a pandas table, of texts in the task's columns or of files as bytes in
    `usage.column`, and `params["task"]`. It returns a table of `class`, a name, and `scores`, of
    all classes in the order of `classnames` in `tasks.json`.

    Args:
        usage: of the model's family.
        task: the default of `params["task"]`.
        dtype: what the model computes in; a name of `torch`.
    """
    lines = [
        '"""A merged model: the class of each row of a table, and the scores of all classes."""',
        "",
        "import contextlib",
        "import json",
        "",
        "import pandas",
        "import torch",
        *(["from safetensors.torch import load_file"] if usage.heads else []),
        *usage.opening_imports,
        *usage.imports,
        "",
        f"dtype = torch.{dtype}",
        "",
        "",
        "class Merged:",
        "    def __init__(self, folder):",
        "        with contextlib.chdir(folder):",
        '            self.tasks = json.load(open("tasks.json"))',
        *indented(12, usage.loading),
        *indented(12, ['heads = load_file("heads.safetensors").items()'] if usage.heads else []),
        "",
        "        def score(name, table):",
        "            task = self.tasks[name]",
        *indented(12, usage.preparing),
        *indented(12, [HEAD] if usage.heads else []),
        "            for start in range(0, len(table), 32):",
        "                batch = table.iloc[start : start + 32].to_dict('list')",
        *indented(16, usage.opening),
        *indented(16, usage.scoring),
        "                yield scores",
        "",
        "        self.score = score",
        "",
        "    @torch.inference_mode()",
        "    def predict(self, table, params=None):",
        f'        name = (params or {{}}).get("task", {task!r})',
        "        if name not in self.tasks:",
        '            allowed = ", ".join(self.tasks)',
        '            raise ValueError(f"task: {name!r}: one of {allowed} allowed")',
        '        classes = self.tasks[name]["classnames"]',
        '        found = {"class": [], "scores": []}',
        "        for scores in self.score(name, table):",
        '            found["class"] += [classes[at] for at in scores.argmax(1).tolist()]',
        '            found["scores"] += scores.tolist()',
        "        return pandas.DataFrame(found)",
        "",
        "",
        "def _load_pyfunc(folder):",
        "    return Merged(folder)",
    ]
    return "\n".join(lines) + "\n"


def indented(width: int, lines: Iterable[str]) -> list[str]:
    """Lines, `width` spaces further to the right."""
    return [" " * width + line for line in lines]
