"""Lines of progress where there is no terminal."""

import io
import time

import pytest
from rich.console import Console

from sweeps.console.progress import EVERY, Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def said(progress: Progress) -> list[str]:
    return progress.console.file.getvalue().splitlines()


@pytest.fixture
def progress(clock) -> Progress:
    made = Progress(Console(file=io.StringIO(), width=60))
    made.bars.start = made.bars.stop = lambda: None  # the bars have clocks of their own
    return made


def test_a_line_at_the_start_one_every_ten_seconds_and_one_at_the_end(progress, clock):
    with progress:
        progress.start("trials", 40)
        for number in range(40):
            clock[0] += 2
            progress.advance("trials", note=f"ties: acc/mean 0.{number:02d}00")
    assert said(progress) == [
        "trials: 40",
        "trials: 5/40 (ties: acc/mean 0.0400), 10.0 s",
        "trials: 10/40 (ties: acc/mean 0.0900), 20.0 s",
        "trials: 15/40 (ties: acc/mean 0.1400), 30.0 s",
        "trials: 20/40 (ties: acc/mean 0.1900), 40.0 s",
        "trials: 25/40 (ties: acc/mean 0.2400), 50.0 s",
        "trials: 30/40 (ties: acc/mean 0.2900), 1 min 0 s",
        "trials: 35/40 (ties: acc/mean 0.3400), 1 min 10 s",
        "trials: 40/40 (ties: acc/mean 0.3900), 1 min 20 s",
    ]


def test_what_is_being_done_is_a_line_and_is_timed(progress, clock):
    with progress:
        with progress.doing("starting Ray"):
            clock[0] += 3
        with progress.doing("starting Ray"), progress.timed("more"):
            clock[0] += 4
        progress.until_the_end("stopping Ray")
    assert said(progress) == ["starting Ray …", "starting Ray …", "stopping Ray …"]
    assert progress.took == {"starting Ray": 7, "more": 4}


class Ended:
    """An event that is set after some waits, during which the clock goes on."""

    def __init__(self, clock: list[float], waits: int, during=lambda number: None) -> None:
        self.clock, self.waits, self.during = clock, waits, during

    def wait(self, seconds: float) -> bool:
        self.clock[0] += seconds
        self.waits -= 1
        self.during(self.waits)
        return self.waits < 0


def test_what_takes_long_says_so_unless_other_lines_are_printed(progress, clock):
    progress.wait("reading", Ended(clock, 2))
    assert said(progress) == ["reading: 10.0 s so far", "reading: 20.0 s so far"]
    progress.wait("reading", Ended(clock, 3, lambda number: progress.say(f"{number}")))
    assert said(progress)[2:] == ["2", "1", "0", "-1"]


def test_a_block_without_a_terminal_is_waited_for(monkeypatch):
    monkeypatch.setattr("sweeps.console.progress.EVERY", 0.01)
    progress = Progress(Console(file=io.StringIO(), width=60))
    with progress, progress.doing("reading"):
        for _ in range(1000):
            if len(said(progress)) > 1:
                break
            time.sleep(0.01)
    assert said(progress)[1].startswith("reading: ")
    assert said(progress)[1].endswith(" so far")


def test_on_a_terminal_a_bar_moves_while_something_is_done_and_none_stands_over_nothing():
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    progress = Progress(console)
    with progress:
        with progress.doing("starting Ray"):
            (row,) = progress.bars.tasks
            assert (row.description, row.total) == ("starting Ray", None)
            progress.bars.refresh()
        assert not progress.bars.tasks
        progress.start("probes", 0)
        progress.set("images", 0, 0)
        progress.advance("probes")
        assert not progress.bars.tasks
        progress.set("images", 1, 2, "half")
        assert [row.description for row in progress.bars.tasks] == ["images"]
        progress.until_the_end("stopping Ray")
    assert "starting Ray" in console.file.getvalue()
    assert "0/0" not in console.file.getvalue()
    assert "0/?" not in console.file.getvalue()
    assert [row.description for row in progress.bars.tasks] == ["images"]


def test_a_phase_that_ends_short_is_told_at_the_end(progress, clock):
    with progress:
        progress.start("trials", 4)
        progress.advance("trials", 3)
    assert said(progress) == ["trials: 4", "trials: 3/4, 0.00 s"]


def test_phases_that_are_set_and_empty_ones(progress, clock):
    with progress:
        progress.start("nothing", 0)
        progress.set("images", 0, 10)
        clock[0] += EVERY
        progress.set("images", 6, 12)
        progress.set("images", 6, 12)
        progress.set("images", 12, 12)
        progress.set("images", 12, 12)
    assert said(progress) == ["images: 10", "images: 6/12, 10.0 s", "images: 12/12, 10.0 s"]
