"""Disk cache of expert embeddings, keyed by content hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.artifacts.recipe import BASE
from actors.cluster.metrics import count
from actors.files.fingerprint import Fingerprint, fingerprint, software
from actors.files.matrix_file import matrix_shape, open_matrix, write_matrix
from actors.pool.pool import Pool
from fusion.merged_layers.precision import Precision


def embedding_cache(
    root: Path, pool: Pool, device: str, numbers: Mapping[str, object]
) -> EmbeddingCache:
    """The cache of a pool's embeddings, keyed by everything that they are computed from.

    Args:
        root: the cache folder.
        pool: an opened pool: base, experts, and the base's preprocessing.
        device: the kind of device that computes them.
        numbers: other settings that change numbers, such as dtypes.

    Raises:
        InputError: unsupported preprocessing.
    """
    base, inputs = pool.base, pool.family.inputs(pool.base)
    where = [torch.device(device).type, dict(numbers), software("torch", "transformers")]
    members = {BASE: base, **pool.experts}
    return EmbeddingCache(
        root / "embeddings",
        {
            name: fingerprint(
                "tower-1", base.fingerprint, member.fingerprint, inputs.fingerprint, *where
            )
            for name, member in members.items()
        },
    )


@dataclass(frozen=True)
class EmbeddingCache:
    """Embeddings [N, D] of an expert on rows of a file of prepared rows."""

    root: Path
    identity: Mapping[str, Fingerprint]
    """Expert -> fingerprint of everything but the rows; see `embedding_cache`."""

    def place(
        self,
        expert: str,
        file: Path,
        indices: NDArray[np.int64] | None,
        precision: Precision = "fp32",
    ) -> Path:
        """Path of an expert's embeddings of these rows; the file may not exist yet."""
        rows = b"all" if indices is None else indices.tobytes()
        kind = "" if precision == "fp32" else f"{precision} "
        text = f"embeddings-3 {self.identity[expert]} {file.name} {kind}".encode()
        return self.root / f"{hashlib.sha256(text + rows).hexdigest()[:32]}.arrow"

    def get(
        self,
        expert: str,
        file: Path,
        indices: NDArray[np.int64] | None,
        make: Callable[[], Tensor],
        precision: Precision = "fp32",
    ) -> Tensor:
        """Read embeddings, computing them first if missing: float32 [N, D], memory-mapped.

        The name of the rows' file is a content hash, so the key is one too. A damaged file is
        computed again. `precision`: of the products of activations.

        Raises:
            InputError: the file cannot be written.
        """
        path = self.place(expert, file, indices, precision)
        there = matrix_shape(path) is not None
        count("cache", cache="embeddings", found="hit" if there else "miss")
        if not there:
            made = make().numpy()
            ids = np.arange(len(made)) if indices is None else indices
            write_matrix(path, ids, made.shape[1], [made])
        return open_matrix(path, "embeddings")
