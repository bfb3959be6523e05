"""Surveys: generators that need sums over a whole model (an all-reduce over its shards)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeAlias, TypeVar

from torch import Tensor

Result = TypeVar("Result")

Survey: TypeAlias = Generator[Tensor, Tensor, Result]
"""A pass over task vectors that needs sums over the whole model. It yields a tensor, receives the
sum of that tensor over all shards, and finally returns what the method needs.

The surveys of all shards run in step. So what a survey yields, and how often, may depend on the
parameters and on the sums it received, never on its own shard alone."""


def run_surveys(surveys: Sequence[Survey[Result]]) -> Result:
    """Run the surveys of all shards in step, summing what they yield; returns their result.

    >>> import torch
    >>> def count(n):
    ...     total = yield torch.tensor(n)
    ...     return int(total)
    >>> run_surveys([count(2), count(3)])
    5
    """
    answers: list[Tensor | None] = [None] * len(surveys)
    while True:
        parts, results = [], []
        for survey, answer in zip(surveys, answers, strict=True):
            try:
                parts.append(survey.send(answer))  # type: ignore[arg-type]  # None starts it
            except StopIteration as stop:
                results.append(stop.value)
        if results:
            first: Result = results[0]
            return first
        total = parts[0]
        for part in parts[1:]:
            total = total + part.to(total.device)
        answers = [total] * len(surveys)
