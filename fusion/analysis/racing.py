"""Racing: stop the evaluation of a candidate that cannot win, before all rows are evaluated.

Candidates are compared by accuracy: the mean over T tasks of the share of right rows. The *bar* is
the accuracy on all rows of a candidate that was evaluated before, so it is a known number. A
candidate is evaluated in chunks of rows, and stopped by one of two bounds:

* `ceiling` is certain: the accuracy if all rows that are left were right. A candidate whose ceiling
  is below the bar is worse than the bar's holder, for any order of the rows.
* `improbable` holds with a probability: the rows are in random order, without replacement.

Why the second bound needs no union over candidates: let μ be the accuracy of the best candidate.
All bars are accuracies of candidates, so none is above μ. The best candidate is stopped only if its
running accuracy is so far below μ that the tail bound for mean μ is below `risk`; a lower bar stops
less. So the best candidate is lost with a probability of at most `risk` times the number of looks.
Which candidates exist must not depend on the order of the rows: this holds for grids and
random search, and not for searchers that learn from results.

Sources: racing with bounds: Maron and Moore, "Hoeffding races", NIPS 1993. Tail bound for samples
without replacement: Hoeffding, "Probability inequalities for sums of bounded random variables",
JASA 58 (1963), theorems 1 (eq. 2.1) and 4. Deviation: the bar is a known number instead of the
leader's running mean, so one sample's bound of range 1 is enough; Hoeffding's bound on paired
differences, of range 2, needs up to four times the rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

MARGIN = 1e-9
"""Accuracies nearer than this count as equal: a candidate that can still reach the bar goes on."""


def ceiling(right: Mapping[str, int], seen: Mapping[str, int], sizes: Mapping[str, int]) -> float:
    """The mean accuracy over tasks if all rows that are left were right.

    Args:
        right: task -> right rows so far.
        seen: task -> evaluated rows.
        sizes: task -> all rows; its tasks are those of the mean.

    >>> ceiling({"a": 1, "b": 2}, {"a": 2, "b": 2}, {"a": 4, "b": 4})
    0.875
    """
    each = [(right[task] + sizes[task] - seen[task]) / sizes[task] for task in sizes]
    return math.fsum(each) / len(each)


def beaten(
    right: Mapping[str, int],
    seen: Mapping[str, int],
    sizes: Mapping[str, int],
    bar: float,
    risk: float = 0.0,
) -> bool:
    """Whether a candidate is below the bar: for certain, or but for a probability of `risk`.

    Args:
        right: task -> right rows so far.
        seen: task -> evaluated rows; with a `risk` a random sample, and as many of each task as of
            the others, unless that task has no more.
        sizes: task -> all rows.
        bar: the accuracy to reach.
        risk: probability of an error at this look; 0: none is allowed.

    >>> beaten({"a": 0}, {"a": 6}, {"a": 10}, 0.5)
    True
    >>> beaten({"a": 1}, {"a": 6}, {"a": 10}, 0.5)
    False
    """
    if ceiling(right, seen, sizes) < bar - MARGIN:
        return True
    return risk > 0 and improbable(right, seen, sizes, bar) < risk


def improbable(
    right: Mapping[str, int], seen: Mapping[str, int], sizes: Mapping[str, int], bar: float
) -> float:
    """Bound on the probability of so few right rows, if the accuracy on all rows is the bar.

    exp(−M·KL(x‖b)) (Hoeffding 1963, eq. 2.1 and theorem 4): M rows of the tasks that have more,
    x their share of right rows, and b the mean that these tasks need. With the same number of rows
    of each task, the bound holds for any division of the mean among tasks, because
    log E exp(−λX) is concave in it. 1 where nothing follows.

    >>> round(improbable({"a": 2, "b": 2}, {"a": 10, "b": 10}, {"a": 100, "b": 100}, 0.8), 10)
    5.96e-08
    >>> improbable({"a": 9}, {"a": 10}, {"a": 100}, 0.8)
    1.0
    """
    open_tasks = [task for task in sizes if 0 < seen[task] < sizes[task]]
    counts = {seen[task] for task in open_tasks}
    if len(counts) != 1 or any(seen[task] == 0 for task in sizes):
        return 1.0
    known = math.fsum(right[task] / sizes[task] for task in sizes if task not in open_tasks)
    needed = (bar * len(sizes) - known) / len(open_tasks)
    total = counts.pop() * len(open_tasks)
    share = sum(right[task] for task in open_tasks) / total
    if share >= needed or needed >= 1:  # the ceiling decides on a mean of 1 and more
        return 1.0
    return math.exp(-total * divergence(share, needed))


def divergence(share: float, mean: float) -> float:
    """Kullback–Leibler divergence of two coins, in nats; 0 < mean < 1."""
    parts = ((share, mean), (1 - share, 1 - mean))
    return math.fsum(p * math.log(p / q) for p, q in parts if p > 0)
