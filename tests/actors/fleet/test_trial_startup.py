"""Who waits for whom at the start of a sweep, on a clock that the test turns."""

from actors.fleet.trial_startup import PATIENCE, REST, Crew


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_nobody_is_waited_for_who_was_not_announced() -> None:
    crew = Crew(Clock())
    crew.arrived("a stranger")
    assert crew.complete()


def test_newcomers_keep_the_others_waiting_longer_than_one_patience() -> None:
    clock = Clock()
    crew = Crew(clock)
    for label in "abc":
        crew.expect(label)
    for label in "ab":
        clock.now += 0.9 * PATIENCE
        crew.arrived(label)
        assert not crew.complete()
    clock.now += 0.9 * PATIENCE
    crew.arrived("c")
    assert crew.complete()


def test_who_never_comes_costs_one_patience_a_rest() -> None:
    clock = Clock()
    crew = Crew(clock)
    crew.expect("lost")
    clock.now = PATIENCE
    assert not crew.complete()
    clock.now += 1
    assert crew.complete()
    crew.expect("also lost")
    clock.now += REST - 1
    assert crew.complete()
    crew.expect("late")
    clock.now += 2
    crew.arrived("also lost")
    assert not crew.complete()
    crew.arrived("late")
    assert crew.complete()
