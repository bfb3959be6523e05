"""Measured speed of this machine, for estimates of time: `<cache>/rates/<device>.json`.

A rate is seconds a unit of work. Work on models is counted in multiplications, so that the rate of
one model gives an estimate for another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from actors.files.atomic import replacing
from actors.files.checksums import sealed_json, unsealed_json
from fusion.errors import InputError

Kind: TypeAlias = Literal[
    "pool", "start", "prepare", "trial", "evaluate", "learn", "finish", "fine-tune", "pretrain"
]

UNKNOWN: Mapping[Kind, tuple[float, float]] = {
    "pool": (40.0, 600.0),
    "start": (8.0, 90.0),
    "prepare": (5e-5, 5e-3),
    "trial": (0.05, 1.0),
    "evaluate": (1e-11, 1e-9),
    "learn": (3e-11, 6e-9),
    "finish": (0.3, 6.0),
    "fine-tune": (3e-11, 4e-9),
    "pretrain": (3e-4, 2e-2),
}
"""Kind of work -> lowest and highest seconds a unit, where nothing was measured on this machine.

Units: `pool`: an embedded pool; `start`: Ray and all replicas; `prepare`: a row; `trial`: a trial's
own time, beside its work; `evaluate`, `learn`, `fine-tune`: a multiplication of a row's forward
pass; `pretrain`: a row in a step; `finish`: a row of the comparison, from trials to report."""

SAME, OTHER = (0.8, 1.5), (1 / 3, 3.0)
"""Factors of the range round a rate that was measured: on this very model, and on others."""


@dataclass(frozen=True)
class Span:
    """A range of seconds, and whether any of it rests on no measurement."""

    low: float = 0.0
    high: float = 0.0
    guessed: bool = False

    def __add__(self, other: Span) -> Span:
        return Span(self.low + other.low, self.high + other.high, self.guessed or other.guessed)

    def __mul__(self, factor: float) -> Span:
        return Span(self.low * factor, self.high * factor, self.guessed and factor > 0)

    def __str__(self) -> str:
        """`about 3 to 6 min`, and where that comes from if little is known."""
        low, high = rounded(self.low), rounded(self.high)
        text = high if low == high else f"{shortened(low, high)} to {high}"
        return f"about {text}" + (
            " (nothing like it was measured on this machine yet)" if self.guessed else ""
        )


def rounded(seconds: float) -> str:
    """A duration without false precision.

    >>> rounded(3.2), rounded(48.0), rounded(130.0), rounded(4900.0), rounded(9000.0)
    ('3 s', '50 s', '2 min', '80 min', '2.5 h')
    """
    if seconds < 10:
        return f"{max(1, round(seconds))} s"
    if seconds < 55:
        return f"{5 * round(seconds / 5)} s"
    if seconds < 600:
        return f"{max(1, round(seconds / 60))} min"
    if seconds < 5400:
        return f"{5 * round(seconds / 300)} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f}".removesuffix(".0") + " h"
    return f"{round(seconds / 86_400)} d"


def shortened(low: str, high: str) -> str:
    """The first of two durations, without a unit that the second repeats.

    >>> shortened("2 min", "5 min"), shortened("50 s", "5 min")
    ('2', '50 s')
    """
    amount, _, unit = low.partition(" ")
    return amount if high.endswith(f" {unit}") else low


class Rates:
    """Rates of one kind of device of this machine."""

    def __init__(self, root: Path, device: str) -> None:
        """Read the file; a missing or damaged one has no rates.

        Args:
            root: the cache folder.
            device: `cpu` or `cuda`.
        """
        self.file = root / "rates" / f"{device}.json"
        self.known = read(self.file)

    def span(self, kind: Kind, key: str = "") -> Span:
        """Seconds a unit of work.

        Args:
            kind: of work.
            key: the model, the inputs, or whatever else the rate depends on.
        """
        found = self.known.get(kind, {})
        if key in found:
            return Span(SAME[0] * found[key], SAME[1] * found[key])
        low, high = UNKNOWN[kind]
        if found:
            return Span(OTHER[0] * min(found.values()), OTHER[1] * max(found.values()))
        return Span(low, high, guessed=True)

    def keep(self, kind: Kind, seconds: float, units: float, key: str = "") -> None:
        """Store what was measured; the mean with the rate of before, so that one slow run does not
        decide. A cache that cannot be written keeps nothing."""
        if seconds <= 0 or units <= 0:
            return
        rate, kept = seconds / units, read(self.file)
        before = kept.get(kind, {}).get(key)
        rate = rate if before is None else (rate + before) / 2
        kept = {**kept, kind: {**kept.get(kind, {}), key: rate}}
        try:
            with replacing(self.file) as part:
                part.write_text(sealed_json(kept))
        except (InputError, OSError):
            return
        self.known = kept


def read(file: Path) -> dict[str, dict[str, float]]:
    """Rates of a file: kind -> key -> seconds a unit; none if it is missing or damaged."""
    try:
        content = unsealed_json(file.read_bytes())
        return {
            str(kind): {str(key): float(rate) for key, rate in rates.items() if float(rate) > 0}
            for kind, rates in content.items()
        }
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return {}
