"""Coding files: one learned static coding, with the names of its axes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusion.coding import Coding
from fusion.errors import InputError


def dump_coding(
    coding: Coding, tasks: Sequence[str], groups: Sequence[str], beta: float = 1.0
) -> bytes:
    """safetensors: `coding` [1, T, G] float32; tasks and, where G > 1, tensor names beside it.

    `beta`: inverse temperature of the logits that was learned along.
    """
    from safetensors.torch import save

    keys = list(groups) if coding.shape[2] > 1 else []
    tempered = {"beta": beta} if beta != 1.0 else {}
    about = json.dumps({"format": 1, "tasks": list(tasks), "keys": keys, **tempered})
    tensor = coding.detach().float().cpu().contiguous()
    return bytes(save({"coding": tensor}, metadata={"coding": about}))


def dump_shares(shares: Sequence[float], tasks: Sequence[str]) -> bytes:
    """The file of one coefficient a task [T] for the whole model; see `dump_coding`."""
    return dump_coding(torch.tensor(shares, dtype=torch.float64).view(1, -1, 1), tasks, ())


def load_coding(data: bytes, tasks: Sequence[str], groups: Sequence[str], where: str) -> Coding:
    """The coding of a file, its tensors picked by name.

    Raises:
        InputError: damaged, not finite, of other tasks, or lacking a tensor.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        coding: Tensor = load(data)["coding"]
        about = about_coding(data)
        named, keys = list(about["tasks"]), list(about["keys"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where}: not a coding file: {' '.join(str(error).split())}") from None
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


def about_coding(data: bytes) -> dict[str, Any]:
    """What a coding file says beside its tensor."""
    size = int.from_bytes(data[:8], "little")
    about: dict[str, Any] = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["coding"])
    return about


def beta_of(data: bytes) -> float:
    """The inverse temperature of a coding file, 1 where none was learned."""
    return float(about_coding(data).get("beta", 1.0))
