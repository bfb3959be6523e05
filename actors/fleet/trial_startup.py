"""Trials whose processes are still starting, and why the others wait for them.

Tune gives the process of a trial that ended to one that still waits for its own, and ends what was
starting for it. Where trials are shorter than the start of a process, hardly any process gets to
its first trial so: each trial starts one in vain, and Ray's nodes do nothing else. So results of
short trials are held back until the processes there are to be have all come; from then on each
takes its next trial from the last.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 10.0
"""Seconds without a newcomer after which nobody is waited for."""

REST = 60.0
"""Seconds that then pass before anybody is waited for again."""


class StartupBarrier:
    """Who was announced and has not called yet.

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
        """When somebody last came, and until when nobody is waited for."""

    def expect(self, label: str) -> None:
        """A trial was given to Tune."""
        if not self.coming:
            self.heard = self.clock()
        self.coming.add(label)

    def arrived(self, label: str) -> None:
        """It runs."""
        if label in self.coming:
            self.coming.remove(label)
            self.heard = self.clock()

    def complete(self) -> bool:
        """Whether nobody is to be waited for."""
        now = self.clock()
        if self.coming and now - max(self.heard, self.resting) > PATIENCE:
            self.coming.clear()
            self.resting = now + REST
        return not self.coming or now < self.resting
