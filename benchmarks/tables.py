"""A sweep's comparison as Markdown, for result files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def compared(folder: Path, tasks: Sequence[str], mean: str = "acc/mean") -> list[str]:
    """The comparison of a finished sweep: table, chosen parameters, remarks, learned trials.

    `mean` is the value that rows are ranked by, `acc/seen` where tasks are unseen.
    """
    comparison = json.loads((folder / "comparison.json").read_text())
    rows = comparison["rows"]
    remarks = [f"`{row['method']}`: {'; '.join(row['notes'])}" for row in rows if row["notes"]]
    return [
        "## Comparison",
        "",
        f"Selected on `{comparison['select_on']}` by `{comparison['metric']}`, reported on `test`;"
        " accuracy in %, 95 % interval of the mean.",
        "",
        *table(rows, tasks, mean),
        "",
        "Chosen parameters: "
        + "; ".join(f"`{r['method']}` {json.dumps(r['params'])}" for r in rows if r["params"])
        + ".",
        "",
        *([f"Remarks: {'. '.join(remarks)}.", ""] if remarks else []),
        *learned(folder),
    ]


def table(rows: Sequence[dict[str, Any]], tasks: Sequence[str], mean: str) -> list[str]:
    """The comparison's rows."""
    head = ["method", "trials", "val mean", "test mean", "interval", *tasks, "s a trial"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        low, high = row["test_ci95"][mean]
        each = [f"{100 * row['test'][f'acc/{task}']:.1f}" for task in tasks]
        cells = [
            row["method"],
            str(row["trials"]),
            f"{100 * row['val'][mean]:.1f}",
            f"**{100 * row['test'][mean]:.1f}**",
            f"{100 * low:.1f}–{100 * high:.1f}",
            *each,
            f"{row['cost']['trial_s']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


COSTS = {
    "models": ("models in memory", 1, "g"),
    "passes": ("passes an input", 1, "g"),
    "extra_parameters": ("further numbers", 1, ",.0f"),
    "mask_bits": ("bits of masks", 1, ",.0f"),
    "merge_s": ("merge, s", 1, ".2f"),
    "input_s": ("an input, ms", 1000, ".2f"),
    "learn_s": ("learning, s", 1, ".0f"),
}
"""Field of a row's cost -> head of its column, factor, format; docs/report.md explains them."""


def costs(folder: Path) -> list[str]:
    """What each row of a finished sweep costs, as Markdown; `–`: it has no such cost."""
    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    lines = [
        "| method | " + " | ".join(head for head, *_ in COSTS.values()) + " |",
        "|---" * (len(COSTS) + 1) + "|",
    ]
    for row in rows:
        cells = [row["method"]]
        for field, (_, factor, form) in COSTS.items():
            value = row["cost"].get(field)
            cells.append("–" if value is None else format(factor * value, form))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def matrix(folder: Path, tasks: Sequence[str]) -> list[str]:
    """Accuracy of the base and every expert on every task of a finished sweep, as Markdown."""
    scores = json.loads((folder / "experts.json").read_text())["scores"]
    lines = ["| model | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
    for model in ("pretrained", *tasks):
        cells = [f"{100 * scores[model][task]['acc']:.1f}" for task in tasks]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return lines


def learned(folder: Path) -> list[str]:
    """Every trial of a method that learns: what varied, steps, loss and accuracy on select."""
    entries = [json.loads(path.read_text()) for path in sorted((folder / "ledger").glob("*.json"))]
    entries = [entry for entry in entries if entry.get("curve")]
    if not entries:
        return []
    lines = [
        "## Trials that learned",
        "",
        "Loss: sum over tasks of mean entropies (of a learned soup: cross-entropies; nats), over"
        " the steps since the last checkpoint.",
        "",
        "| method | parameters | steps | first loss | last loss | val mean | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in sorted(entries, key=lambda e: (e["method"], -e["metrics"]["acc/mean"])):
        params = {k: v for k, v in entry["params"].items() if k != "extractor"}
        first, last = entry["curve"][0]["loss"], entry["curve"][-1]["loss"]
        lines.append(
            f"| {entry['method']} | {json.dumps(params)} | {entry['steps']} | {first:.2f} |"
            f" {last:.2f} | {100 * entry['metrics']['acc/mean']:.1f} | {entry['trial_s']:.0f} |"
        )
    return [*lines, ""]
