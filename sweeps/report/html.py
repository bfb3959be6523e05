"""The HTML report of a sweep: one file that loads nothing, for screen, phone and paper.

Verdict, interval plot and tables are there without scripts, for mail and print; scripts in the file
sort and search the table and draw the charts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from actors.artifacts.recipe import REFERENCES
from actors.experts.metrics import RankedMetric
from fusion.errors import InputError
from fusion.registry import METHODS, Gated
from sweeps.console import number_format
from sweeps.report import disagreements, exports, shift_table, significance_text, soup_decisions
from sweeps.report.charts import comparison as plots
from sweeps.report.charts import learning_curves, vega
from sweeps.report.charts.axes import Axis
from sweeps.report.charts.hyperparameter_profiles import Profile, importance, profiles
from sweeps.report.charts.search_surface_plots import pictures
from sweeps.results.comparison import MEANS, Comparison, Row, finite
from sweeps.results.correctness_file import Correct, read_correct, read_predicted
from sweeps.results.examples import Examples
from sweeps.results.examples import read as read_examples
from sweeps.results.expert_matrix import ExpertMatrix
from sweeps.results.expert_matrix import read as read_experts
from sweeps.results.folder import SweepFolder
from sweeps.results.ledger import Entry, write_text
from sweeps.results.partial_comparison import gather

TEMPLATES = Path(__file__).parents[1] / "templates"

NAME = 22
"""Most characters of a name in a table's head or first column."""

ANALYSIS = "analysis/analysis.html"
"""The page of `sweeps analyse`, from the report's own folder."""


def write_html(
    source: Path | Comparison, path: Path, entries: Iterable[Entry] | None = None
) -> None:
    """Write the report: one file, no external resources.

    Args:
        source: a comparison, or the folder of a finished or running sweep.
        path: the HTML file; it appears whole or not at all.
        entries: the trials; those of the folder's ledger by default.

    Raises:
        InputError: the folder holds neither comparison nor trials, or the file cannot be written.
    """
    if isinstance(source, Path):
        comparison, found = gather(source)
        entries = found if entries is None else entries
    else:
        comparison = source
    analysis = ANALYSIS if (path.parent / ANALYSIS).exists() else ""
    folder = SweepFolder(source if isinstance(source, Path) else path.parent)
    text = html(
        comparison,
        tuple(entries or ()),
        analysis=analysis,
        learned=folder.learned,
        experts=read_experts(folder.path),
        correct=kept_correct(folder.correct),
        predicted=read_predicted(folder.correct),
        examples=read_examples(folder.correct),
    )
    write_text(path, text)


def html(
    comparison: Comparison,
    entries: Sequence[Entry],
    *,
    analysis: str = "",
    learned: Path | None = None,
    experts: ExpertMatrix | None = None,
    correct: Mapping[str, Correct] | None = None,
    predicted: Mapping[str, Mapping[str, NDArray[np.int32]]] | None = None,
    examples: Examples | None = None,
) -> str:
    """The report as text.

    `analysis`: where, beside it, the page of `sweeps analyse` is; `learned`: the folder of what
    trials learned, whose surfaces are drawn; `experts`: the experts among themselves;
    `correct`: row -> its samples on the report split; `predicted`: row -> task -> the classes that
    it chose; `examples`: samples on which winner and runner-up differ.
    """
    template = environment().get_template("report.html.j2")
    shown = view(comparison, entries) | {
        "surfaces": pictures(comparison.rows, learned),
        "experts": expert_charts(comparison, experts),
        "disagreements": disagreements.tables(comparison, correct or {}),
        "confusions": [
            (task, said, vega.embedded(spec))
            for task, said, spec in disagreements.confusions(
                comparison, predicted or {}, examples.classes if examples else {}
            )
        ],
        "examples": (few := disagreements.shown_examples(examples, comparison)),
        "pictured": any(
            each["pictured"] for task in few for side in task["sides"] for each in side["samples"]
        ),
    }
    return template.render(shown, words=number_format, analysis=analysis)


def kept_correct(folder: Path) -> Mapping[str, Correct]:
    """Samples of all rows; none if a file is damaged, which keeps no report from being written."""
    try:
        return read_correct(folder)
    except InputError:
        return {}


def expert_charts(comparison: Comparison, experts: ExpertMatrix | None) -> list[tuple[str, Markup]]:
    """Caption and chart of every matrix of the experts that is known."""
    if experts is None:
        return []
    found = {
        "score of every expert on every task": vega.expert_scores(comparison, experts),
        "cosines of task vectors": vega.expert_cosines(experts),
    }
    return [(name, vega.embedded(spec)) for name, spec in found.items() if spec is not None]


def environment() -> Environment:
    """The Jinja environment of the pages."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["breaks"] = breaks
    made.filters["named"] = named
    return made


def script_files() -> list[Path]:
    """Scripts of the page: the chart library, then the page's own."""
    library = [TEMPLATES / "vega" / name for name in vega.SCRIPTS]
    return [*library, TEMPLATES / "report.js"]


