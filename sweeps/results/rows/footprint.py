"""Cost of a row that does not depend on the machine: models held, passes, parameters stored."""

from __future__ import annotations

from contextlib import suppress
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from actors.artifacts.fitted_file import SEPARATOR
from actors.pool.pool import Pool
from actors.shards.routers import mlp_names
from fusion.kinds import Footprint
from fusion.registry import METHODS
from sweeps.results.comparison import Metrics, Row

SEARCHED = "surface."
"""Prefix of the tensors of a classifier's file that are for plots only."""


def footprint(row: Row, pool: Pool, learned: Path) -> Metrics:
    """Fields of the row's cost.

    * `models`: models of the pool's size whose weights are in memory;
    * `passes`: forward passes of such a model for one input;
    * `extra_parameters`: numbers that are stored on top of one model;
    * `mask_bits`: bits of binary masks on top of that.

    Args:
        row: a reference, or a method's winner.
        pool: the opened pool.
        learned: file of what its trial learned; it need not exist.
    """
    experts = len(pool.tasks)
    method = METHODS.get(row.method)
    if method is None:
        found = Footprint(models=experts) if row.method == "experts" else Footprint()
    else:
        found = method.footprint(experts, row.params)
    whole = pool.parameters
    blocks = found.mlps * mlp_parameters(pool) if found.mlps else 0.0
    extra = (found.models - 1) * whole + blocks
    if method is not None and method.output != "one_model" and method.learns:
        extra += learned_numbers(learned)
    return {
        "models": tidy(round(found.models + blocks / whole, 2)),
        "passes": tidy(found.passes),
        "extra_parameters": round(extra),
        "mask_bits": found.masks * whole,
    }


def tidy(value: float) -> int | float:
    """A whole number as an int."""
    return int(value) if value == int(value) else value


def mlp_parameters(pool: Pool) -> int:
    """Fused elements of the MLP blocks that routers can merge."""
    inside = set(mlp_names(pool.family.segments(pool.base)))
    return sum(pool.base.tensors[name].numel for name in pool.names if name in inside)


def learned_numbers(path: Path) -> int:
    """Elements of a learned file; 0 if it cannot be read."""
    total = 0
    with suppress(OSError, SafetensorError), safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            if not name.rpartition(SEPARATOR)[2].startswith(SEARCHED):
                total += prod(file.get_slice(name).get_shape())
    return total
