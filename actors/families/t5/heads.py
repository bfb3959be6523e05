"""Heads of T5: the answers of a task's classes, tokenised; scored by the model itself."""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from actors.artifacts.head_file import sound, write_answer_head
from actors.data.task import Task
from actors.data.text.inputs import TextInputs
from actors.data.text.wording import Wording
from actors.files.fingerprint import Fingerprint, fingerprint
from fusion.errors import InputError
from fusion.logits.head import Objective

SPACE = "\u2581"
"""What tokenizers of SentencePiece write for a space."""

BLANK = string.whitespace + string.punctuation
"""Characters that do not count at the ends of a text, as in DAWE's released code."""


def check_no_head(tasks: Mapping[str, Task]) -> None:
    """Raise InputError where a task names a head file."""
    for name, task in tasks.items():
        if task.source.head is not None:
            raise InputError(
                f"tasks.{name}.head: {task.source.head!r}; none allowed: a t5 model scores the"
                " task's answers itself"
            )


def wordings(tasks: Mapping[str, Task]) -> dict[str, Wording]:
    """Task -> its words.

    Raises:
        InputError: a task of images.
    """
    found = {}
    for name, task in tasks.items():
        if task.wording is None:
            raise InputError(f"tasks.{name}: images; t5 models read texts")
        found[name] = task.wording
    return found


def head_fingerprints(text: TextInputs, tasks: Mapping[str, Task]) -> dict[str, Fingerprint]:
    """Task -> fingerprint of its answers, of the tokenizer, and of another objective than the
    default."""
    found = {}
    for name, words in wordings(tasks).items():
        objective = objective_of(tasks[name])
        more = [] if objective == "vocabulary" else [objective]
        answers = list(words.targets)
        found[name] = fingerprint("answers-1", text.tokenizer.fingerprint, answers, *more)
    return found


def objective_of(task: Task) -> Objective:
    """Which entropy is minimised; see `AnswerHead`."""
    return cast(Objective, task.source.objective or "vocabulary")


def task_heads(text: TextInputs, tasks: Mapping[str, Task], root: Path) -> dict[str, Path]:
    """Task -> head file of its answers' tokens in the cache folder, written where missing."""
    check_no_head(tasks)
    found = {}
    for name, identity in head_fingerprints(text, tasks).items():
        found[name] = root / "heads" / f"{identity}.safetensors"
        if not sound(found[name]):
            answers = text.constants(tasks[name])["answers"]
            blanks = blank_tokens(text.tokenizer.load())
            objective = objective_of(tasks[name])
            write_answer_head(found[name], torch.from_numpy(answers), blanks, objective)
    return found


def blank_tokens(tokenizer: Any) -> list[int]:
    """Tokens that are whitespace and ASCII punctuation alone, special tokens left out."""
    special = set(tokenizer.all_special_tokens)
    return sorted(
        at
        for token, at in tokenizer.get_vocab().items()
        if token not in special and not token.replace(SPACE, " ").strip(BLANK)
    )
