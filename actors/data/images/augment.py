"""Image augmentation for training: crops, flips, RandAugment, mixup.

Random numbers come from a generator that the caller seeds. Axes: B batch, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

Augmentation: TypeAlias = Literal["none", "crop", "flip", "crop_flip", "randaugment"]

STEEPEST = 30
"""Largest magnitude of RandAugment."""


def augmented(
    images: Tensor,
    kind: Augmentation,
    rng: np.random.Generator,
    *,
    crop_scale: float = 0.9,
    operations: int = 2,
    magnitude: float = 9.0,
) -> Tensor:
    """Augment uint8 [B, 3, H, W]; `none` returns the input.

    Args:
        images: images as prepared for the model.
        kind: `crop`, `flip` (each image with probability ½), both in this order, or `randaugment`.
        rng: the generator to draw from.
        crop_scale: smallest fraction of the area that a crop keeps.
        operations: number of RandAugment operations for each image.
        magnitude: magnitude of RandAugment, 0 to 30.
    """
    if kind == "randaugment":
        return randaugment(images, rng, operations, magnitude)
    if kind in ("crop", "crop_flip"):
        images = cropped(images, rng, crop_scale)
    if kind in ("flip", "crop_flip"):
        images = flipped(images, rng)
    return images


def cropped(images: Tensor, rng: np.random.Generator, smallest: float) -> Tensor:
    """A random crop of each image, resized to its size by bicubic interpolation.

    The area is U(smallest, 1) of the image's, the aspect ratio exp U(ln ¾, ln 4/3), as in
    torchvision's `RandomResizedCrop`; a side longer than the image's is clipped (torchvision draws
    again). Positions are not rounded to pixels.
    """
    count = len(images)
    area = rng.uniform(smallest, 1.0, count)
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), count))
    width, height = np.minimum(np.sqrt(area * ratio), 1), np.minimum(np.sqrt(area / ratio), 1)
    # In grid_sample's coordinates an image spans [-1, 1].
    x, y = (rng.uniform(-1, 1, count) * (1 - side) for side in (width, height))
    zero = np.zeros(count)
    affine = np.stack([np.stack([width, zero, x], 1), np.stack([zero, height, y], 1)], 1)
    theta = torch.from_numpy(affine).float().to(images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    found = F.grid_sample(
        images.float(), grid, mode="bicubic", padding_mode="border", align_corners=False
    )
    return found.round().clamp(0, 255).to(torch.uint8)


def flipped(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Flip each image horizontally with probability ½."""
    chosen = torch.from_numpy(rng.random(len(images)) < 0.5).to(images.device)
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(-1), images)


def randaugment(
    images: Tensor, rng: np.random.Generator, operations: int, magnitude: float
) -> Tensor:
    """Apply `operations` of the 14 of `OPERATIONS`, drawn for each image, at one magnitude.

    Operations with a direction take either with probability ½; new pixels at the edges are black.

    Source: Cubuk et al. 2020, arXiv:1909.13719; ranges of torchvision's `RandAugment` (31 bins),
    here without bins. Computed by Pillow, image by image.
    """
    strength, out = magnitude / STEEPEST, []
    for image in images.cpu().numpy():
        picture = Image.fromarray(image.transpose(1, 2, 0))
        for _ in range(operations):
            change = OPERATIONS[str(rng.choice(NAMES))]
            picture = change(picture, strength * (1 if rng.random() < 0.5 else -1))
        out.append(np.asarray(picture).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(out)).to(images.device)


Change: TypeAlias = Callable[[Image.Image, float], Image.Image]
"""(image, strength in [-1, 1]) -> image; operations without a direction ignore the sign."""


def moved(
    image: Image.Image, matrix: tuple[float, float, float, float, float, float]
) -> Image.Image:
    """Affine transform: each pixel of the result is taken from the position that `matrix` gives."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Change:
    """Brightness, colour, contrast or sharpness times 1 ± 0.9 at most."""
    return lambda image, s: kind(image).enhance(1 + 0.9 * s)


OPERATIONS: Mapping[str, Change] = {
    "identity": lambda image, s: image,
    "shear_x": lambda image, s: moved(image, (1, 0.3 * s, 0, 0, 1, 0)),
    "shear_y": lambda image, s: moved(image, (1, 0, 0, 0.3 * s, 1, 0)),
    "translate_x": lambda image, s: moved(image, (1, 0, 150 / 331 * s * image.width, 0, 1, 0)),
    "translate_y": lambda image, s: moved(image, (1, 0, 0, 0, 1, 150 / 331 * s * image.height)),
    "rotate": lambda image, s: image.rotate(30 * s),
    "brightness": enhanced(ImageEnhance.Brightness),
    "color": enhanced(ImageEnhance.Color),
    "contrast": enhanced(ImageEnhance.Contrast),
    "sharpness": enhanced(ImageEnhance.Sharpness),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * abs(s))),
    "solarize": lambda image, s: ImageOps.solarize(image, round(255 * (1 - abs(s)))),
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
}
NAMES = tuple(OPERATIONS)


def mixed(pixels: Tensor, alpha: float, rng: np.random.Generator) -> tuple[Tensor, Tensor, float]:
    """Mixup: λ·x + (1 − λ)·x[order], with one λ ~ Beta(alpha, alpha) and one order for the batch.

    Args:
        pixels: [B, …], floating point.
        alpha: above 0.
        rng: the generator to draw from.

    Returns:
        The mixture, the order int64 [B], λ.

    Source: Zhang et al. 2018, arXiv:1710.09412, and its code.
    """
    share = float(rng.beta(alpha, alpha))
    order = torch.from_numpy(rng.permutation(len(pixels))).to(pixels.device)
    return share * pixels + (1 - share) * pixels[order], order, share
