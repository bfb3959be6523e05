"""Expert embeddings on disk: computed once, under content hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.atomic import replacing
from actors.metrics import count


@dataclass(frozen=True)
class EmbeddingCache:
    """Image embeddings [N, D] of an expert on the rows of a pixel file."""

    root: Path
    identity: Mapping[str, str]
    """Expert -> what its embeddings depend on besides the pixels: content hashes, dtype."""

    def place(self, expert: str, pixels: Path, indices: NDArray[np.int64] | None) -> Path:
        """The file of an expert's embeddings of these rows, which may not be there yet."""
        rows = b"all" if indices is None else indices.tobytes()
        text = f"{self.identity[expert]} {pixels.name} ".encode()
        return self.root / f"{hashlib.sha256(text + rows).hexdigest()[:32]}.npy"

    def get(
        self,
        expert: str,
        pixels: Path,
        indices: NDArray[np.int64] | None,
        make: Callable[[], Tensor],
    ) -> Tensor:
        """From disk, or made, written under a temporary name and renamed. float32 [N, D].

        The pixel file's name is a content hash itself, so the key is one too.
        """
        path = self.place(expert, pixels, indices)
        there = path.exists()
        count("cache", cache="embeddings", found="hit" if there else "miss")
        if not there:
            with replacing(path) as part, part.open("wb") as file:
                np.save(file, make().numpy())
        return torch.from_numpy(np.load(path))
