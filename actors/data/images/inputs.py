"""Images as inputs of a model: uint8 pixels on disk, which the first segment normalises."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from actors.data.images.corruptions import CORRUPTIONS, SMALLEST
from actors.data.images.pixel_cache import Pixels, Progress, open_pixels, prepare
from actors.data.images.preprocess import Preprocess
from actors.data.images.shifted_pixels import corrupted
from actors.data.protocol import Activations, Corruption, PreparedRows, RowShape
from actors.data.task import Kind, Task
from actors.data.task_rows import Rows
from actors.files.fingerprint import Fingerprint
from fusion.errors import InputError

if TYPE_CHECKING:  # torch takes seconds to load
    from torch import Tensor


PREVIEW = 64
"""Longest side of a picture for people."""


@dataclass(frozen=True)
class ImageInputs:
    """`Inputs` of models that take images of one size."""

    preprocess: Preprocess
    kind: ClassVar[Kind] = "image"

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of resizing, cropping, rescaling and normalisation."""
        return self.preprocess.fingerprint

    @property
    def row(self) -> RowShape:
        """uint8 pixels [3, H, W]."""
        return RowShape({"pixels": ("uint8", (3, *self.preprocess.shape))})

    @property
    def about(self) -> str:
        """Side of an image in pixels."""
        return f"{self.preprocess.size} px"

    @property
    def dimensions(self) -> str:
        """Height and width in pixels."""
        height, width = self.preprocess.shape
        return f"{height} × {width} px"

    def check_corruption(self, name: str, what: str) -> None:
        """Raise InputError for a corruption that is not of images, and for images too small."""
        if name not in CORRUPTIONS:
            raise InputError(
                f"{what}: of texts; the pool's models read images: one of"
                f" {', '.join(CORRUPTIONS)} allowed"
            )
        if min(self.preprocess.shape) < SMALLEST:
            raise InputError(
                f"{what}: images of {self.preprocess.shape} pixels; sides of {SMALLEST} at least"
                " needed"
            )

    def prepare(
        self,
        tasks: Mapping[str, Task],
        needed: Collection[tuple[str, str]],
        root: Path,
        progress: Progress | None = None,
    ) -> dict[tuple[str, str], Path]:
        """Decode the splits that are not in the cache. See `pixel_cache.prepare`."""
        return prepare(tasks, needed, self.preprocess, root, progress)

    def corrupted(
        self, rows: Rows, task: Task, split: str, corruption: Corruption, root: Path
    ) -> Rows:
        """These rows with corrupted images, in a file of their own. See `shifted_pixels.py`."""
        name, severity, seed = corruption.name, corruption.severity, corruption.seed
        return corrupted(rows, name, severity, root, seed=seed)

    def open(self, path: Path) -> Pixels:
        """Open a pixel file, memory-mapped.

        Raises:
            InputError: missing or damaged.
        """
        return open_pixels(path)

    def preview(self, rows: PreparedRows, at: Tensor) -> list[str]:
        """Pictures of these rows: data URLs of JPEG files of at most `PREVIEW` pixels a side."""
        from PIL import Image  # late: loads for a tenth of a second, and only reports need it

        found = []
        for pixels in rows.take(at)["pixels"]:
            picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
            picture.thumbnail((PREVIEW, PREVIEW))
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=85)
            found.append(f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}")
        return found

    def gather(
        self, parts: Sequence[tuple[PreparedRows, Tensor]], empty: Callable[..., Tensor]
    ) -> Activations:
        """{"pixels": uint8 [B, 3, H, W]}; see `Gathering.gather`."""
        import torch  # late: processes that only decode do not need it

        count, at = sum(len(rows) for _, rows in parts), 0
        found = empty((count, 3, *self.preprocess.shape), torch.uint8)
        for file, rows in parts:
            assert isinstance(file, Pixels)
            file.copy_to(found[at : at + len(rows)], rows)
            at += len(rows)
        return {"pixels": found}

    def collate(self, parts: Sequence[Mapping[str, Tensor]]) -> Activations:
        """{"pixels": uint8 [B, 3, H, W]}."""
        import torch  # late: processes that only decode do not need it

        return {"pixels": torch.cat([part["pixels"] for part in parts])}