def breaks(name: str) -> Markup:
    """Allow line breaks after the underscores of a name."""
    return Markup("_<wbr>").join(name.split("_"))


def named(name: str) -> Markup:
    """A name with line breaks allowed; a long one is shortened in its middle, and the whole is its
    tooltip."""
    if len(name) <= NAME:
        return breaks(name)
    return Markup('<span title="{}">{}</span>').format(
        name, breaks(number_format.middle(name, NAME))
    )


def view(comparison: Comparison, entries: Sequence[Entry]) -> dict[str, Any]:
    """Variables of the template."""
    tested = any(row.test for row in comparison.rows)
    entries = in_order(entries, comparison)
    selected = {row.method: row.trial_key for row in comparison.rows}
    return {
        "c": comparison,
        "tested": tested,
        "split": comparison.report_on if tested else comparison.select_on,
        "selection": number_format.selection(*comparison.selection),
        "total": len(entries) or sum(row.trials for row in comparison.rows),
        "verdict": significance_text.verdict(comparison),
        "lines": (table := lines(comparison, tested)),
        "costs": None if (chart := vega.cost(comparison)) is None else vega.embedded(chart),
        "scripts": [Markup(path.read_text("utf-8")) for path in script_files()],
        "files": {
            "csv": vega.embedded({"text": exports.csv_text(comparison)}),
            "latex": vega.embedded({"text": exports.latex(comparison)}),
            "parquet": exports.parquet(comparison),
        },
        "tinted": any(cell["tint"] for line in table for cell in line["cells"]),
        "sunk": any(cell["below"] for line in table for cell in line["cells"]),
        "columns": columns(comparison),
        "normalised": any(comparison.normalised(row) is not None for row in comparison.rows),
        "unasked": [
            r.method for r in comparison.references if not r.asked and r.method not in REFERENCES
        ],
        "gated": any(isinstance(METHODS.get(row.method), Gated) for row in comparison.rows),
        "means": comparison.means,
        "forest": forest(comparison, tested),
        "learning": list(map(learned, learning_curves.figures(entries, selected))),
        "robust": shift_table.table(comparison),
        "robust_words": shift_table.sentence(comparison),
        "soups": soup_decisions.tables(entries, selected, comparison.metric),
        "profiles": [
            draw(each)
            for each in profiles(entries, selected, comparison.seen, comparison.ranked_by.name)
        ],
        "matrix": significance_text.matrix(comparison),
        "sentences": significance_text.sentences(comparison),
        "entries": [trial(entry, selected, comparison.ranked_by) for entry in entries],
        "failed": [failure(each) for each in comparison.failed],
        "notes": notes(row.method for row in comparison.ranked),
    }


def lines(comparison: Comparison, tested: bool) -> list[dict[str, Any]]:
    """Rows of the table: texts, intervals, and each cell's place between pretrained and expert."""
    by_name = {row.method: row for row in comparison.rows}
    names = [*comparison.means, *map(comparison.value, columns(comparison))]
    top = max if comparison.ranked_by.larger_is_better else min
    best = {
        name: top(
            (value for row in comparison.rows
             if not row.reference and (value := metrics(row, tested).get(name))
             is not None), default=None)
        for name in names
    }  # fmt: skip
    return [
        {
            "row": row,
            "best": row is comparison.best,
            "first": bool(comparison.references) and row is comparison.references[0],
            "failed": not metrics(row, tested),
            "beside": number_format.percent(comparison.value_beside(row)),
            "normalised": comparison.normalised(row),
            "cells": [cell(row, name, tested, best[name], by_name) for name in names],
        }
        for row in comparison.ranked
    ]


def columns(comparison: Comparison) -> tuple[str, ...]:
    """Tasks that have a column, seen ones first; a single task is the mean."""
    return (*comparison.seen, *comparison.unseen) if len(comparison.tasks) > 1 else ()


def metrics(row: Row, tested: bool) -> Mapping[str, float | None]:
    """Metrics that the report shows first."""
    return row.test if tested else row.val


def cell(
    row: Row, name: str, tested: bool, best: float | None, by_name: Mapping[str, Row]
) -> dict[str, Any]:
    """One score: text, interval, tint."""
    value = metrics(row, tested).get(name)
    low, high = row.test_ci95.get(name, (None, None)) if tested else (None, None)
    floor, ceiling = (
        metrics(by_name[which], tested).get(name) if which in by_name else None
        for which in REFERENCES
    )
    gain, below = None, False
    if value is not None and floor is not None and ceiling is not None and ceiling > floor:
        gain = (value - floor) / (ceiling - floor)
    elif value is not None and floor is not None and ceiling is None and value < floor - 1e-9:
        below = True  # of an unseen task, that no expert is of
    return {
        "value": value,
        "text": number_format.percent(value),
        "interval": ""
        if low is None
        else f"{number_format.percent(low)}–{number_format.percent(high)}",
        "best": value is not None and value == best and not row.reference,
        "below": below or (gain is not None and gain < -1e-9),
        "tint": None if gain is None else f"{min(abs(gain), 1.0):.2f}",
        "gain": None if gain is None else f"{100 * gain:.0f}",
    }


