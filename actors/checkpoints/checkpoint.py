"""Checkpoints on disk: Hugging Face folders, safetensors only.

A model family reads the headers (`families.registry.inspect`) and gives tensors their canonical
names; `read` yields memory-mapped tensors under these names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.checkpoints.missing_model import elsewhere, instead
from actors.checkpoints.sources import ADAPTER_CONFIG, INDEX
from actors.files.documents import read_json
from actors.files.fingerprint import Fingerprint, fingerprint
from actors.files.hashes import hash_files, known_hash
from actors.files.paths import inside
from actors.files.safetensors_header import LONGEST, PEFT, header, mapped, unwrapped
from actors.files.safetensors_header import TensorInfo as TensorInfo
from fusion.errors import InputError
from fusion.task_vectors.task_vectors import accumulator

PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Adapted:
    """The LoRA factors of one weight, as described by headers."""

    down: TensorInfo
    up: TensorInfo
    scale: float
    """s = α/r, or α/√r."""
    table: bool = False
    """Whether the weight is an embedding: PEFT stores the factors of its transpose."""
    first: tuple[TensorInfo, TensorInfo] | None = None
    """A₀ and B₀ of a linearised layer."""

    @property
    def infos(self) -> tuple[TensorInfo, ...]:
        """The tensors in the file: A, B and, if linearised, A₀, B₀."""
        return (self.down, self.up, *(self.first or ()))

    @property
    def rank(self) -> int:
        """Rank r of the result of `read_factors`: [r, in] and [out, r]."""
        return self.down.shape[0] * (1 if self.first is None else 2)

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the result of `read_factors`: float32, or float64 if the file is."""
        return accumulator(*(info.dtype for info in self.infos))

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return sum(info.nbytes for info in self.infos)


@dataclass(frozen=True, eq=False)
class Factors:
    """One weight's task vector, τ = up·down, seen as [out, in]; see `multiply`."""

    down: Tensor
    """[r, in]; of a convolution in·k·k. Contiguous."""
    up: Tensor
    """[out, r], scale included. Contiguous."""


@dataclass(frozen=True)
class Checkpoint:
    """One model on disk, known by its headers."""

    name: str
    """The spec's field (`pool.base`, `pool.experts.mnist`), which starts each message."""
    source: str
    """Source as given in the spec."""
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    """Canonical name -> tensor that can be fused, in the family's order."""
    rest: Mapping[str, TensorInfo]
    """Tensors that are read but never fused (a text tower, say), under their own names."""
    buffers: Mapping[str, TensorInfo]
    """Legacy buffers: checked when weights are read, then dropped."""
    factors: Mapping[str, Adapted] = field(default_factory=dict)
    """For an adapter: canonical name -> low-rank factors; `tensors` holds those it brings whole."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Configuration fields that the computation depends on, with defaults filled in."""
    aliases: Mapping[str, TensorInfo] = field(default_factory=dict)
    """Fused tensors that the files hold again under other names (own names). They are compared when
    weights are read, then dropped."""

    @property
    def described(self) -> Path:
        """The file of its configuration."""
        return self.folder / (ADAPTER_CONFIG if self.factors else "config.json")

    @property
    def fused_files(self) -> list[Path]:
        """The files with the fused tensors."""
        infos = (info for name in (*self.tensors, *self.factors) for info in self.parts(name))
        return list(dict.fromkeys(info.file for info in infos))

    @property
    def wrapper(self) -> str:
        """Prefix that a wrapper added to the names of all tensors; usually empty. PEFT's own prefix
        is not included."""
        infos = (info for name in (*self.tensors, *self.factors) for info in self.parts(name))
        return next((info.wrapper for info in infos), "").replace(PEFT, "")

    @property
    def files(self) -> list[Path]:
        """The files that hold its tensors."""
        return sorted({*self.fused_files, *(info.file for info in self.rest.values())})

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of configuration and weights; preprocessing is not part of the checkpoint."""
        return fingerprint("checkpoint-1", content_hash(self))

    def parts(self, name: str) -> tuple[TensorInfo, ...]:
        """Stored tensors of a fused tensor: itself or its factors; empty: it is the base's."""
        if name in self.factors:
            return self.factors[name].infos
        return (self.tensors[name],) if name in self.tensors else ()


