"""Do something in a thread beside the main one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

Result = TypeVar("Result")


def beside(work: Callable[[], Result]) -> Callable[[], Result]:
    """Start `work` in a thread; returns a function that waits for it and returns its result.

    That function raises what `work` raises. A program that is stopped does not wait for the thread.

    >>> beside(lambda: 2)()
    2
    """
    future: Future[Result] = Future()

    def body() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=body, name="beside", daemon=True).start()
    return future.result
