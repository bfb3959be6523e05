"""Population-based training (PBT) in a training file: which hyper-parameters it perturbs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.spec.candidates import planned_trials
from sweeps.spec.errors import Fault
from sweeps.spec.method import MethodSpec
from sweeps.spec.search_space import Space, to_plain

INTERVALS = 8
"""Intervals of a run; fewer if it has fewer steps."""


def perturbed(entry: MethodSpec, stepwise: Sequence[str]) -> dict[str, Space]:
    """Hyper-parameters that a population perturbs, with their search spaces.

    `stepwise`: those that the family's fine-tuning reads at each step.
    """
    found = {str(path[0]): space for path, space in entry.spaces.items()}
    return {name: found[name] for name in stepwise if name in found}


def population_faults(
    params: Mapping[str, Any], trials: Any, searcher: Any, stepwise: Sequence[str]
) -> list[Fault]:
    """Faults of a search with `pbt`. `stepwise`: see `perturbed`."""
    found, entry = [], MethodSpec(params=params)
    for (name, *_), space in entry.spaces.items():
        if name not in (*stepwise, "seed"):
            reason = "one value needed with scheduler: pbt, whose members share a run's shape"
            found.append(Fault((str(name),), to_plain(space), reason))
    if not perturbed(entry, stepwise):
        reason = f"nothing to change on the way: a space of one of {', '.join(stepwise)} needed"
        found.append(Fault(("scheduler",), "pbt", reason))
    elif (not entry.sampled or trials == 1) and planned_trials(entry) < 2:
        found.append(Fault(("trials",), trials, "a population of at least 2 needed"))
    if searcher != "random":
        reason = "a population chooses by itself; random allowed"
        found.append(Fault(("searcher",), searcher, reason))
    return found
