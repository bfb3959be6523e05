"""Portions and threads."""

from __future__ import annotations

import pytest
import torch

from fusion.task_vectors.threads import in_threads, portions


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [0, 1, 4, 5, 8, 23])
def test_portions_cover_everything_once_at_multiples_of_the_chunk(size: int, threads: int) -> None:
    torch.set_num_threads(threads)  # the fixture restores it
    found = portions(size, 4)
    assert [i for part in found for i in range(size)[part]] == list(range(size))
    assert all(part.start % 4 == 0 for part in found)
    assert len(found) <= threads


def test_results_keep_their_order_and_errors_come_through() -> None:
    torch.set_num_threads(2)
    assert in_threads(lambda n: n * n, range(20)) == [n * n for n in range(20)]
    assert not any(in_threads(lambda _: torch.is_grad_enabled(), range(4)))
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda n: 1 / n, [1, 0])
