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
