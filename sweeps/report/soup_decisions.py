"""Tables of soup selection: the decision on each ingredient, and the confidence of each gain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from actors.experts.metrics import metric_of
from sweeps.console.number_format import equation, percent, points
from sweeps.results.ledger import Entry

WORDS = {
    "start": "begins",
    "accepted": "taken",
    "rejected": "left",
    "failed": "failed",
    "duplicate": "a copy",
    "vanished": "gone",
}


def tables(
    entries: Iterable[Entry], selected: Mapping[str, str | None], metric: str
) -> list[dict[str, Any]]:
    """Decisions of the selected trial of each method that selects; soups before single ingredients.

    Args:
        entries: the ledger, in the order of the report.
        selected: method -> key of its selected trial.
        metric: the sweep's, which scores are of where a method has none of its own.
    """
    found = [
        {
            "method": entry.method,
            "lines": [
                line(choice, entry.params.get("metric") or metric) for choice in entry.choices
            ],
            "summary": summary(entry.choices),
        }
        for entry in entries
        if entry.choices and selected.get(entry.method) == entry.trial_key
    ]
    return sorted(found, key=lambda each: not any(line["gain"] for line in each["lines"]))


def line(choice: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """One decision as text."""
    gain = ""
    if choice.get("gain") is not None:
        low, high = (points(choice[name]) for name in ("low", "high"))
        gain = f"{points(choice['gain'])} pp ({low} to {high}), {equation(choice['p'])}"
    return {
        "what": choice.get("ingredient") or choice["candidate"],
        "soup": choice["candidate"],
        "outcome": WORDS[choice["outcome"]],
        "taken": choice["outcome"] == "accepted",
        "score": score(choice.get("score"), metric),
        "best": score(choice.get("best"), metric),
        "gain": gain or choice.get("note", ""),
    }


def summary(choices: Iterable[Mapping[str, Any]]) -> str:
    """Number of accepted ingredients whose gain is significant.

    >>> summary([{"outcome": "accepted", "gain": 0.1, "low": 0.01}, {"outcome": "rejected"}])
    '1 of 2 taken; gains whose 95 % interval lies above 0: 1.'
    """
    choices = list(choices)
    taken = [choice for choice in choices if choice["outcome"] == "accepted"]
    gains = [choice for choice in taken if choice.get("gain") is not None]
    text = f"{len(taken)} of {len(choices)} taken"
    if not gains:
        return f"{text}."
    sure = sum(choice["low"] > 0 for choice in gains)
    return f"{text}; gains whose 95 % interval lies above 0: {sure or 'none'}."


def score(value: float | None, metric: str) -> str:
    """An accuracy in percent, or a loss in nats; empty for None."""
    if value is None:
        return ""
    return percent(value, 2) if metric_of(metric).ranks else f"{value:.4f}"
