"""Peak memory by call, of this very process."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from actors.cluster import peak_memory
from actors.cluster.peak_memory import CLEAR, PeakMemory, peak_bytes
from actors.fleet import replica_setup
from actors.fleet.replica_setup import ShardsPeakMemory

CPU = torch.device("cpu")
SIZE = 96 << 20


def hold(size: int = SIZE) -> None:
    """Touch some memory, and let it go."""
    assert bytearray(b"x") * size


def test_a_peak_is_of_its_own_call() -> None:
    assert CLEAR.exists()
    meter = PeakMemory()
    with meter.call(False, CPU):
        hold()
        large = meter.peak(CPU, "ties")
    with meter.call(False, CPU):
        small = meter.peak(CPU, "ties")
    assert large - small > SIZE * 0.9


def test_what_teaching_held_is_told_once_and_of_methods_that_learn() -> None:
    meter = PeakMemory()
    with meter.call(True, CPU):
        hold()
    with meter.call(False, CPU):
        still = meter.peak(CPU, "task_arithmetic")
        taught = meter.peak(CPU, "adamerging")
        again = meter.peak(CPU, "adamerging")
    assert taught - still > SIZE * 0.9
    assert again < taught


def test_calls_side_by_side_share_a_mark() -> None:
    meter = PeakMemory()
    with meter.call(False, CPU):
        hold()
        with meter.call(False, CPU):
            inner = meter.peak(CPU, "ties")
        assert meter.peak(CPU, "ties") >= inner
    with meter.call(False, CPU):
        assert inner - peak_bytes(CPU) > SIZE * 0.9


class Remote:
    """A method of an actor, called at once."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.remote = method

    def options(self, max_task_retries: int) -> "Remote":
        """Once."""
        assert max_task_retries == 0
        return self


class FakeShard:
    """A shard whose process allocates the bytes of a request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.meter, self.held, self.most = PeakMemory(), 0, 0
        self.begin = Remote(
            lambda learns, first: self.own(self.meter.begin, learns, CPU, first=first)
        )
        self.peak = Remote(lambda method: self.own(self.meter.peak, CPU, method))
        self.patch = monkeypatch

    def own(self, call: Callable[..., Any], *args: Any, **given: Any) -> Any:
        """A call in this shard's process."""
        self.patch.setattr(
            peak_memory, "reset_peak", lambda device: setattr(self, "most", self.held)
        )
        self.patch.setattr(peak_memory, "peak_bytes", lambda device: self.most)
        return call(*args, **given)

    def work(self, size: int) -> None:
        """Hold so much for a while."""
        self.most = max(self.most, self.held + size)


def test_the_peak_of_a_model_that_is_cut_is_that_of_its_shards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not that of the process that calls them, which holds none of it."""
    monkeypatch.setattr(replica_setup, "fetched", lambda asked: asked)
    shards = [FakeShard(monkeypatch), FakeShard(monkeypatch)]
    shards[0].held, shards[1].held = 100, 50
    meter = ShardsPeakMemory(shards)
    with meter.call(False, CPU):
        shards[0].work(10)
        shards[1].work(80)
        assert meter.peak(CPU, "ties") == 130
    for _ in range(2):
        with meter.call(True, CPU):
            shards[0].work(500)
    with meter.call(False, CPU):
        shards[1].work(5)
        assert meter.peak(CPU, "task_arithmetic") == 100  # another method's evaluation
    with meter.call(False, CPU):
        assert meter.peak(CPU, "adamerging") == 600  # with what it held while it learned
    with meter.call(False, CPU):
        assert meter.peak(CPU, "adamerging") == 100


def test_calls_side_by_side_put_no_mark_of_shards_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_setup, "fetched", lambda asked: asked)
    shard = FakeShard(monkeypatch)
    meter = ShardsPeakMemory([shard])
    with meter.call(False, CPU):
        shard.work(70)
        with meter.call(True, CPU):
            assert meter.peak(CPU, "ties") == 70
