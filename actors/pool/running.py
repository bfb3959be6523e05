"""Running statistics of batch norm: those of a pool's members, and averages of them.

They are no task vectors. A member is evaluated with its own. Those of a merged model are measured
again on unlabelled fit rows (`reestimate`), or averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from actors.artifacts.recipe import BASE
from actors.checkpoints.checkpoint import Checkpoint, owner, read
from actors.pool.pool import Pool
from fusion.errors import InputError
from fusion.registry import METHODS
from fusion.task_vectors.task_vectors import StateDict, TaskVectors, check_finite

Policy: TypeAlias = Literal["reestimate", "average"]

VERSION = "batch-norm-1"
"""Increased when a change of this code, or of what measures, changes statistics."""


@dataclass(frozen=True)
class BatchNorm:
    """The running statistics of a pool's members, and how those of merged models are made."""

    members: Mapping[str, StateDict] = field(default_factory=dict)
    """`pretrained`, expert or reference -> canonical name -> statistic, float32 [channels]; empty:
    the models have no batch norm."""
    policy: Policy = "reestimate"


NO_BATCH_NORM = BatchNorm()


def running_names(pool: Pool) -> tuple[str, ...]:
    """Canonical names of the base's running statistics; empty: its models have no batch norm."""
    chain = pool.family.segments(pool.base)
    return tuple(name for link in chain for name in link.running.values())


def batch_norm(pool: Pool, policy: Policy = "reestimate") -> BatchNorm:
    """Read the running statistics of base, experts and references.

    Raises:
        InputError: NaN, Inf or a negative variance, by file and tensor.
    """
    names = running_names(pool)
    if not names:
        return NO_BATCH_NORM
    members = {BASE: pool.base, **pool.experts, **pool.references}
    origin = running_of(pool.base, names)
    found = {name: {**origin, **running_of(each, names)} for name, each in members.items()}
    return BatchNorm(found, policy)


def running_of(member: Checkpoint, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Running statistics of one member, in float32; an adapter has none of its own."""
    found = {}
    for name, tensor in read(member, [each for each in names if each in member.rest]):
        check_finite(tensor, name, owner(member, name))
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise InputError(f"{owner(member, name)}: tensor {name!r}: a negative variance")
        found[name] = tensor.float().clone()
    return found


def averaged(
    norms: BatchNorm,
    tasks: tuple[str, ...],
    coding: Tensor | None,
    method: str | None,
    params: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Averaged running statistics of a merged model.

    A coding [1, T, G] gives expert t the mean c_t of its column and the base 1 − Σc; negative
    shares count as 0, and the rest are divided by their sum, so that variances stay positive. A
    method whose result is an average with given shares averages them in the same way. Of all other
    methods it is the mean of the experts'.
    """
    base, experts = norms.members[BASE], {task: norms.members[task] for task in tasks}
    row = METHODS.get(method or "")
    if coding is None and row is not None and row.affine:
        return row.merge(TaskVectors.from_state_dicts(base, experts), **params)
    shares = torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64)
    own = 0.0
    if coding is not None:
        shares = coding[0].double().mean(1)
        own = max(0.0, 1.0 - float(shares.sum()))
        shares = shares.clamp(min=0)
    total = own + float(shares.sum())
    if not total:
        own, total = 1.0, 1.0
    found = {}
    for name, origin in base.items():
        mixed = own / total * origin.double()
        for share, task in zip(shares.tolist(), tasks, strict=True):
            mixed += share / total * experts[task][name].double()
        found[name] = mixed.float()
    return found


def mean_of_experts(pool: Pool) -> dict[str, Tensor]:
    """The mean of the experts' running statistics; empty: the models have no batch norm."""
    norms = batch_norm(pool)
    return averaged(norms, pool.tasks, None, None, {}) if norms.members else {}
