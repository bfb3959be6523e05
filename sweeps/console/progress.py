"""Progress of a sweep: one progress bar a phase on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeAlias

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from sweeps.console import number_format

Doing: TypeAlias = Callable[[str], AbstractContextManager[None]]
"""Shows what is being done while a block runs: `Progress.doing`."""

EVERY = 10.0
"""Seconds between two lines of a phase when the output is no terminal."""


def silently(_: str) -> AbstractContextManager[None]:
    """Show nothing: a `Doing` for callers without a display."""
    return nullcontext()


@dataclass
class Phase:
    """State of one phase for the plain lines."""

    name: str
    total: int
    done: int = 0
    note: str = ""
    began: float = field(default_factory=lambda: time.monotonic())
    due: float = field(default_factory=lambda: time.monotonic() + EVERY)
    """Monotonic time from which the next line may be printed."""
    printed: int = 0
    """Steps done at the last printed line."""

    def line(self) -> str:
        """`trials: 12/40 (task_arithmetic: acc/mean 0.6540), 3 min 0 s`."""
        note = f" ({self.note})" if self.note else ""
        took = number_format.seconds(time.monotonic() - self.began)
        return f"{self.name}: {self.done}/{self.total}{note}, {took}"


class Counts(MofNCompleteColumn):
    """`12/40`; empty for what has no steps."""

    def render(self, task: Task) -> Text:
        """Text of the column."""
        return Text() if task.total is None else super().render(task)


class Progress:
    """Progress display of named phases; use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.took: dict[str, float] = {}
        """What `doing` or `timed` was given -> its seconds."""
        self.totals: dict[str, int] = {}
        """Phase -> its steps."""
        self.last: list[TaskID] = []
        """Rows of what `until_the_end` shows."""
        self.bars = Bars(
            TextColumn("{task.description:<14}"),
            BarColumn(),
            Counts(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.ids: dict[str, TaskID] = {}
        self.phases: dict[str, Phase] = {}
        """Phases shown as lines: all of them without a terminal, none on one."""
        self.spoke = time.monotonic()
        """When the last line was printed."""

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Show what is being done while the block runs, which has no steps to count.

        On a terminal a moving bar, which goes with the block. Elsewhere a line, and another with
        the time so far after every `EVERY` seconds in which nothing is printed.
        """
        row, ended = self.begin(what), threading.Event()
        waiting = threading.Thread(target=self.wait, args=(what, ended), daemon=True)
        try:
            if not self.console.is_terminal:
                waiting.start()
            with self.timed(what):
                yield
        finally:
            ended.set()
            self.bars.remove_task(row)

    def wait(self, what: str, ended: threading.Event) -> None:
        """Print the time so far whenever nothing was printed for `EVERY` seconds."""
        began = time.monotonic()
        while not ended.wait(max(self.spoke + EVERY - time.monotonic(), 0.01)):
            if time.monotonic() >= self.spoke + EVERY:
                self.say(f"{what}: {number_format.seconds(time.monotonic() - began)} so far")

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the block's time to `took`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.took[what] = self.took.get(what, 0.0) + time.monotonic() - began

    def until_the_end(self, what: str) -> None:
        """Show what is being done until the display ends."""
        self.last.append(self.begin(what))

    def begin(self, what: str) -> TaskID:
        """Show what is being done; returns its row."""
        if not self.console.is_terminal:
            self.say(f"{what} …")
        return self.bars.add_task(what, total=None, note="")

    def start(self, phase: str, total: int) -> None:
        """Start a phase of `total` steps; without steps nothing is shown."""
        self.totals[phase] = total
        if not total:
            return
        if not self.console.is_terminal:
            self.phases[phase] = Phase(phase, total)
            self.console.print(f"{phase}: {total}")
        self.ids[phase] = self.bars.add_task(phase, total=total, note="")

    def advance(self, phase: str, steps: int = 1, note: str = "") -> None:
        """Advance a phase by some steps; `note` is shown beside its bar."""
        if phase in self.ids:
            self.bars.update(self.ids[phase], advance=steps, note=note)
            if shown := self.phases.get(phase):
                self.print_line(shown, shown.done + steps, note)

    def set(self, phase: str, done: int, total: int, note: str = "") -> None:
        """Set steps done and total of a phase; starts the phase if it is new."""
        if phase not in self.ids:
            self.start(phase, total)
        if phase not in self.ids:  # without steps
            return
        self.totals[phase] = total
        self.bars.update(self.ids[phase], completed=done, total=total, note=note)
        if shown := self.phases.get(phase):
            shown.total = total
            self.print_line(shown, done, note or shown.note)

    def print_line(self, phase: Phase, done: int, note: str) -> None:
        """Print a phase's line if `EVERY` seconds have passed or the phase has ended."""
        phase.done, phase.note = done, note or phase.note
        ended = done >= phase.total > phase.printed
        if ended or (time.monotonic() >= phase.due and done > phase.printed):
            self.spoke = time.monotonic()
            self.console.print(phase.line(), highlight=False, markup=False, soft_wrap=True)
            phase.printed, phase.due = done, time.monotonic() + EVERY

    def say(self, line: str) -> None:
        """Print one line above the bars."""
        self.spoke = time.monotonic()
        self.console.print(line, soft_wrap=True, markup=False)

    def __enter__(self) -> Progress:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for row in self.last:
            self.bars.remove_task(row)
        self.bars.stop()
        for phase in self.phases.values():
            if phase.printed < phase.done:  # the phase stopped before its total
                self.console.print(phase.line(), highlight=False, markup=False, soft_wrap=True)
