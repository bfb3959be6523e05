"""Images as inputs of a model: uint8 pixels on disk, which the first segment normalises."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from actors.data.images.corruptions import SMALLEST
from actors.data.images.pixel_cache import Pixels, Progress, open_pixels, prepare
from actors.data.images.preprocess import Preprocess
from actors.data.protocol import Activations, RowShape
from actors.data.task import Kind, Task
from actors.files.fingerprint import Fingerprint
from fusion.errors import InputError

if TYPE_CHECKING:  # torch takes seconds to load
    from torch import Tensor


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

    def check_corruption(self, what: str) -> None:
        """Raise InputError where images are too small for corruptions."""
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

    def open(self, path: Path) -> Pixels:
        """Open a pixel file, memory-mapped.

        Raises:
            InputError: missing or damaged.
        """
        return open_pixels(path)

    def collate(self, parts: Sequence[Mapping[str, Tensor]]) -> Activations:
        """{"pixels": uint8 [B, 3, H, W]}."""
        import torch  # late: processes that only decode do not need it

        return {"pixels": torch.cat([part["pixels"] for part in parts])}
