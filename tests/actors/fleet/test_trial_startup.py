"""Who waits for whom at the start of a sweep, on a clock that the test turns."""

from actors.fleet.trial_startup import PATIENCE, REST, StartupBarrier
from tests.actors.fleet.clock import Clock


def test_nobody_is_waited_for_who_was_not_announced() -> None:
    barrier = StartupBarrier(Clock())
    barrier.arrived("a stranger")
    assert barrier.complete()


def test_newcomers_keep_the_others_waiting_longer_than_one_patience() -> None:
    clock = Clock()
    barrier = StartupBarrier(clock)
    for label in "abc":
        barrier.expect(label)
    for label in "ab":
        clock.now += 0.9 * PATIENCE
        barrier.arrived(label)
        assert not barrier.complete()
    clock.now += 0.9 * PATIENCE
    barrier.arrived("c")
    assert barrier.complete()


def test_who_never_comes_costs_one_patience_a_rest() -> None:
    clock = Clock()
    barrier = StartupBarrier(clock)
    barrier.expect("lost")
    clock.now = PATIENCE
    assert not barrier.complete()
    clock.now += 1
    assert barrier.complete()
    barrier.expect("also lost")
    clock.now += REST - 1
    assert barrier.complete()
    barrier.expect("late")
    clock.now += 2
    barrier.arrived("also lost")
    assert not barrier.complete()
    barrier.arrived("late")
    assert barrier.complete()
