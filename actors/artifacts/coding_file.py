"""Coding files: one learned static coding [1, T, G] with the names of its tasks and groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field

from actors.artifacts.learned_file import packed, unpacked
from actors.files.documents import checked
from fusion.errors import InputError
from fusion.task_vectors.coding import Coding


def dump_coding(
    coding: Coding, tasks: Sequence[str], groups: Sequence[str], beta: float = 1.0
) -> bytes:
    """Bytes of a coding file (safetensors): `coding` [1, T, G] in float32, and its names.

    Args:
        coding: the coding.
        tasks: names of the T axis.
        groups: names of the G axis; stored only if G > 1.
        beta: learned inverse temperature of the logits; 1: none was learned.
    """
    keys = list(groups) if coding.shape[2] > 1 else []
    tempered = {"beta": beta} if beta != 1.0 else {}
    about = {"format": 1, "tasks": list(tasks), "keys": keys, **tempered}
    tensor = coding.detach().float().cpu().contiguous()
    return packed({"coding": tensor}, "coding", about)


def dump_shares(shares: Sequence[float], tasks: Sequence[str]) -> bytes:
    """Coding file of one coefficient a task [T] for the whole model; see `dump_coding`."""
    return dump_coding(torch.tensor(shares, dtype=torch.float64).view(1, -1, 1), tasks, ())


def load_coding(data: bytes, tasks: Sequence[str], groups: Sequence[str], where: str) -> Coding:
    """The coding [1, T, G] of a file, its groups picked by name.

    Args:
        data: bytes of the file.
        tasks: the experts of the pool, in order.
        groups: tensor names of the pool, in order.
        where: begins each message.

    Raises:
        InputError: damaged, not finite, other tasks, or a group of the pool is missing.
    """
    what = f"{where}: not a coding file"
    tensors, note = unpacked(data, "coding", what)
    about = checked(About, note, what)
    if list(tensors) != ["coding"] or tensors["coding"].dtype != torch.float32:
        raise InputError(f"{what}: tensors {sorted(tensors)}; one, 'coding', float32, needed")
    coding, named, keys = tensors["coding"], about.tasks, about.keys
    if named != list(tasks):
        raise InputError(
            f"{where}: tasks: {', '.join(map(str, named))}; the pool has {', '.join(tasks)}"
        )
    if coding.shape != (1, len(named), len(keys) or 1) or not bool(torch.isfinite(coding).all()):
        raise InputError(
            f"{where}: coding: shape {list(coding.shape)}, or not finite;"
            f" {[1, len(named), len(keys) or 1]} needed"
        )
    if not keys:
        return coding
    missing = [name for name in groups if name not in keys]
    if missing:
        raise InputError(f"{where}: keys: no {missing[0]!r}, which the pool has")
    return coding[:, :, [keys.index(name) for name in groups]]


@dataclass(frozen=True)
class About:
    """Metadata of a coding file."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    format: Literal[1]
    tasks: list[Any]
    keys: list[Any]
    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


def beta_of(data: bytes) -> float:
    """Inverse temperature stored in a coding file; 1 if none was learned."""
    _, note = unpacked(data, "coding", "coding")
    return checked(About, note, "coding").beta
