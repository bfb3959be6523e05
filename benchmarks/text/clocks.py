"""Wall and CPU seconds of works that take turns, and rows of their ratios.

CPU seconds are those of all threads of this process. On a machine that others use too they change
little, while wall seconds depend on who else computes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.environment import Row


@dataclass(frozen=True)
class Spent:
    """Seconds of each repetition of one work."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        each = (f"{statistics.median(s):.3g} (min {min(s):.3g})" for s in (self.cpu, self.wall))
        return "CPU {} s, wall {} s".format(*each)


def in_turns(
    works: Mapping[str, Callable[[], object]], repeats: int, *, warm: bool = True
) -> dict[str, Spent]:
    """Every work `repeats` times, in turns; the order is reversed after each round.

    `warm`: whether each is first run once without a clock.
    """
    if warm:
        for work in works.values():
            work()
    spent = {name: Spent() for name in works}
    for repeat in range(repeats):
        order = list(works) if repeat % 2 == 0 else list(works)[::-1]
        for name in order:
            cpu, wall = time.process_time(), time.perf_counter()
            works[name]()
            spent[name].cpu.append(time.process_time() - cpu)
            spent[name].wall.append(time.perf_counter() - wall)
    return spent


def ratio(name: str, slow: Spent, fast: Spent, aim: str = "") -> Row:
    """The ratio of two works' median CPU seconds; that of their medians on the wall beside it."""
    cpu, wall, least = (
        statistics.median(slow.cpu) / statistics.median(fast.cpu),
        statistics.median(slow.wall) / statistics.median(fast.wall),
        min(slow.cpu) / min(fast.cpu),
    )
    how = f"minima {least:.3g}, wall {wall:.3g}; {slow} ÷ {fast}"
    return Row(name, cpu, aim, how)
