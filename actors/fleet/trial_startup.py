"""Trial start-up barrier: holds back results of short trials until all trial processes have
started.

Tune gives the process of a trial that ended to one that still waits for its own, and ends the
process that was starting for it. Where trials are shorter than the start of a process, hardly any
process reaches its first trial: each trial starts one for nothing, and Ray's nodes do nothing else.
So results of short trials are held back until all processes have started. From then on each process
takes its next trial from the last one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 10.0
"""Seconds without a new trial after which nobody is waited for."""

REST = 60.0
"""Seconds that then pass before anybody is waited for again."""


class StartupBarrier:
    """Trials that were given to Tune and have not called yet.

    >>> now = [0.0]
    >>> barrier = StartupBarrier(lambda: now[0])
    >>> barrier.expect("a"), barrier.expect("b"), barrier.arrived("a"), barrier.complete()
    (None, None, None, False)
    >>> barrier.arrived("b"), barrier.complete()
    (None, True)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.coming: set[str] = set()
        self.heard = self.resting = clock()
        """Time of the last first call, and the time until which nobody is waited for."""

    def expect(self, label: str) -> None:
        """Note that a trial was given to Tune."""
        if not self.coming:
            self.heard = self.clock()
        self.coming.add(label)

    def arrived(self, label: str) -> None:
        """Note the first call of a trial."""
        if label in self.coming:
            self.coming.remove(label)
            self.heard = self.clock()

    def complete(self) -> bool:
        """Whether no trial has to be waited for."""
        now = self.clock()
        if self.coming and now - max(self.heard, self.resting) > PATIENCE:
            self.coming.clear()
            self.resting = now + REST
        return not self.coming or now < self.resting
