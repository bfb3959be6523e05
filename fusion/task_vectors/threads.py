"""Run independent work in Python threads, for passes of many small steps.

torch splits an elementwise operation over its own threads only above 32,768 elements, and waits
for all of them each time. A pass of dozens of operations a chunk waits thousands of times; where
other processes want the same cores, each wait costs a time slice, and the pass a hundred times its
work. Chunks of 32,768 elements stay in the calling thread; independent work goes to Python
threads, which wait for each other once, and which torch and numpy release the lock for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

SERIAL = 1 << 15
"""The most elements that torch's elementwise kernels handle without threads of their own."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`[work(item) for item in items]`, on as many threads as torch may use; without gradients.

    >>> in_threads(abs, [-1, 2])
    [1, 2]
    """

    def quietly(item: Item) -> Result:
        with torch.no_grad():  # the mode is each thread's own
            return work(item)

    workers = min(torch.get_num_threads(), len(items))
    if workers <= 1:
        return [quietly(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(quietly, items))


def each_alone(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`in_threads`, and within `work` torch has one thread: for decompositions, whose parts are
    too small to be shared out. Their bits do not depend on how many threads there are.

    >>> each_alone(lambda _: torch.get_num_threads(), [1, 2])
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
    """[0, size) cut at multiples of `chunk` into about as many runs as torch has threads.

    >>> portions(5, 5), portions(0, 5)
    ([slice(0, 5, None)], [])
    """
    chunks = -(-size // chunk) if size else 0
    step = chunk * max(1, -(-chunks // torch.get_num_threads()))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]