def load_config(folder: Path, name: str, types: Collection[str] = ()) -> dict[str, Any]:
    """Read `config.json` of any model.

    If the file is missing, the message names the folder below that holds a model; it prefers models
    of one of `types`.

    Raises:
        InputError: the file is missing, or not a JSON object.
    """
    file = folder / "config.json"
    if not file.exists() and not file.is_symlink():
        if (folder / ADAPTER_CONFIG).exists():
            raise InputError(
                f"{name}: {folder}: {ADAPTER_CONFIG}: an adapter; a whole model is needed here"
                " (only pool.experts may be adapters)"
            )
        raise InputError(
            f"{name}: {file}: missing; a Hugging Face folder is needed{elsewhere(folder, types)}"
        )
    return read_json(file, name)


def headers(folder: Path, config: Mapping[str, Any], name: str, kind: str) -> dict[str, TensorInfo]:
    """Every tensor of the folder's safetensors files, under its name without wrapper prefixes.

    Args:
        folder: folder of the model.
        config: its configuration.
        name: start of each message.
        kind: model class for messages, if the configuration names none.

    Raises:
        InputError: see `header`; no weights, or an index that does not fit the files.
    """
    single, index = folder / "model.safetensors", folder / INDEX
    if single.exists() or single.is_symlink():
        return unwrapped(header(single, name))
    if not index.exists():
        raise InputError(f"{name}: {folder}: {no_weights(folder, config, kind)}")
    where = read_json(index, name).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise InputError(f"{name}: {index}: not an index: weight_map: a mapping needed")
    shards = {
        shard: inside(folder, shard, f"{name}: {index}: weight_map")
        for shard in map(str, where.values())
    }
    found: dict[str, TensorInfo] = {}
    for shard, file in shards.items():
        if not file.exists():
            raise InputError(f"{name}: {file}: missing; {INDEX} lists it")
        there = header(file, name)
        stated = {key for key, named in where.items() if named == shard}
        for key in sorted(stated ^ there.keys()):
            fault = "missing; the index says it is there" if key in stated else "not in the index"
            raise InputError(f"{name}: {file}: tensor {key[:LONGEST]!r}: {fault} ({INDEX})")
        found |= there
    return unwrapped(found)


def no_weights(folder: Path, config: Mapping[str, Any], default: str) -> str:
    """Why a folder has no safetensors; `default`: model class if `architectures` is missing."""
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if not pickles:
        return f"no model.safetensors and no {INDEX}{instead(folder) or elsewhere(folder)}"
    kind = class_of(config, default)
    return (
        f"{pickles[0]} is a pickle, which can run code when it is read; safetensors only."
        f' Convert a file that you trust: python -c "from transformers import {kind};'
        f" {kind}.from_pretrained('{folder}').save_pretrained('NEW_FOLDER')\""
        " (and copy the tokenizer and preprocessor files beside it)"
    )


def class_of(config: Mapping[str, Any], default: str) -> str:
    """The `transformers` class that a configuration names, if it is a plain name."""
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else default
    return first if isinstance(first, str) and first.isidentifier() else default


def read(
    checkpoint: Checkpoint, names: Iterable[str] | None = None, *, strict: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Yield (canonical name, tensor) in canonical order; memory-mapped, read-only by convention.

    Args:
        checkpoint: an inspected checkpoint.
        names: names in `tensors`, `rest`, `buffers` or `aliases`; None: all of `tensors`.
        strict: see `mapped`.

    Raises:
        InputError: a file that changed since it was inspected.
    """
    infos = {
        **checkpoint.tensors, **checkpoint.rest, **checkpoint.buffers, **checkpoint.aliases
    }  # fmt: skip
    wanted = checkpoint.tensors if names is None else set(names)
    chosen = {name: info for name, info in infos.items() if name in wanted}
    return mapped(chosen, checkpoint.name, strict=strict)


def content_hash(checkpoint: Checkpoint) -> str:
    """SHA-256 of configuration and weights; computed once, then cached."""
    return hash_files(hashed_files(checkpoint))


def is_hashed(checkpoint: Checkpoint) -> bool:
    """Whether `content_hash` is cached, so that it reads no weight."""
    return known_hash(hashed_files(checkpoint)) is not None


def hashed_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """Name -> file of configuration and weights."""
    return {file.name: file for file in (checkpoint.described, *checkpoint.files)}


def owner(checkpoint: Checkpoint, name: str) -> str:
    """Member and file of a tensor, which start a message."""
    infos: dict[str, TensorInfo] = {
        **checkpoint.tensors,
        **checkpoint.rest,
        **checkpoint.buffers,
        **checkpoint.aliases,
        **{key: low.down for key, low in checkpoint.factors.items()},
    }
    return f"{checkpoint.name}: {infos[name].file}"
