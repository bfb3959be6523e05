"""The metric that a sweep selects by, and the tasks that nothing is selected on."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from actors.experts.metrics import METRICS
from fusion.errors import unknown
from sweeps.spec.errors import custom_error


def unseen_tasks(experts: Collection[str], tasks: Iterable[str]) -> tuple[str, ...]:
    """Tasks without an expert of their name, where the pool has experts of other tasks.

    A pool none of whose names is a task's holds ingredients, which are of all tasks.

    >>> unseen_tasks(["a", "b"], ["a", "b", "c"]), unseen_tasks(["run_0"], ["a", "b"])
    (('c',), ())
    """
    names = tuple(tasks)
    without = tuple(name for name in names if name not in experts)
    return () if len(without) == len(names) else without


def metric_names(tasks: Iterable[str], unseen: Collection[str] = ()) -> list[str]:
    """All metrics that a sweep may select by; unseen tasks are left out."""
    seen = [task for task in tasks if task not in unseen]
    means = ("seen",) if unseen else ("mean",)
    return [f"{kind}/{task}" for kind in METRICS for task in (*means, *seen)]


def checked_metric(metric: str, tasks: Collection[str], experts: Collection[str]) -> str:
    """Validate the metric that a sweep selects by; with unseen tasks, a mean is over the seen ones.

    >>> checked_metric("acc/mean", ["a", "b", "c"], ["a", "b"])
    'acc/seen'

    Raises:
        PydanticCustomError: an unknown one, or one of an unseen task.
    """
    unseen = unseen_tasks(experts, tasks)
    kind, _, what = metric.partition("/")
    metric = f"{kind}/seen" if unseen and what == "mean" else metric
    known = metric_names(tasks, unseen)
    if what in unseen:
        reason = f"no expert is of it, so nothing is chosen by it; {', '.join(known)} allowed"
        raise custom_error(reason)
    if metric not in known:
        raise custom_error(unknown("metric", metric, known))
    return metric
