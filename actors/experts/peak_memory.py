"""Peak memory of this process while calls run: what a method held, and not what came before it.

The mark that the system keeps is put back whenever a call begins and no other is under way. Calls
that run side by side in one process share a mark: both report the larger one's peak.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

import torch

from fusion.registry import METHODS

CLEAR = Path("/proc/self/clear_refs")
"""Linux: a 5 written here puts the process's peak back to what it holds now. Without it (other
systems, closed sandboxes) peaks are those of the whole life of the process."""


class Water(Protocol):
    """Who knows the peak memory of calls."""

    def call(self, learns: bool, device: torch.device) -> AbstractContextManager[None]:
        """A call is under way; `learns`: it is a step by which a method learns."""
        ...

    def told(self, device: torch.device, method: str) -> int:
        """Bytes, now; of a method that learns, with what teaching it held."""
        ...


class HighWater:
    """The peak since the calls under way began, and the most that teaching calls have held."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = 0
        self.taught = 0
        """Bytes; of teaching calls since an evaluation told of them."""
        self.teaching = False
        """Whether a teaching call has begun since the mark was put back."""

    @contextmanager
    def call(self, learns: bool, device: torch.device) -> Iterator[None]:
        """See `Water.call`."""
        with self.lock:
            self.begin(learns, device, first=not self.running)
            self.running += 1
        try:
            yield
        finally:
            with self.lock:
                self.running -= 1

    def begin(self, learns: bool, device: torch.device, *, first: bool) -> None:
        """A call begins; `first`: no other is under way, so the mark is put back."""
        if first:
            self.keep(device)
            put_back(device)
        self.teaching |= learns

    def keep(self, device: torch.device) -> None:
        """Keep what teaching held since the mark was put back."""
        if self.teaching:
            self.taught, self.teaching = max(self.taught, peak_bytes(device)), False

    def told(self, device: torch.device, method: str) -> int:
        """See `Water.told`."""
        with self.lock:
            self.keep(device)
            row = METHODS.get(method)
            learns = row is not None and row.learns
            taught, self.taught = (self.taught, 0) if learns else (0, self.taught)
        return max(taught, peak_bytes(device))


WATER = HighWater()
"""Of this process."""


def put_back(device: torch.device) -> None:
    """Let the peak be what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            CLEAR.write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process since it was put back: allocated on a GPU, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
