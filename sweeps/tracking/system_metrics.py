"""System metrics of the driver's machine, sampled in a thread, under MLflow's names."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

EVERY = 10.0
"""Seconds between two samples at first."""

STRETCH = 180
"""Number of samples after which the interval is doubled: a week has some 2,000 samples."""

BATCH = 6
"""Samples handed over at a time."""

KEPT = 600
"""Most waiting samples; beyond it the oldest are dropped."""

Sample = tuple[int, dict[str, float]]
"""Epoch milliseconds, and values by name."""


def sample(folder: Path) -> dict[str, float]:
    """Sample CPU, memory, disk (of `folder`), network since start-up, and this process's memory."""
    memory, disk, net = psutil.virtual_memory(), psutil.disk_usage(str(folder)), network()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
        "system/disk_usage_percentage": disk.percent,
        "system/disk_available_megabytes": disk.free / 1e6,
        "system/driver_memory_megabytes": psutil.Process().memory_info().rss / 1e6,
        **net,
    }


def network() -> dict[str, float]:
    """Megabytes sent and received since start-up; nothing if the system does not count them."""
    counters = psutil.net_io_counters()
    if counters is None:
        return {}
    return {
        "system/network_receive_megabytes": counters.bytes_recv / 1e6,
        "system/network_transmit_megabytes": counters.bytes_sent / 1e6,
    }


class SystemMetrics:
    """Sample the machine in a thread until it is stopped.

    Args:
        folder: whose disk to watch.
        more: called, in that thread, for further values of a sample.
        hand: called, in that thread, with samples; whether it took them.
    """

    def __init__(
        self,
        folder: Path,
        more: Callable[[], dict[str, float]],
        hand: Callable[[list[Sample]], bool],
        every: float = EVERY,
    ) -> None:
        self.folder, self.more, self.hand, self.every = folder, more, hand, every
        self.samples: list[Sample] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="system_metrics", daemon=True)
        self.thread.start()

    def watch(self) -> None:
        """Take samples, at growing intervals."""
        psutil.cpu_percent()  # the first call measures nothing
        taken, every = 0, self.every
        while not self.over.wait(every):
            self.take()
            taken += 1
            if taken % STRETCH == 0:
                every *= 2
            if len(self.samples) % BATCH == 0 and self.hand(self.samples):
                self.samples = []

    def take(self) -> None:
        """Take one sample; the oldest are dropped if too many wait."""
        values = {**sample(self.folder), **self.more()}
        self.samples = [*self.samples[1 - KEPT :], (int(time.time() * 1000), values)]

    def stop(self) -> list[Sample]:
        """Stop; returns the samples not read yet, with a last one."""
        self.over.set()
        self.thread.join()
        with suppress(Exception):  # a folder that is gone, say
            self.take()
        return self.samples
