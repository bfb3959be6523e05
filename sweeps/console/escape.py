"""Terminal console that escapes control characters and redacts secrets in all text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from sweeps.console import redact
from sweeps.console.printable import printable


class Screen(Console):
    """Rich console on which control characters in names cannot move the cursor or set the title."""

    def on_broken_pipe(self) -> None:
        """Raise the `BrokenPipeError` that Rich has caught: it would end with status 1, which says
        that trials failed."""
        raise

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Rich's segments with escaped control characters and without secrets.

        Colours may cut a secret into several segments, so complete lines are searched.
        """
        line: list[Segment] = []
        for segment in super().render(renderable, options):
            line.append(segment)
            if segment.text.endswith("\n"):
                yield from shown(line)
                line = []
        yield from shown(line)


def shown(line: list[Segment]) -> Iterator[Segment]:
    """Segments of a line, escaped; a line with a secret becomes one redacted segment."""
    told = "".join(text for text, _, control in line if not control)
    if redact.text(told) != told:
        yield Segment(printable(told, "\n"))
        return
    for text, style, control in line:
        yield Segment(text if control else printable(text, "\n"), style, control)
