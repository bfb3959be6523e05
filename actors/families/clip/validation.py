"""Check that members of a pool have the base's architecture, and its tensors that are not fused."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from actors.checkpoints.checkpoint import Checkpoint, owner, read
from actors.families.clip.architecture import PROJECTION
from fusion.errors import InputError
from fusion.task_vectors.task_vectors import check_finite

HEAD_TENSORS = ("text_projection.weight", "logit_scale")


def check_base(base: Checkpoint) -> None:
    """Raise InputError where the base cannot make zero-shot heads."""
    missing = [n for n in (PROJECTION, *HEAD_TENSORS) if n not in (*base.tensors, *base.rest)]
    if not any(name.startswith("text_model.") for name in base.rest):
        missing.append("text_model")
    if missing:
        raise InputError(
            f"pool.base: {base.folder}: {missing[0]}: missing; the base must be a full CLIPModel"
            " (its text tower, projections and scale make the heads)"
        )


def check_architecture(base: Checkpoint, expert: Checkpoint) -> None:
    """Raise InputError where an expert's fields or tensors differ from the base's."""
    theirs = expert.fields
    for field, value in base.fields.items():
        if theirs[field] != value:
            raise InputError(
                f"{expert.name}: {expert.folder / 'config.json'}: {field}: {theirs[field]!r};"
                f" the base has {value!r}"
            )
    for name, info in {**expert.tensors, **expert.rest}.items():
        original = base.tensors.get(name) or base.rest.get(name)
        if original is None:
            raise InputError(f"{expert.name}: {info.file}: tensor {name!r}: not in the base")
        if info.shape != original.shape:
            raise InputError(
                f"{expert.name}: {info.file}: tensor {name!r}: shape {list(info.shape)};"
                f" the base has {list(original.shape)}"
            )


def check_unfused(base: Checkpoint, experts: Collection[Checkpoint]) -> None:
    """Tensors that are not fused must equal the base's: text tower, logit scale, position ids.

    Raises:
        InputError: a tensor that differs, for example of a fine-tuned text tower.
    """
    for member in (base, *experts):
        for name, ids in read(member, member.buffers):
            if not torch.equal(ids.reshape(-1), torch.arange(ids.numel(), dtype=ids.dtype)):
                raise InputError(
                    f"{owner(member, name)}: tensor {name!r}: a buffer that differs from"
                    " 0, 1, 2, …; only floating-point tensors can be fused"
                )
    for expert in experts:
        for (name, ours), (_, theirs) in pairs(base, expert):
            check_finite(theirs, name, owner(expert, name))
            # An expert saved in half precision holds the rounded values of the base.
            if not torch.equal(ours.to(theirs.dtype), theirs):
                raise InputError(
                    f"{owner(expert, name)}: tensor {name!r}: differs from the base's; only the"
                    " vision tower is fused, so text tower and scale must be the base's"
                )
        check_idle(base, expert)


def check_idle(base: Checkpoint, adapter: Checkpoint) -> None:
    """An adapter's factors of the text tower must be zero, as they are if it was not trained.

    Raises:
        InputError: a factor that is not zero.
    """
    for name, up in read(adapter, [name for name in adapter.rest if name not in base.rest]):
        if up.any():
            raise InputError(
                f"{owner(adapter, name)}: tensor {name!r}: not zero; only the vision tower is"
                " fused, so an adapter must leave the text tower as it is"
            )


def pairs(
    base: Checkpoint, expert: Checkpoint
) -> Iterator[tuple[tuple[str, Tensor], tuple[str, Tensor]]]:
    """The base's and the expert's tensors of `expert.rest`, pairwise."""
    names = [name for name in base.rest if name in expert.rest]
    in_step = Checkpoint(**{**vars(expert), "rest": {name: expert.rest[name] for name in names}})
    return zip(read(base, names), read(in_step, names), strict=True)
