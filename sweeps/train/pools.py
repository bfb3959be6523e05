"""Sweep files' `pool` of what `sweeps train` keeps: `pool.yaml` and its like, to paste.

Models of one pool have one start and one head for each task. So towers tuned under different heads
are of two pools, and so are ingredients of several tasks whose classifiers are trained with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.files.documents import dump_yaml
from sweeps.train.fine_tuning_context import FineTuningContext
from sweeps.train.ingredients import Ingredient, Keep, head_file, home

POOL = "pool.yaml"

OTHERS = "pool-other-heads.yaml"
"""Written beside `pool.yaml` if a search tried two heads: the ingredients of the other head."""


def pools(
    context: FineTuningContext, kept: Mapping[str, Sequence[Ingredient]]
) -> dict[str, tuple[Path, dict[str, list[Ingredient]]]]:
    """File -> base and ingredients of its pool.

    Ingredients that start from models of their own tasks are of one pool a task, over that start:
    `pool-<task>.yaml`, or `pool.yaml` of one task. Where the best of each task is kept, it is an
    expert over the base, except in families whose classifiers are fused.
    """
    training = context.training
    if training.start is None or (context.spec.keep == "best" and not training.own_pools):
        groups = by_head(kept)
        files = dict(zip((POOL, OTHERS), groups, strict=False))
        return {name: (context.base.folder, group) for name, group in files.items()}
    return {
        POOL if len(context.spec.tasks) == 1 else f"pool-{task}.yaml": (
            context.folders[task],
            {task: list(group)},
        )
        for task, group in kept.items()
    }


def by_head(kept: Mapping[str, Sequence[Ingredient]]) -> list[dict[str, list[Ingredient]]]:
    """Groups with one head for each task: those under the head of the task's best, then the others.

    Towers tuned under different heads cannot be fused; there are two kinds, so two pools hold all.
    """
    first = {
        task: [each for each in group if each.tuned_under == group[0].tuned_under]
        for task, group in kept.items()
    }
    others = {
        task: [each for each in group if each.tuned_under != group[0].tuned_under]
        for task, group in kept.items()
    }
    others = {task: group for task, group in others.items() if group}
    return [first, others] if others else [first]


def pool_yaml(
    base: Path,
    kept: Mapping[str, Sequence[Ingredient]],
    out: Path,
    keep: Keep,
    tasks: Mapping[str, Any],
    splits: Mapping[str, Any],
) -> str:
    """`pool` and `tasks` of a sweep file (and `splits`, if not the defaults), to paste.

    A task whose ingredients were tuned under a linear probe's head names it: `kept` has, of each
    task, those of one head.
    """
    heads = {
        task: {"head": str(head_file(out, task, "linear_probe"))}
        for task, group in kept.items()
        if group[0].tuned_under == "linear_probe"
    }
    experts = {
        task if keep == "best" else each.name: str(home(out, each, keep))
        for task, group in kept.items()
        for each in group
    }
    content = {
        "pool": {"base": str(base), "experts": experts},
        "tasks": {t: {**given, **heads.get(t, {})} for t, given in tasks.items() if t in kept},
        **({"splits": dict(splits)} if splits else {}),
    }
    return dump_yaml(content, width=1000)
