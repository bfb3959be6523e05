"""Usage of replicas by trials: busy seconds, shared among calls that run at the same time."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable


class Usage:
    """Seconds of each replica, divided among the calls that it runs at the same time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.busy_seconds: dict[str, float] = defaultdict(float)
        """Label -> seconds."""
        self.running: dict[int, Counter[str]] = defaultdict(Counter)
        self.since: dict[int, float] = {}

    def start(self, replica: int, label: str) -> None:
        """Note that a call of `label` begins on a replica."""
        self.accrue(replica)
        self.running[replica][label] += 1

    def stop(self, replica: int, label: str) -> None:
        """Note that a call of `label` ended."""
        self.accrue(replica)
        self.running[replica][label] -= 1
        self.running[replica] += Counter()  # drops what has come to nothing

    def accrue(self, replica: int) -> None:
        """Divide the time since the replica's calls last changed among them."""
        now, running = self.clock(), self.running[replica]
        if calls := running.total():
            each = (now - self.since[replica]) / calls
            for label, count in running.items():
                self.busy_seconds[label] += each * count
        self.since[replica] = now

    def of(self, label: str) -> float:
        """Seconds that a label has used."""
        for replica in list(self.running):
            self.accrue(replica)
        return self.busy_seconds[label]
