"""Who used how much of which replica: what trials cost."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable


class Usage:
    """Seconds of replicas, shared out among the calls that each of them runs at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.spent: dict[str, float] = defaultdict(float)
        """Label -> seconds."""
        self.running: dict[int, Counter[str]] = defaultdict(Counter)
        self.since: dict[int, float] = {}

    def start(self, replica: int, label: str) -> None:
        """A call of `label` begins on a replica."""
        self.accrue(replica)
        self.running[replica][label] += 1

    def stop(self, replica: int, label: str) -> None:
        """It has ended."""
        self.accrue(replica)
        self.running[replica][label] -= 1
        self.running[replica] += Counter()  # drops what has come to nothing

    def accrue(self, replica: int) -> None:
        """Share out the time since the replica's calls last changed."""
        now, running = self.clock(), self.running[replica]
        if calls := running.total():
            each = (now - self.since[replica]) / calls
            for label, count in running.items():
                self.spent[label] += each * count
        self.since[replica] = now

    def of(self, label: str) -> float:
        """Seconds that a label has used so far."""
        for replica in list(self.running):
            self.accrue(replica)
        return self.spent[label]
