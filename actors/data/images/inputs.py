"""Images as inputs of a model: uint8 pixels on disk, normalised by the model's first segment."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actors.data.images.corruptions import SMALLEST
from actors.data.images.pixel_cache import Pixels, Progress, open_pixels, prepare
from actors.data.images.preprocess import Preprocess
from actors.data.protocol import Activations, RowShape
from actors.data.task import Task
from actors.files.fingerprint import Fingerprint
from fusion.errors import InputError

if TYPE_CHECKING:  # torch takes seconds to load
    from torch import Tensor


@dataclass(frozen=True)
class ImageInputs:
    """`Inputs` of models that read images of one size."""

    preprocess: Preprocess

    @property
    def fingerprint(self) -> Fingerprint:
        """Of resizing, cropping, rescaling and normalisation."""
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

    def check_corruption(self, what: str) -> None:
        """Raise InputError where images are smaller than corruptions are defined for."""
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
        """Decode what the cache lacks. See `pixel_cache.prepare`."""
        return prepare(tasks, needed, self.preprocess, root, progress)

    def open(self, path: Path) -> Pixels:
        """A memory-mapped pixel file.

        Raises:
            InputError: missing or damaged.
        """
        return open_pixels(path)

    def collate(self, parts: Sequence[Mapping[str, Tensor]]) -> Activations:
        """{"pixels": uint8 [B, 3, H, W]}."""
        import torch  # late: processes that only decode need none of it

        return {"pixels": torch.cat([part["pixels"] for part in parts])}
