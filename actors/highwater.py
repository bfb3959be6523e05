"""Peak memory of this process while calls run: what a method held, and not what came before it.

The mark that the system keeps is put back whenever a call begins and no other is under way. Calls
that run side by side in one process share a mark: the larger one's peak is told of both.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from fusion.registry import METHODS, Learned

CLEAR = Path("/proc/self/clear_refs")
"""Linux: a 5 written here puts the process's peak back to what it holds now. Without it (other
systems, closed sandboxes) peaks are those of the whole life of the process."""

TEACHING = ("gradients", "train", "fit")
"""Calls by which a method learns; what they held is told with the evaluation that follows."""


class HighWater:
    """The peak since the calls under way began, and the most that teaching calls have held."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = 0
        self.taught = 0
        """Bytes; of teaching calls since an evaluation told of them."""

    @contextmanager
    def call(self, name: str, device: torch.device) -> Iterator[None]:
        """A call of that name is under way."""
        with self.lock:
            if not self.running:
                put_back(device)
            self.running += 1
        try:
            yield
        finally:
            with self.lock:
                self.running -= 1
                if name in TEACHING:
                    self.taught = max(self.taught, peak_bytes(device))

    def told(self, device: torch.device, method: str) -> int:
        """Bytes, now; of a method that learns, with what teaching it held."""
        with self.lock:
            learns = isinstance(METHODS.get(method), Learned)
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
