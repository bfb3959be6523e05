"""Format numbers, durations, sizes and parameters for the terminal and the report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

MISSING = "—"

LEVEL = 0.05
"""Family-wise error rate below which a difference is called significant."""


def percent(value: float | None, digits: int = 1) -> str:
    """An accuracy in percent; a dash for None.

    >>> percent(0.7126), percent(None)
    ('71.3', '—')
    """
    return MISSING if value is None else f"{100 * value:.{digits}f}"


def points(value: float) -> str:
    """A difference of accuracies, in percentage points.

    >>> points(0.0123), points(-0.004), points(0.0)
    ('+1.2', '−0.4', '0.0')
    """
    text = f"{100 * abs(value):.1f}"
    sign = "" if text == "0.0" else "+" if value > 0 else "−"
    return sign + text


def probability(p: float) -> str:
    """A p-value, never rounded to 0, nor up to the level of significance.

    >>> probability(0.0312), probability(1e-9), probability(0.5), probability(1.0)
    ('0.031', '< 0.001', '0.50', '1')
    >>> probability(0.04998), probability(0.05)
    ('0.0499', '0.050')
    """
    if p < 0.001:
        return "< 0.001"
    if p < LEVEL <= round(p, 3):
        return f"{math.floor(p * 1e4) / 1e4:.4f}"
    return "1" if p > 0.995 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def equation(p: float) -> str:
    """`p = 0.031` or `p < 0.001`."""
    return f"p {probability(p)}" if p < 0.001 else f"p = {probability(p)}"


def seconds(value: float | None) -> str:
    """A duration, given in seconds.

    >>> seconds(0.042), seconds(7.31), seconds(75), seconds(4000), seconds(200_000)
    ('0.04 s', '7.3 s', '1 min 15 s', '1 h 06 min', '2 d 7 h')
    """
    if value is None:
        return MISSING
    if value < 1:
        return f"{value:.2f} s"
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def brief(value: float | None) -> str:
    """A time of a single input, given in seconds, with a unit that fits.

    >>> brief(0.00234), brief(0.0000415), brief(2.5), brief(None)
    ('2.3 ms', '42 µs', '2.5 s', '—')
    """
    if value is None:
        return MISSING
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}" if value * factor >= 100 else (
                f"{value * factor:.1f} {unit}"
            )  # fmt: skip
    return f"{1e6 * value:.0f} µs"


def amount(value: float | None) -> str:
    """A number of models or passes: at most one decimal.

    >>> amount(8), amount(2.25), amount(None)
    ('8', '2.2', '—')
    """
    return MISSING if value is None else f"{value:.1f}".removesuffix(".0")


def big(value: float | None) -> str:
    """A number of parameters with a decimal unit.

    >>> big(0), big(1_234), big(87_456_000), big(None)
    ('0', '1.2 k', '87.5 M', '—')
    """
    if value is None:
        return MISSING
    for unit in ("", " k", " M", " G"):
        if value < 1000:
            return f"{value:.0f}" if not unit else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.1f} T"


def size(value: float | None) -> str:
    """A number of bytes with a decimal unit.

    >>> size(512), size(3_400_000), size(1_760_000_000)
    ('512 B', '3.4 MB', '1.8 GB')
    """
    if value is None:
        return MISSING
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def moment(text: str) -> str:
    """An ISO 8601 time to the minute; other text is returned unchanged.

    >>> moment("2026-03-01T09:40:12.5+00:00"), moment("")
    ('2026-03-01 09:40 UTC', '')
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{time:%Y-%m-%d %H:%M} {time.tzname() or ''}".strip()


def value_text(value: Any, digits: int = 6) -> str:
    """A parameter's value as YAML would write it in a sweep file.

    >>> value_text(0.30000000000000004), value_text(1e-05), value_text([1, 2.0]), value_text("mean")
    ('0.3', '1e-05', '[1, 2.0]', 'mean')
    """
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return repr(float(f"{value:.{digits}g}"))
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(value_text(inner, digits) for inner in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {value_text(v, digits)}" for k, v in value.items()) + "}"
    return str(value)


def short(text: str, limit: int = 32) -> str:
    """Cut `text` at its end to at most `limit` characters.

    >>> short("[0.1, 0.2, 0.3, 0.4]", 12)
    '[0.1, 0.2,…'
    """
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def middle(text: str, limit: int) -> str:
    """Cut `text` in the middle: similar names often differ only at their ends.

    >>> middle("dataset_of_letters_07", 12)
    'datase…rs_07'
    """
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return f"{text[: limit - 1 - tail]}…{text[-tail:]}"


def params_words(params: Mapping[str, Any], limit: int = 32, digits: int = 4) -> list[str]:
    """Each parameter as `name=value`, rounded and cut for a table.

    >>> params_words({"density": 0.2, "scale": 0.900615})
    ['density=0.2', 'scale=0.9006']
    """
    return [f"{n}={short(value_text(value, digits), limit)}" for n, value in params.items()]


def params_text(params: Mapping[str, Any]) -> str:
    """All parameters in one line: `density=0.2 scale=0.9`; a dash for none."""
    return " ".join(params_words(params)) or MISSING


def count(n: int, noun: str) -> str:
    """A number with its noun, in the plural where needed.

    >>> count(1, "trial"), count(4000, "trial")
    ('1 trial', '4,000 trials')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def chosen(
    select_on: str,
    report_on: str,
    metric: str,
    precision: str = "fp32",
    report_precision: str = "fp32",
    delta_dtype: str = "float32",
) -> str:
    """Which split selected, by which metric, and which split was reported.

    Precisions of the products of activations are named where one of the two is not fp32, and the
    dtype of task vectors where it is not float32.

    >>> chosen("val", "test", "acc/mean", "bf16", "fp32")
    'selected on val by acc/mean in bf16, reported on test in fp32'
    >>> chosen("val", "test", "acc/mean", delta_dtype="bfloat16")
    'selected on val by acc/mean, reported on test, task vectors in bfloat16'
    """
    exact = {precision, report_precision} == {"fp32"}
    first, second = ("", "") if exact else (f" in {precision}", f" in {report_precision}")
    said = f"selected on {select_on} by {metric}{first}, reported on {report_on}{second}"
    return said if delta_dtype == "float32" else f"{said}, task vectors in {delta_dtype}"


def selection(select_on: str, report_on: str, metric: str, *numbers: str) -> str:
    """As `chosen`, with a warning where both are one split."""
    said = chosen(select_on, report_on, metric, *numbers)
    if select_on != report_on:
        return said
    return f"{said} — selected on the report split: optimistic"
