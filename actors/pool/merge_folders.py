"""Open model folders for a merge that needs weights alone: for `fusion.merge` and `sweeps merge`.

Experts stay in their files; one tensor's task vectors are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from actors.checkpoints.checkpoint import Checkpoint, read
from actors.pool.pool import open_pool
from actors.pool.running import mean_of_experts
from actors.pool.vectors_on_disk import filed_vectors
from fusion.merge_models import OpenedFolders
from fusion.task_vectors.task_vectors import StateDict


def open_folders(base: str, experts: Mapping[str, str]) -> OpenedFolders:
    """Open a base and its experts: folders, hub ids, or LoRA adapters of the base.

    Running statistics of batch norm are the mean of the experts': there are no rows to measure them
    on. The function is the entry point `fusion_sweeps.folders` of this package.

    Raises:
        InputError: see `actors.pool.pool.open_pool` and `filed_vectors`.
    """
    pool = open_pool(base, experts)

    def finished(merged: StateDict) -> dict[str, Tensor]:
        return whole_model(pool.base, {**mean_of_experts(pool), **merged})

    return OpenedFolders(filed_vectors(pool), finished)


def whole_model(base: Checkpoint, merged: StateDict) -> dict[str, Tensor]:
    """All tensors of a model, by their names in the base's file: merged ones, else the base's."""
    infos = {**base.tensors, **base.rest, **base.buffers}
    return {infos[name].plain: merged.get(name, tensor) for name, tensor in read(base, infos)}
