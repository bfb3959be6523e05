"""What happens to an image before a model sees it: a CLIP, or the frozen network of a gate.

Two halves: up to uint8 pixels, done once and kept on disk (`pixel_cache.py`); and from there to
normalised floats, done at each forward pass. Together they equal `CLIPImageProcessorPil` and, on
RGB images, `ConvNextImageProcessorPil`.

Imports neither torch nor `fusion` when loaded: processes that only decode start in a tenth of
the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actors.data.images.decode import Unusable
from actors.files.fingerprint import Fingerprint, fingerprint, software

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

BILINEAR = 2
"""Pillow's number of that filter, which is also what torchvision's `Resize` uses."""

RESIZED = 1 << 26
"""Pixels of a resized image, and of what is made on the way to it, at most: 67 million. At 224
pixels that is an aspect ratio of 1,337."""

STRIP = 1 << 22
"""Pixels laid on white at a time."""


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop, rescale, normalise; sizes in pixels."""

    shortest_edge: int | None
    """Resize so that the shorter edge is this long; None: see `resize`."""
    resize: tuple[int, int] | None
    """Resize to exactly (height, width); None: see `shortest_edge`; both None: do not resize."""
    crop: tuple[int, int] | None
    """Centre crop (height, width); None: none."""
    resample: int = 3
    """Pillow's filter; 3 is bicubic."""
    rescale: float = 1 / 255
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    squash: tuple[int, int] | None = None
    """Before all else, resize to exactly (height, width), bilinear, aspect ratio lost, 8 bits: the
    loader of the original DAWE, which its ResNet's preprocessing follows; None: do not."""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of every prepared image."""
        shape = self.crop or self.resize
        assert shape is not None  # `read_preprocess` refuses what would vary from image to image
        return shape

    @property
    def size(self) -> int:
        """The side of every prepared image: they are square."""
        return self.shape[0]

    @property
    def fingerprint(self) -> Fingerprint:
        """Of all of it: what embeddings and features depend on."""
        return fingerprint("preprocess-1", asdict(self))

    @property
    def pixels(self) -> Fingerprint:
        """Of what determines the uint8 pixels; rescaling and normalisation come after them."""
        told = {k: v for k, v in asdict(self).items() if k not in ("rescale", "mean", "std")}
        return fingerprint("pixels-2", told, software("pillow"))

    def to_uint8(self, image: Image) -> NDArray[np.uint8]:
        """An image of 8 bits a channel to uint8 [3, H, W]: RGB, resized, centre-cropped.

        Raises:
            Unusable: too long and narrow; see `resized`.
        """
        # One grey channel is resized once, not three times: the bands of an RGB image are
        # resized independently, so the result is the same to the bit.
        grey = image.mode in ("1", "L") and "transparency" not in image.info
        ready = image.convert("L") if grey else to_rgb(image)
        if self.squash is not None:
            ready = resized(ready, self.squash[::-1], BILINEAR)
        width, height = ready.size
        if self.shortest_edge is not None:
            short, long = min(width, height), max(width, height)
            longer = int(self.shortest_edge * long / short)
            size = (self.shortest_edge, longer) if width <= height else (longer, self.shortest_edge)
            ready = resized(ready, size, self.resample)
        elif self.resize is not None:
            ready = resized(ready, self.resize[::-1], self.resample)
        array = np.asarray(ready)
        array = np.broadcast_to(array, (3, *array.shape)) if grey else array.transpose(2, 0, 1)
        return np.ascontiguousarray(array if self.crop is None else centre(array, self.crop))

    def normalise(self, pixels: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """uint8 [B, 3, H, W] to normalised floats (float32): one multiply-add a channel."""
        import torch

        dtype = dtype or torch.float32
        shape = (1, 3, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float64)
        scale = (self.rescale / std).to(pixels.device, dtype).view(shape)
        shift = (-torch.tensor(self.mean, dtype=torch.float64) / std).to(pixels.device, dtype)
        return torch.addcmul(shift.view(shape), pixels.to(dtype), scale)


def to_rgb(image: Image) -> Image:
    """RGB; transparency is laid on white, as CLIP's processor does."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    from PIL import Image as images

    width, height = image.size
    found = images.new("RGB", image.size)
    for top, bottom in strips(height, width):
        part = image.crop((0, top, width, bottom)).convert("RGBA")
        white = images.new("RGBA", part.size, (255, 255, 255, 255))
        found.paste(images.alpha_composite(white, part).convert("RGB"), (0, top))
    return found


def strips(count: int, length: int) -> Iterator[tuple[int, int]]:
    """`count` lines of `length` pixels in strips of about `STRIP` pixels: (first, last + 1)."""
    step = max(STRIP // length, 1)
    for first in range(0, count, step):
        yield first, min(first + step, count)


def resized(image: Image, size: tuple[int, int], resample: int) -> Image:
    """An image resized to `size` (width, height).

    Raises:
        Unusable: that would take more than `RESIZED` pixels.
    """
    # Pillow resizes along one axis after the other; which comes first is its own affair.
    between = max(size[0] * size[1], size[0] * image.height, image.width * size[1])
    if between > RESIZED:
        raise Unusable(
            f"{image.width} x {image.height} pixels, too long and narrow to be resized to"
            f" {size[0]} x {size[1]}: {between:,} pixels on the way, at most {RESIZED:,} allowed"
        )
    return image.resize(size, resample)


def centre(array: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The middle of [3, H, W]; zeros around it where the image is the smaller."""
    height, width = size
    spare = [max(height - array.shape[1], 0), max(width - array.shape[2], 0)]
    if any(spare):
        before = [math.ceil(pixels / 2) for pixels in spare]
        after = [pixels - first for pixels, first in zip(spare, before, strict=True)]
        array = np.pad(array, ((0, 0), *zip(before, after, strict=True)))
        # The processor places the crop by the size before padding.
        top = (array.shape[1] - spare[0] - height) // 2 + before[0]
        left = (array.shape[2] - spare[1] - width) // 2 + before[1]
        top, left = max(top, 0), max(left, 0)
    else:
        top, left = (array.shape[1] - height) // 2, (array.shape[2] - width) // 2
    return array[:, top : top + height, left : left + width]
