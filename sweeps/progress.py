"""What a sweep shows while it runs: one bar a phase, on a terminal; lines, elsewhere."""

from __future__ import annotations

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


class Progress:
    """Named phases that advance; a context manager."""

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

    def start(self, phase: str, total: int) -> None:
        """Begin a phase of `total` steps."""
        if not self.console.is_terminal and total:
            self.console.print(f"{phase}: {total}")
        self.ids[phase] = self.bars.add_task(phase, total=total, note="")

    def advance(self, phase: str, steps: int = 1, note: str = "") -> None:
        """Go on by some steps; `note` is shown beside the bar."""
        if phase in self.ids:
            self.bars.update(self.ids[phase], advance=steps, note=note)

    def set(self, phase: str, done: int, total: int) -> None:
        """Say where a phase stands; begins it when it is new."""
        if phase not in self.ids:
            self.start(phase, total)
        self.bars.update(self.ids[phase], completed=done, total=total)

    def say(self, line: str) -> None:
        """One line above the bars."""
        self.console.print(line)

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
