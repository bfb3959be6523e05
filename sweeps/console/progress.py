"""Progress of a sweep: one progress bar a phase on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from sweeps.console import number_format

EVERY = 10.0
"""Seconds between two lines of a phase when the output is no terminal."""


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


class Progress:
    """Progress display of named phases; use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Bars(
            TextColumn("{task.description:<14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.ids: dict[str, TaskID] = {}
        self.phases: dict[str, Phase] = {}
        """Phases shown as lines: all of them without a terminal, none on one."""

    def start(self, phase: str, total: int) -> None:
        """Start a phase of `total` steps."""
        if not self.console.is_terminal:
            self.phases[phase] = Phase(phase, total)
            if total:
                self.console.print(f"{phase}: {total}")
        self.ids[phase] = self.bars.add_task(phase, total=total, note="")

    def advance(self, phase: str, steps: int = 1, note: str = "") -> None:
        """Advance a phase by some steps; `note` is shown beside its bar."""
        if phase in self.ids:
            self.bars.update(self.ids[phase], advance=steps, note=note)
            if shown := self.phases.get(phase):
                self.print_line(shown, shown.done + steps, note)

    def set(self, phase: str, done: int, total: int) -> None:
        """Set steps done and total of a phase; starts the phase if it is new."""
        if phase not in self.ids:
            self.start(phase, total)
        self.bars.update(self.ids[phase], completed=done, total=total)
        if shown := self.phases.get(phase):
            shown.total = total
            self.print_line(shown, done, shown.note)

    def print_line(self, phase: Phase, done: int, note: str) -> None:
        """Print a phase's line if `EVERY` seconds have passed or the phase has ended."""
        phase.done, phase.note = done, note or phase.note
        ended = done >= phase.total > phase.printed
        if ended or (time.monotonic() >= phase.due and done > phase.printed):
            self.console.print(phase.line(), highlight=False, markup=False, soft_wrap=True)
            phase.printed, phase.due = done, time.monotonic() + EVERY

    def say(self, line: str) -> None:
        """Print one line above the bars."""
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
        self.bars.stop()
        for phase in self.phases.values():
            if phase.printed < phase.done:  # the phase stopped before its total
                self.console.print(phase.line(), highlight=False, markup=False, soft_wrap=True)
