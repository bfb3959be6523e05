"""Python code that uses a merged model's folder with `transformers` alone, and counts right rows.

The code runs in the folder, on one of its tasks: it reads `tasks.json` and `heads.safetensors`, and
prints the task's accuracy.
"""

from __future__ import annotations

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
    reading: tuple[str, ...] = ()
    """Lines that change how `rows` are read."""
    heads: bool = False
    """Whether scores need the tasks' heads, which are then written as a file; `head` holds those
    of the task, by tensor."""


def code_of(usage: Usage, task: str, dtype: str = "float32") -> str:
    """The code for one task.

    Args:
        usage: of the model's family.
        task: name in `tasks.json`.
        dtype: what the model computes in; a name of `torch`.
    """
    head = [
        'heads = load_file("heads.safetensors").items()',
        'head = {key.split("/")[1]: part for key, part in heads if key.startswith(f"{name}/")}',
    ]
    lines = [
        "import json",
        "import torch",
        "from datasets import load_dataset",
        *(["from safetensors.torch import load_file"] if usage.heads else []),
        *usage.imports,
        "",
        f"name, dtype = {task!r}, torch.{dtype}",
        'task = json.load(open("tasks.json"))[name]',
        *usage.loading,
        *(head if usage.heads else []),
        'rows = load_dataset(**task["data"])',
        'rows = rows.select(task["rows"] or range(len(rows)))',
        *usage.reading,
        "right = 0",
        "for batch in rows.iter(batch_size=32):",
        '    values = [format(value, task["format"]) for value in batch[task["label"]]]',
        '    labels = torch.tensor([task["labels"].index(value) for value in values])',
        "    with torch.inference_mode():",
        *(f"        {line}" for line in usage.scoring),
        "    right += int((scores.argmax(1) == labels).sum())",
        "print(right / len(rows))",
    ]
    return "\n".join(lines) + "\n"
