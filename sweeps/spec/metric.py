"""The metric that a sweep selects by, and the tasks that nothing is selected on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from actors.data.text import glue
from actors.experts.metrics import ACCURACY, EXACT, METRICS, OWN
from fusion.errors import unknown
from sweeps.spec.errors import custom_error
from sweeps.spec.task import TaskSpec


def unseen_tasks(experts: Collection[str], tasks: Iterable[str]) -> tuple[str, ...]:
    """Tasks without an expert of their name, where the pool has experts of other tasks.

    A pool none of whose names is a task's holds ingredients, which are of all tasks.

    >>> unseen_tasks(["a", "b"], ["a", "b", "c"]), unseen_tasks(["run_0"], ["a", "b"])
    (('c',), ())
    """
    names = tuple(tasks)
    without = tuple(name for name in names if name not in experts)
    return () if len(without) == len(names) else without


def own_metrics(tasks: Mapping[str, TaskSpec]) -> dict[str, str]:
    """Task -> its own metric, of tasks that name another than accuracy, or have one built in.

    >>> own_metrics({"stsb": TaskSpec(dataset="d"), "x": TaskSpec(dataset="d", metric="acc")})
    {'stsb': 'spearman'}
    """
    found = {}
    for name, task in tasks.items():
        known = glue.builtin(name, task.dataset)
        metric = task.metric or (known[0].metric if known else ACCURACY.name)
        if metric != ACCURACY.name:
            found[name] = metric
    return found


def default_metric(tasks: Mapping[str, TaskSpec]) -> str:
    """The default of a sweep's metric: `score/mean` if a task has its own metric, else accuracy."""
    return f"{OWN.name if own_metrics(tasks) else ACCURACY.name}/mean"


def metric_names(
    tasks: Iterable[str],
    unseen: Collection[str] = (),
    own: Mapping[str, str] | None = None,
    *,
    written: bool = False,
) -> list[str]:
    """All metrics that a sweep may select by; unseen tasks are left out.

    `own`: task -> metric, of tasks with a metric of their own. `written`: whether models write
    answers, so that exact match is measured.

    >>> metric_names(["a", "b"], own={"b": "f1"})[-5:]
    ['f1/mean', 'f1/b', 'score/mean', 'score/a', 'score/b']
    """
    seen = [task for task in tasks if task not in unseen]
    means = ("seen",) if unseen else ("mean",)
    kinds = {kind: seen for kind in METRICS}
    for kind in dict.fromkeys((own or {}).values()):
        kinds[kind] = [task for task in seen if (own or {}).get(task) == kind]
    if own:
        kinds[OWN.name] = seen
    if written:
        kinds[EXACT.name] = seen
    return [
        f"{kind}/{task}"
        for kind, members in kinds.items()
        if members
        for task in (*means, *members)
    ]


def checked_metric(metric: str, tasks: Mapping[str, TaskSpec], experts: Collection[str]) -> str:
    """Validate the metric that a sweep selects by; with unseen tasks, a mean is over the seen ones.

    Whether the pool's models write answers, which `exact` needs, is not known here: see
    `sweeps.planning.data_checks.check_written`.

    >>> checked_metric("acc/mean", {n: TaskSpec(dataset=n) for n in "abc"}, ["a", "b"])
    'acc/seen'

    Raises:
        PydanticCustomError: an unknown one, or one of an unseen task.
    """
    unseen = unseen_tasks(experts, tasks)
    kind, _, what = metric.partition("/")
    metric = f"{kind}/seen" if unseen and what == "mean" else metric
    known = metric_names(tasks, unseen, own_metrics(tasks), written=kind == EXACT.name)
    if what in unseen:
        reason = f"no expert is of it, so nothing is chosen by it; {', '.join(known)} allowed"
        raise custom_error(reason)
    if metric not in known:
        raise custom_error(unknown("metric", metric, known))
    return metric
