"""Who pays for how many seconds of which replica."""

import pytest

from actors.fleet.usage import Usage
from tests.actors.fleet.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_one_call_pays_for_its_time(clock):
    usage = Usage(clock)
    usage.start(0, "a")
    clock.now = 3.0
    usage.stop(0, "a")
    clock.now = 10.0
    assert usage.of("a") == 3.0
    assert usage.of("unknown") == 0.0


def test_calls_side_by_side_on_one_replica_share_it(clock):
    usage = Usage(clock)
    usage.start(0, "a")
    clock.now = 2.0
    usage.start(0, "b")
    clock.now = 6.0  # 4 s together: 2 each
    usage.stop(0, "a")
    clock.now = 7.0
    usage.stop(0, "b")
    assert (usage.of("a"), usage.of("b")) == (4.0, 3.0)


def test_replicas_are_counted_apart_and_running_calls_so_far(clock):
    usage = Usage(clock)
    usage.start(0, "a")
    usage.start(1, "a")
    clock.now = 5.0
    assert usage.of("a") == 10.0
    usage.stop(0, "a")
    clock.now = 6.0
    assert usage.of("a") == 11.0


def test_two_calls_of_one_label_pay_for_the_replica_once(clock):
    usage = Usage(clock)
    usage.start(0, "a")
    usage.start(0, "a")
    clock.now = 4.0
    usage.stop(0, "a")
    clock.now = 6.0
    usage.stop(0, "a")
    clock.now = 9.0
    assert usage.of("a") == 6.0
