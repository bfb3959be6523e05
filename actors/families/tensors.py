"""Tensors in a model's files, compared with those that its configuration says."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from actors.checkpoints.checkpoint import TensorInfo
from fusion.errors import InputError


def check_there(
    wanted: Collection[str],
    files: Mapping[str, TensorInfo],
    tensors: Collection[str],
    name: str,
) -> None:
    """Raise InputError where a model lacks a tensor.

    Args:
        wanted: canonical names that it needs.
        files: all tensors of its files, under their own names.
        tensors: canonical names that it has.
        name: how the message begins.
    """
    if lacking := [key for key in wanted if key not in tensors]:
        there = next(iter(files.values())).file
        raise InputError(f"{name}: {there}: tensor {lacking[0]!r}: missing")


def shaped(
    tensors: Mapping[str, TensorInfo],
    shapes: Mapping[str, tuple[int, ...]],
    name: str,
    folder: Path,
) -> dict[str, TensorInfo]:
    """The tensors in the order of `shapes`, all of whose names they have.

    Raises:
        InputError: a tensor of another shape, or that is none of the model's.
    """
    for key, shape in shapes.items():
        check_tensor(key, tensors[key], shape, f"{name}: {tensors[key].file}", folder)
    for key, info in tensors.items():
        if key not in shapes:
            raise InputError(f"{name}: {info.file}: tensor {info.key!r}: not part of the model")
    return {key: tensors[key] for key in shapes}


def by_name(found: Iterable[tuple[str, TensorInfo]], name: str) -> dict[str, TensorInfo]:
    """(canonical name, tensor) of each tensor -> tensors by canonical name.

    Raises:
        InputError: a tensor under two names.
    """
    tensors: dict[str, TensorInfo] = {}
    for short, info in found:
        if short in tensors:
            raise InputError(
                f"{name}: {info.file}: tensor {short!r}: there twice,"
                f" as {tensors[short].key!r} and {info.key!r}"
            )
        tensors[short] = info
    return tensors


def check_tensor(
    key: str, info: TensorInfo, shape: tuple[int, ...], where: str, folder: Path
) -> None:
    """Raise InputError where a tensor has another shape, or is none of floating point."""
    if info.shape != shape:
        raise InputError(
            f"{where}: tensor {key!r}: shape {list(info.shape)};"
            f" {folder / 'config.json'} says {list(shape)}"
        )
    if not info.dtype.is_floating_point:
        raise InputError(f"{where}: tensor {key!r}: dtype {info.dtype}; floating point needed")
