"""The terminal: what texts of any origin hold is shown, and never obeyed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from sweeps.console import redact
from sweeps.console.printable import printable


class Screen(Console):
    """A console on which a name with control characters moves no cursor and changes no title."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Rich's segments, with control characters inside of texts written out, and no secrets.

        A secret may be cut into several segments, for its colours: lines are looked at whole.
        """
        line: list[Segment] = []
        for segment in super().render(renderable, options):
            line.append(segment)
            if segment.text.endswith("\n"):
                yield from shown(line)
                line = []
        yield from shown(line)


def shown(line: list[Segment]) -> Iterator[Segment]:
    """The segments of a line; one, where it had a secret in it."""
    told = "".join(text for text, _, control in line if not control)
    if redact.text(told) != told:
        yield Segment(printable(told, "\n"))
        return
    for text, style, control in line:
        yield Segment(text if control else printable(text, "\n"), style, control)
