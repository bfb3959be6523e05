"""Surveys in step."""

from __future__ import annotations

import torch

from fusion.task_vectors.sharded_reduce import Survey, run_surveys


def moments(values: list[float]) -> Survey[tuple[float, float]]:
    total = yield torch.tensor([sum(values), len(values)], dtype=torch.float64)
    mean = float(total[0] / total[1])
    squares = yield torch.tensor(sum((value - mean) ** 2 for value in values), dtype=torch.float64)
    return mean, float(squares / total[1])


def nothing() -> Survey[str]:
    return "done"
    yield


def test_each_answer_is_the_sum_over_shards() -> None:
    assert run_surveys([moments([1.0, 2.0]), moments([]), moments([6.0])]) == (3.0, 14 / 3)


def test_a_survey_may_ask_nothing() -> None:
    assert run_surveys([nothing(), nothing()]) == "done"
