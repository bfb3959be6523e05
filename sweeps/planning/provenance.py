"""Check the recipes beside ingredients: same base, same head, same order of classes.

A tower is tuned for one head and one order of classes. If it is averaged with towers of another
head, or evaluated under another head, it is no fair ingredient. Without a recipe nothing is known,
and no check is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.artifacts.head_file import FILE as HEAD
from actors.artifacts.head_file import head_facts
from actors.checkpoints.checkpoint import Checkpoint, content_hash
from actors.data.task import Task
from actors.files.documents import read_yaml
from actors.pool.pool import Pool
from fusion.errors import InputError
from sweeps.results.ingredient_recipes import FILE

SHA256 = re.compile("[0-9a-f]{64}")

HASHES = ("base", "start")
"""Fields of a recipe that are hashes."""


@dataclass(frozen=True)
class Ancestry:
    """Origin of an ingredient as its recipe states it; empty fields are unknown."""

    task: str = ""
    base: str = ""
    """Content hash of the base."""
    start: str = ""
    """Content hash of the model that training started from, where it is not the base: the base with
    a fresh classifier."""
    kind: str = ""
    """Kind of the head: `zero_shot`, `linear_probe`."""
    head: str = ""
    """Identity of the head."""
    classnames: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} {self.head[:8]}"


def ancestry_of(folder: Path) -> Ancestry:
    """Read the origin from `recipe.yaml` of a folder, written by `sweeps train` or `sweeps export`.

    Other programs write recipes too; fields of another form are ignored.
    """
    try:
        content = read_yaml(folder / FILE)
    except InputError:
        return Ancestry()
    stated: Mapping[str, Any] = content if isinstance(content, dict) else {}
    base = stated.get("base")
    if isinstance(base, dict):  # of an export
        base = base.get("sha256")
    head = stated.get("head")
    head = head if isinstance(head, dict) else {}
    names = head.get("classnames")
    texts = {"task": stated.get("task"), "base": base, "start": stated.get("start")}
    texts |= {"kind": head.get("kind"), "head": head.get("identity")}
    return Ancestry(
        classnames=tuple(map(str, names)) if isinstance(names, list) else (),
        **{
            name: value
            for name, value in texts.items()
            if isinstance(value, str) and (name not in HASHES or SHA256.fullmatch(value))
        },
    )


def check_ancestry(pool: Pool, tasks: Mapping[str, Task]) -> None:
    """Refuse members of another base, or tuned under other heads.

    Args:
        pool: an opened one.
        tasks: of the sweep; their head files are checked already.

    Raises:
        InputError: an expert from another base; two of one task under different heads or orders of
            classes; one under another head or order than its task is measured under. One line.
    """
    first: dict[str, tuple[Checkpoint, Ancestry]] = {}
    for expert in pool.experts.values():
        found = ancestry_of(expert.folder)
        ours = content_hash(pool.base) if found.base else ""
        if ours not in (found.base, found.start):
            raise InputError(
                f"{expert.name}: {expert.folder / FILE}: tuned from another base: sha256"
                f" {found.base[:12]}…; pool.base ({pool.base.source}) is {ours[:12]}…"
            )
        if not found.head:
            continue
        other, known = first.setdefault(found.task, (expert, found))
        check_alike((expert, found), (other, known))
        if found.task in tasks:
            check_measured(expert, found, tasks[found.task])


def check_alike(one: tuple[Checkpoint, Ancestry], two: tuple[Checkpoint, Ancestry]) -> None:
    """Raise InputError if two ingredients of a task were tuned under different heads."""
    (expert, found), (other, known) = one, two
    if found.head == known.head:
        return
    what = f"{expert.name} and {other.name}: both of task {found.task!r}"
    if found.classnames != known.classnames:
        raise InputError(
            f"{what}, tuned under other classes or another order of them:"
            f" {differing(found.classnames, known.classnames)}; they cannot be fused"
        )
    raise InputError(
        f"{what}, tuned under different heads ({found} and {known}); those of one head can be fused"
    )


def check_measured(expert: Checkpoint, found: Ancestry, task: Task) -> None:
    """Raise InputError if a task is evaluated under another head than its expert's."""
    what, field = f"{expert.name}: {expert.folder}", f"tasks.{task.name}.head"
    if task.source.head is not None:
        facts, _ = head_facts(Path(task.source.head).expanduser(), field)
        if facts.identity != found.head:
            raise InputError(
                f"{what}: tuned under another head ({found}) than {field}: {task.source.head}"
                f" ({facts})"
            )
    elif found.kind != "zero_shot":
        raise InputError(
            f"{what}: tuned under the head of a linear probe; {task.name} would be measured under"
            f" its zero-shot head: {field}: {expert.folder / HEAD} needed"
        )
    ours, theirs = task.classnames, found.classnames
    if ours != theirs and sorted(ours) == sorted(theirs):  # other words for a class are allowed
        raise InputError(
            f"{what}: tuned under another order of classes than tasks.{task.name} has:"
            f" {differing(theirs, ours)}"
        )


def differing(a: tuple[str, ...], b: tuple[str, ...]) -> str:
    """The first class that differs."""
    if len(a) != len(b):
        return f"{len(a)} classes and {len(b)}"
    at = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
    return f"class {at} is {a[at]!r}, not {b[at]!r}"
