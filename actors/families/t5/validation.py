"""What the members of a pool of T5s must have in common."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from actors.checkpoints.checkpoint import Checkpoint, owner, read
from actors.families.t5.architecture import LM_HEAD, SHARED
from fusion.errors import InputError


def check_architecture(base: Checkpoint, expert: Checkpoint) -> None:
    """Raise InputError where an expert's ties or fields are not the base's."""
    theirs, file = expert.fields, expert.folder / "config.json"
    if theirs["tied"] != base.fields["tied"]:
        has, lacks = (base, expert) if theirs["tied"] else (expert, base)
        raise InputError(
            f"{expert.name}: {expert.folder}: tensor {LM_HEAD!r}: in the files of {has.name} and"
            f" not in those of {lacks.name}; embeddings and output are one table in all members, or"
            " two"
        )
    for field, value in base.fields.items():
        if theirs[field] != value and field != "scaled":
            raise InputError(
                f"{expert.name}: {file}: {field}: {theirs[field]!r}; the base has {value!r}"
            )
    if theirs["scaled"] != base.fields["scaled"]:
        raise InputError(
            f"{expert.name}: {file}: scale_decoder_outputs (or tie_word_embeddings): the decoder's"
            f" output is {scaled(expert)}; the base's is {scaled(base)}"
        )


def scaled(model: Checkpoint) -> str:
    """Whether a model's output is scaled, in words."""
    return "scaled by d_model^-1/2" if model.fields["scaled"] else "not scaled"


def check_aliases(base: Checkpoint, experts: Collection[Checkpoint]) -> None:
    """Raise InputError where a file holds its embeddings twice, with other values."""
    for member in (base, *experts):
        for name, tensor in read(member, member.aliases):
            if not equal(tensor, read(member, [SHARED])):
                raise InputError(
                    f"{owner(member, name)}: tensor {name!r}: differs from {SHARED!r}; one table of"
                    " embeddings for both sides needed"
                )


def equal(tensor: Tensor, others: Iterator[tuple[str, Tensor]]) -> bool:
    """Whether a tensor is each of the others."""
    return all(torch.equal(tensor, other) for _, other in others)
