"""Each method's best trial on the select split, and the cost of its trials."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal

from actors.data.task import Kind
from actors.experts.metrics import sign_of
from fusion.methods.classifiers.fit_heads import FAILED
from fusion.registry import METHODS
from sweeps.results.comparison import Row, finite
from sweeps.results.ledger import Entry
from sweeps.spec.reference_methods import completed, references
from sweeps.spec.sweep import SweepSpec


def winners(
    entries: Iterable[Entry], metric: str = "acc/mean", unit: Kind | Literal["row"] = "row"
) -> list[Row]:
    """One row for each method: its best trial; a method with failed trials only has no metrics.

    Ties go to the lower trial key, for any order in which trials finished. `unit` is what the
    data's rows are, for notes.
    """
    sign = -sign_of(metric)
    methods: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: (entry.method, entry.trial_key)):
        methods.setdefault(entry.method, []).append(entry)
    rows = []
    for method, tried in methods.items():
        row = Row(method, tried[0].kind, trials=len(tried), cost=cost(tried))
        valid = [
            entry
            for entry in tried
            if entry.status == "done" and math.isfinite(entry.metrics.get(metric, math.nan))
        ]
        if valid:
            best = min(valid, key=lambda entry: sign * entry.metrics[metric])
            known = METHODS.get(method)
            learning = {"learn_s": best.trial_s} if known is not None and known.learns else {}
            row = replace(
                row,
                params=finite(best.params),
                val=finite(best.metrics),
                trial_key=best.trial_key,
                notes=(
                    *remarks(best.choices),
                    *broken(best.metrics, unit),
                    *raced(tried, unit),
                ),
                cost={**row.cost, **learning},
            )
        elif any(entry.status == "done" for entry in tried):
            row = replace(row, notes=(f"no trial has a finite {metric}",))
        rows.append(row)
    return rows


def broken(metrics: Mapping[str, float], unit: str) -> tuple[str, ...]:
    """Notes about logits that are NaN or infinite.

    >>> broken({"nll/mean": float("nan")}, "image")
    ('logits on select are NaN or infinite on some images',)
    >>> broken({"chosen/digits/failed": 2.0}, "image")
    ('digits: 2 experts left out, their logits NaN or infinite',)
    """
    found = []
    if not math.isfinite(metrics.get("nll/mean", 0.0)):
        found.append(f"logits on select are NaN or infinite on some {unit}s")
    for name, value in metrics.items():
        kind, _, rest = name.partition("/")
        task, _, what = rest.rpartition("/")
        if kind == "chosen" and what == FAILED and value:
            many = "1 expert" if value == 1 else f"{value:.0f} experts"
            found.append(f"{task}: {many} left out, their logits NaN or infinite")
    return tuple(found)


def raced(entries: Sequence[Entry], unit: str) -> tuple[str, ...]:
    """Note about trials that were stopped in a race.

    >>> from sweeps.results.ledger import Stopped
    >>> first = Entry("1", "ties", "static", {}, "done", "select", n={"a": 100})
    >>> last = Entry("2", "ties", "static", {}, "stopped", "select",
    ...              stopped=Stopped("acc/mean", 0.9, 0.8, 40, 100))
    >>> raced([first, last], "image")
    ('racing stopped 1 of 2 trials, which could not win; 70 % of the images were evaluated',)
    """
    stops = [entry.stopped for entry in entries if entry.stopped is not None]
    if not stops:
        return ()
    rows = sum(stop.rows for stop in stops) + sum(sum(entry.n.values()) for entry in entries)
    share = 100 * rows / max(1, rows + sum(stop.of - stop.rows for stop in stops))
    least = min((stop.confidence for stop in stops if stop.confidence is not None), default=None)
    why = "could not win" + ("" if least is None else f" (confidence {least:g})")
    return (
        f"racing stopped {len(stops)} of {len(entries)} trials, which {why};"
        f" {share:.0f} % of the {unit}s were evaluated",
    )


def cost(entries: Sequence[Entry]) -> dict[str, float | None]:
    """`wall_s`, `trial_s` (mean), `peak_bytes` and `gpu_s` (sum) of one method's trials.

    Trials of many methods run side by side, so a method's wall time counts only the time in which
    at least one of its own was running.
    """
    spans = sorted(span for entry in entries if (span := running(entry)))
    wall, until = 0.0, -math.inf
    for start, end in spans:
        wall += max(0.0, end - max(start, until))
        until = max(until, end)
    timed = [entry.trial_s for entry in entries if entry.trial_s > 0]
    return {
        "wall_s": wall if spans else None,
        "trial_s": math.fsum(timed) / len(timed) if timed else None,
        "peak_bytes": max((entry.peak_bytes for entry in entries), default=0) or None,
        "gpu_s": math.fsum(entry.gpu_s for entry in entries) or None,
    }


def running(entry: Entry) -> tuple[float, float] | None:
    """(start, end) of a trial in seconds since the epoch; computed from its end, because it may
    have queued after its start."""
    if (end := timestamp(entry.ended)) is not None:
        return end - entry.trial_s, end
    start = timestamp(entry.started)
    return None if start is None else (start, start + entry.trial_s)


def timestamp(text: str) -> float | None:
    """Seconds since the epoch of an ISO time; None if it is not a valid time."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def remarks(choices: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Notes about ingredients that were left out because they failed or vanished.

    >>> remarks([{"candidate": "a", "ingredient": "a", "outcome": "vanished", "note": "gone"}])
    ('ingredient a: gone',)
    """
    return tuple(
        f"{'soup' if ' ' in choice['candidate'] else 'ingredient'} {choice['candidate']}:"
        f" {choice['note']}"
        for choice in choices
        if choice["outcome"] in ("failed", "vanished")
    )


def counted(entries: Iterable[Entry], spec: SweepSpec) -> list[Entry]:
    """The trials that a sweep's comparison counts: those of references and of its current methods.

    A trial of one of its methods counts even where an extended spec no longer means its
    parameters: it was measured as all others were.
    """
    methods = {*completed(spec).methods, *references(spec)}
    return [entry for entry in entries if entry.method in methods]