def forest(comparison: Comparison, tested: bool) -> dict[str, Any] | None:
    """Forest plot of the mean; None while there is no value."""
    name = comparison.headline
    shown = [row for row in comparison.ranked if metrics(row, tested).get(name) is not None]
    if not shown:
        return None
    spans = {row.method: row.test_ci95.get(name) if tested else None for row in shown}
    values = [value for row in shown if (value := metrics(row, tested)[name]) is not None]
    axis = Axis.around([*values, *(end for span in spans.values() if span for end in span)])
    drawn = []
    for row in shown:
        style = "best" if row is comparison.best else ""
        style = "reference" if row.reference else style
        mean, span = metrics(row, tested)[name], spans[row.method]
        drawn.append(
            {
                "row": row,
                "style": style,
                "params": " ".join(number_format.params_words(row.params)),
                "plot": plots.forest_line(axis, mean, span, style),
                "value": number_format.percent(mean),
                "interval": f"[{', '.join(map(number_format.percent, span))}]" if span else "",
            }
        )
    return {"rows": drawn, "axis": plots.forest_axis(axis)}


def draw(profile: Profile) -> dict[str, Any]:
    """The charts of one method's hyper-parameters, with their descriptions."""
    means = [point.accuracy["mean"] for point in profile.points]
    shares = importance(profile)
    return {
        "profile": profile,
        "chart": vega.embedded(vega.profile(profile)),
        "importance": vega.embedded(
            vega.bars(f"{profile.method}: importance of parameters", shares)
        )
        if shares
        else None,
        "chosen": chosen_text(profile),
        "several": several(profile),
        "low": number_format.percent(min(means)),
        "high": number_format.percent(max(means)),
    }


def learned(figure: dict[str, Any]) -> dict[str, Any]:
    """The charts of one method's learning curves, with their descriptions."""
    last = figure["coding"]
    return figure | {
        "loss": vega.embedded(vega.learning(figure["curves"])),
        "coding": None if last is None else vega.embedded(vega.coding(last)),
    }


def chosen_text(profile: Profile) -> str:
    """The selected trial, in words; empty if it is not drawn."""
    if (point := profile.chosen) is None:
        return ""
    where = f"{point.label} {point.series}".strip()
    return f"selected: {where}, {number_format.percent(point.accuracy['mean'])} %"


def several(profile: Profile) -> str:
    """Legend of line styles, if a non-numeric parameter varied too."""
    if len({point.series for point in profile.points}) < 2 or len(profile.names) > 1:
        return ""
    return f"selected: {profile.chosen.series}; others too" if profile.chosen else "several others"


def in_order(entries: Iterable[Entry], comparison: Comparison) -> list[Entry]:
    """Trials in the order of the comparison's methods; the best first, failed ones last."""
    sign = 1.0 if comparison.ranked_by.larger_is_better else -1.0
    ranks = {row.method: rank for rank, row in enumerate(comparison.ranked)}
    return sorted(
        entries,
        key=lambda entry: (
            ranks.get(entry.method, len(ranks)),
            entry.method,
            ("done", "stopped", "failed").index(entry.status),
            -sign * (finite(entry.metrics).get(comparison.value("mean")) or 0.0),
            entry.trial_key,
        ),
    )


def trial(entry: Entry, selected: Mapping[str, str | None], metric: RankedMetric) -> dict[str, Any]:
    """A line of the table of all trials."""
    metrics = finite(entry.metrics)
    tasks = {
        task: value
        for name, value in metrics.items()
        for kind, _, task in [name.partition("/")]
        if kind == metric.name and task not in MEANS and value is not None
    }
    sign = 1.0 if metric.larger_is_better else -1.0
    worst = min(tasks, key=lambda task: (sign * tasks[task], task), default=None)
    return {
        "entry": entry,
        "selected": selected.get(entry.method) == entry.trial_key,
        "mean": number_format.percent(metrics.get(f"{metric.name}/mean")),
        "worst": f"{number_format.percent(tasks[worst])} {worst}" if worst is not None else "",
        "steps": learning_curves.steps_text(entry),
        "nll": f"{entry.metrics['nll/mean']:.3f}" if "nll/mean" in entry.metrics else "",
    }


def failure(failed: Mapping[str, Any]) -> dict[str, Any]:
    """A failed trial: the line with the reason, and the rest."""
    error = str(failed.get("error") or "no reason was recorded").strip()
    parts = error.splitlines()
    reason = parts[-1] if parts[0].startswith("Traceback") else parts[0]
    return {**failed, "reason": reason, "rest": error if len(parts) > 1 else ""}


def notes(methods: Iterable[str]) -> list[dict[str, Any]]:
    """Documentation of the methods compared, from the registry."""
    found = []
    for name in dict.fromkeys(methods):
        if method := METHODS.get(name):
            about = method.doc.split("\n\n    Args:")[0].split("\n    >>>")[0]
            lines = [line.strip() for line in about.strip().splitlines()]
            found.append({"name": name, "method": method, "about": "\n".join(lines)})
    return found
