"""References: finished models beside a pool, which are evaluated as they are.

A reference's tensors are copied into the resident model, without a task vector: a model that was
exported from a row has the row's weights to the bit. Tensors that it lacks are the base's.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from actors.checkpoints.checkpoint import Checkpoint, Factors, owner, read
from actors.checkpoints.lora_adapter import multiply
from actors.pool.pool import Pool, in_step, names_of, one_thread
from actors.pool.vectors_in_memory import FlatVectors, allocate, lay_out, unflatten
from fusion.errors import InputError
from fusion.task_vectors.task_vectors import check_finite


def load_references(pool: Pool, *, only: Collection[str] | None = None) -> dict[str, FlatVectors]:
    """Weights of the references that are neither the base nor an expert, without task vectors.

    Args:
        pool: an opened pool.
        only: the tensors of one shard; None: all of `pool.names`.

    Raises:
        InputError: NaN or Inf, or a tensor that is not fused and differs from the base's.
    """
    return {
        name: load_reference(pool, pool.references[name], only)
        for name, member in pool.members_of.items()
        if member is None
    }


def load_reference(pool: Pool, reference: Checkpoint, only: Collection[str] | None) -> FlatVectors:
    """Weights of one reference. See `load_references`."""
    names = names_of(pool, only)
    if only is None or pool.names[0] in only:
        check_unfused(pool, reference)
    alone = Pool(pool.base, {reference.name: reference}, pool.family)
    kinds = {name: dtype_of(alone, reference, name) for name in names}
    slots = {name: (pool.base.tensors[name].shape, kind, None) for name, kind in kinds.items()}
    flat = allocate((), lay_out(slots))
    views = unflatten(flat).base
    with one_thread():
        for name, origin, (found,) in in_step(alone, names):
            if isinstance(found, Factors):
                multiply(found, views[name])
                views[name].add_(origin.to(kinds[name]))
            else:
                views[name].copy_(origin if found is None else found)
            if found is not None:
                check_finite(views[name], name, owner(reference, name))
    return flat


def dtype_of(alone: Pool, reference: Checkpoint, name: str) -> torch.dtype:
    """Dtype that a reference's tensor is kept in: the file's, or that of base plus factors."""
    if name in reference.factors:
        return alone.delta_dtype(name) or alone.base.tensors[name].dtype
    return (reference.tensors if name in reference.tensors else alone.base.tensors)[name].dtype


def check_unfused(pool: Pool, reference: Checkpoint) -> None:
    """Raise InputError if a tensor that the pool does not fuse differs from the base's."""
    pool.family.check_unfused(pool.base, [reference])
    left = [n for n in pool.base.tensors if n not in pool.names and n in reference.tensors]
    pairs = zip(read(pool.base, left), read(reference, left), strict=True)
    for (name, ours), (_, theirs) in pairs:
        if not torch.equal(ours.to(theirs.dtype), theirs):
            raise InputError(
                f"{owner(reference, name)}: tensor {name!r}: differs from the base's; it is fused"
                " only where an expert has its own"
            )
