"""Thread pools for work that consists of many small tensor operations.

torch splits an elementwise operation over its own threads only above 32,768 elements, and then
waits for all of these threads. A loop with dozens of operations on each chunk therefore waits
thousands of times. If other processes use the same cores, each wait costs a time slice, and the
loop takes a hundred times as long as its work. So chunks here have 32,768 elements, which one
thread handles alone, and independent chunks go to Python threads, which are joined once. torch and
numpy release Python's lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

SERIAL = 1 << 15
"""Largest number of elements that torch's elementwise kernels handle in one thread."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Map `work` over `items` in threads, as many as torch may use, without gradients.

    Results are in the order of `items`.

    >>> in_threads(abs, [-1, 2])
    [1, 2]
    """

    def quietly(item: Item) -> Result:
        with torch.no_grad():  # the mode is each thread's own
            return work(item)

    threads = torch.get_num_threads()
    if min(threads, len(items)) <= 1 or getattr(INSIDE, "of_a_pool", False):
        return [quietly(item) for item in items]
    futures = [pool_of(threads).submit(quietly, item) for item in items]
    wait(futures)  # before an error is raised: buffers of `work` are the caller's
    return [future.result() for future in futures]


INSIDE = threading.local()
"""`of_a_pool` is true in the threads of a pool, which must not wait for the pool."""

POOLS: dict[int, ThreadPoolExecutor] = {}
"""Number of threads -> a pool of them; it lasts, because starting threads for each tensor costs
more than the work on a small one."""

STARTING = threading.Lock()


def pool_of(threads: int) -> ThreadPoolExecutor:
    """The lasting pool of so many threads."""

    def begin() -> None:
        INSIDE.of_a_pool = True
        torch.set_num_threads(threads)  # what the caller has set, whatever was set meanwhile

    with STARTING:
        if threads not in POOLS:
            POOLS[threads] = ThreadPoolExecutor(threads, "fusion", begin)
        return POOLS[threads]


def forget_pools() -> None:
    """Forget all pools, in a forked process, which has none of their threads."""
    global STARTING
    POOLS.clear()
    STARTING = threading.Lock()


os.register_at_fork(after_in_child=forget_pools)


def map_single_threaded(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Map `work` over `items` in threads, with one torch thread inside of each `work`.

    For decompositions (SVD, QR, eigenvalues) of small matrices, which torch's own threads do not
    speed up. The bits of the results do not depend on the number of threads.

    >>> map_single_threaded(lambda _: torch.get_num_threads(), [1, 2])
    [1, 1]
    """
    threads = torch.get_num_threads()

    def alone(item: Item) -> Result:
        torch.set_num_threads(1)  # of the calling thread; and of threads that start meanwhile
        try:
            return work(item)
        finally:
            torch.set_num_threads(threads)

    return in_threads(alone, items)


def portions(size: int, chunk: int) -> list[slice]:
    """Split [0, size) at multiples of `chunk` into about as many slices as torch has threads.

    >>> portions(5, 5), portions(0, 5)
    ([slice(0, 5, None)], [])
    """
    chunks = -(-size // chunk) if size else 0
    step = chunk * max(1, -(-chunks // torch.get_num_threads()))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]
