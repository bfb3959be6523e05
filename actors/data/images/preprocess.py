"""Image preprocessing for CLIP and for the frozen feature network of a gate.

Two halves: up to uint8 pixels, computed once and kept on disk (`pixel_cache.py`); then normalised
floats, computed at each forward pass. Together they equal `CLIPImageProcessorPil` and, on RGB
images, `ConvNextImageProcessorPil`.

Imports neither torch nor `fusion` at load time: processes that only decode start ten times faster.
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
        assert shape is not None  # `read_preprocess` refuses sizes that vary between images
        return shape

    @property
    def size(self) -> int:
        """Side of every prepared image, which is square, in pixels."""
        return self.shape[0]

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of all steps, on which embeddings and features depend."""
        return fingerprint("preprocess-1", asdict(self))

    @property
    def pixels(self) -> Fingerprint:
        """Fingerprint of the steps up to uint8 pixels, before rescaling and normalisation."""
        fields = {k: v for k, v in asdict(self).items() if k not in ("rescale", "mean", "std")}
        return fingerprint("pixels-2", fields, software("pillow"))

    def to_uint8(self, image: Image) -> NDArray[np.uint8]:
        """Turn an image of 8 bits a channel into uint8 [3, H, W]: RGB, resized, centre-cropped.

        Raises:
            Unusable: the image is too long and narrow; see `resized`.
        """
        # A grey channel is resized once instead of three times: Pillow resizes the bands of an RGB
        # image independently, so the result has the same bits.
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
        """Normalise uint8 [B, 3, H, W] to floats (default float32): one multiply-add a channel."""
        import torch

        dtype = dtype or torch.float32
        return normalised(pixels, *self.constants(pixels.device, dtype))

    def constants(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Scale and shift of each channel for `normalised`, [1, 3, 1, 1] each."""
        import torch

        std = torch.tensor(self.std, dtype=torch.float64)
        both = self.rescale / std, -torch.tensor(self.mean, dtype=torch.float64) / std
        scale, shift = (each.to(device, dtype).view(1, 3, 1, 1) for each in both)
        return scale, shift


def normalised(pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """shift + pixels·scale in the dtype of `scale`, with uint8 pixels [B, 3, H, W]."""
    import torch

    return torch.addcmul(shift, pixels.to(scale.dtype), scale)


def to_rgb(image: Image) -> Image:
    """Convert to RGB; transparent pixels are laid on white, as in CLIP's processor."""
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
    """Split `count` lines of `length` pixels into strips of about `STRIP` pixels: (first, end)."""
    step = max(STRIP // length, 1)
    for first in range(0, count, step):
        yield first, min(first + step, count)


def resized(image: Image, size: tuple[int, int], resample: int) -> Image:
    """Resize an image to `size` (width, height).

    Raises:
        Unusable: the intermediate image would have more than `RESIZED` pixels.
    """
    # Pillow resizes along one axis after the other, in an order that it chooses.
    between = max(size[0] * size[1], size[0] * image.height, image.width * size[1])
    if between > RESIZED:
        raise Unusable(
            f"{image.width} x {image.height} pixels, too long and narrow to be resized to"
            f" {size[0]} x {size[1]}: {between:,} pixels on the way, at most {RESIZED:,} allowed"
        )
    return image.resize(size, resample)


def centre(array: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Centre crop of [3, H, W]; smaller images are padded with zeros."""
    height, width = size
    spare = [max(height - array.shape[1], 0), max(width - array.shape[2], 0)]
    if any(spare):
        before = [math.ceil(pixels / 2) for pixels in spare]
        after = [pixels - first for pixels, first in zip(spare, before, strict=True)]
        array = np.pad(array, ((0, 0), *zip(before, after, strict=True)))
        # The processor computes the crop's position from the size before padding.
        top = (array.shape[1] - spare[0] - height) // 2 + before[0]
        left = (array.shape[2] - spare[1] - width) // 2 + before[1]
        top, left = max(top, 0), max(left, 0)
    else:
        top, left = (array.shape[1] - height) // 2, (array.shape[2] - width) // 2
    return array[:, top : top + height, left : left + width]
