"""Portions and threads."""

from __future__ import annotations

import os
import threading
import time

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


def test_threads_last_and_do_not_wait_for_themselves() -> None:
    torch.set_num_threads(2)
    first, then = ({*in_threads(lambda _: threading.get_ident(), range(50))} for _ in range(2))
    assert len(first | then) <= 2
    assert threading.get_ident() not in first
    nested = in_threads(lambda n: sum(in_threads(lambda m: n * m, range(5))), range(8))
    assert nested == [10 * n for n in range(8)]


def test_an_error_waits_for_the_others() -> None:
    torch.set_num_threads(2)
    done = []

    def work(n: int) -> None:
        if n == 0:
            raise ZeroDivisionError
        time.sleep(0.01)
        done.append(n)

    with pytest.raises(ZeroDivisionError):
        in_threads(work, range(4))
    assert sorted(done) == [1, 2, 3]


def test_a_forked_process_has_threads_of_its_own() -> None:
    torch.set_num_threads(2)
    in_threads(abs, [1, 2])
    child = os.fork()
    if child == 0:
        os._exit(0 if in_threads(abs, [-1, -2]) == [1, 2] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_results_keep_their_order_and_errors_come_through() -> None:
    torch.set_num_threads(2)
    assert in_threads(lambda n: n * n, range(20)) == [n * n for n in range(20)]
    assert not any(in_threads(lambda _: torch.is_grad_enabled(), range(4)))
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda n: 1 / n, [1, 0])
