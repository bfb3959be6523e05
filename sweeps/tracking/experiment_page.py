"""MLflow's pages of an experiment: descriptions, and a shared view of the winners.

MLflow shows the tag `mlflow.note.content` as a description. The table is a "shared view" of its
run list: a tag that its page reads (tried with MLflow 3.17; no public interface, and where a later
version does not know it, the link opens the plain list).
"""

from __future__ import annotations

import json
from collections.abc import Iterable

NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a description, read as Markdown."""

MAX_NOTE, MAX_PAGE = 8000, 20000
"""Characters MLflow takes in the description of a run, and of an experiment."""

SHOWN = 5
"""Sweeps whose comparison is in the description of their experiment."""

KEY = "winners"

COLUMNS = (
    "metrics.`test/acc/mean`",
    "metrics.`val/acc/mean`",
    "tags.`winner`",
    "tags.`sweep`",
    "attributes.`Models`",
)
"""Few: MLflow puts metrics in the order of their names, and the right ones off the screen."""

VIEW = json.dumps(
    {
        "searchFilter": "tags.winner != '' and tags.kind != 'reference'",
        "orderByKey": "metrics.`test/acc/mean`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": list(COLUMNS),
        "columnOrder": [],
        "columnWidths": {},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_10_RUNS",
        "groupBy": None,
        "groupsExpanded": {},
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0},
    }
)

EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # its page opens on runs, not on traces
    f"mlflow.sharedViewState.{KEY}": VIEW,
}


def page(experiment: str, notes: Iterable[str]) -> str:
    """Description of an experiment: as many notes as fit, and a link to the winners.

    >>> print(page("7", ["**a**"]))
    **a**
    <BLANKLINE>
    [The winners of all sweeps, best first](#/experiments/7/runs?viewStateShareKey=winners)
    """
    link = f"#/experiments/{experiment}/runs?viewStateShareKey={KEY}"
    last = f"[The winners of all sweeps, best first]({link})"
    return fitted("\n\n".join(notes), MAX_PAGE - len(last) - 2) + f"\n\n{last}"


def fitted(text: str, most: int) -> str:
    """The leading lines of a text that fit."""
    lines = text.splitlines()
    while len("\n".join(lines)) > most:
        lines.pop()
    return "\n".join(lines)
