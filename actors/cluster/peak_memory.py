"""Peak memory of this process during calls, without the peaks of earlier calls.

The system's peak counter is reset when a call begins and no other is running. Calls that run at the
same time in one process share the counter: both report the larger peak.
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
"""Linux: writing a 5 here resets the process's peak to its current memory. Without this file (other
systems, closed sandboxes), peaks are those of the process's whole lifetime."""


class MemoryMeter(Protocol):
    """Measures the peak memory of calls."""

    def call(self, learns: bool, device: torch.device) -> AbstractContextManager[None]:
        """Context of a running call; `learns`: whether it is a training step of a method."""
        ...

    def peak(self, device: torch.device, method: str) -> int:
        """Peak in bytes; for a method that learns, its training steps included."""
        ...


class PeakMemory:
    """Peak memory of this process since running calls began, and that of training calls."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = 0
        self.learning_peak = 0
        """Peak in bytes of training calls since an evaluation last reported it."""
        self.learning = False
        """Whether a training call has begun since the last reset."""

    @contextmanager
    def call(self, learns: bool, device: torch.device) -> Iterator[None]:
        """See `MemoryMeter.call`."""
        with self.lock:
            self.begin(learns, device, first=not self.running)
            self.running += 1
        try:
            yield
        finally:
            with self.lock:
                self.running -= 1

    def begin(self, learns: bool, device: torch.device, *, first: bool) -> None:
        """Note that a call begins; `first`: no other is running, so the counter is reset."""
        if first:
            self.keep(device)
            reset_peak(device)
        self.learning |= learns

    def keep(self, device: torch.device) -> None:
        """Keep the peak of training calls since the last reset."""
        if self.learning:
            self.learning_peak, self.learning = max(self.learning_peak, peak_bytes(device)), False

    def peak(self, device: torch.device, method: str) -> int:
        """See `MemoryMeter.peak`."""
        with self.lock:
            self.keep(device)
            row = METHODS.get(method)
            learns = row is not None and row.learns
            trained = self.learning_peak if learns else 0
            self.learning_peak -= trained
        return max(trained, peak_bytes(device))


PEAK_MEMORY = PeakMemory()
"""The meter of this process."""


def reset_peak(device: torch.device) -> None:
    """Reset the peak to the memory held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            CLEAR.write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process since the last reset: allocated on a GPU, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
