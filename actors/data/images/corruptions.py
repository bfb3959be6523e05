"""Common image corruptions: distribution shifts at five severities, seeded for each image.

Parameters are those of the CIFAR-10-C generator (`make_cifar_c.py` of hendrycks/robustness), which
the published shift results of DAWE use at severity 2. All differences from it:

* A row depends on (seed, index of the row), never on its batch or on other rows. An image draws the
  same random numbers at all severities, so that only the severity changes.
* The generator assumes 32 × 32 images. Here lengths in pixels (motion blur, spatter) are multiplied
  by max(1, shorter side / 32), and pixelate uses fractions of the image's sides, so that a
  corrupted image looks alike at any size. Noise per pixel and JPEG's 8 × 8 blocks are not rescaled.
* Results are rounded to 8 bits; the generator truncates, which darkens by half a step.
* Motion blur is ImageMagick's, computed here. Spatter's edges, distances and histogram follow the
  definitions of the OpenCV functions that the generator calls, not their fixed-point arithmetic.

Imports no torch: processes that only prepare images start ten times faster.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Images: TypeAlias = NDArray[np.uint8]
"""[N, 3, H, W]."""
Unit: TypeAlias = NDArray[np.float64]
"""One image in [0, 1], [3, H, W], or one channel of it."""

SOURCE_SIDE = 32
SMALLEST = 28
SEVERITIES = (1, 2, 3, 4, 5)


def gaussian_noise(
    images: Images, severity: int, *, seed: int = 0, indices: Sequence[int] | None = None
) -> Images:
    """Independent normal noise on every value of [0, 1], clipped: σ .04, .06, .08, .09, .10.

    Source: hendrycks/robustness, `make_cifar_c.py`, `gaussian_noise`.
    """
    sigma = (0.04, 0.06, 0.08, 0.09, 0.10)[level(severity)]
    return each(images, seed, indices, lambda x, rng: x + sigma * rng.standard_normal(x.shape))


def impulse_noise(
    images: Images, severity: int, *, seed: int = 0, indices: Sequence[int] | None = None
) -> Images:
    """Salt and pepper, a value (not a pixel) at a time: a fraction .01, .02, .03, .05, .07.

    Half of them, by chance, become 1, the others 0.

    Source: hendrycks/robustness, `make_cifar_c.py`, `impulse_noise` (scikit-image's `s&p`).
    """
    amount = (0.01, 0.02, 0.03, 0.05, 0.07)[level(severity)]

    def one(x: Unit, rng: np.random.Generator) -> Unit:
        hit, salt = rng.random(x.shape) < amount, rng.random(x.shape) < 0.5
        return np.where(hit, salt.astype(np.float64), x)

    return each(images, seed, indices, one)


def motion_blur(
    images: Images, severity: int, *, seed: int = 0, indices: Sequence[int] | None = None
) -> Images:
    """Half a Gaussian along a line; (radius, σ) (6,1), (6,1.5), (6,2), (8,2), (9,2.5) at 32 px.

    2·radius + 1 taps exp(−i²/2σ²), normalised, i steps of one pixel to one side in a direction
    U(−45°, 45°) from the horizontal; beyond the edge its pixels go on.

    Source: hendrycks/robustness, `make_cifar_c.py`, `motion_blur`; ImageMagick's `MotionBlurImage`.
    """
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[level(severity)]

    def one(x: Unit, rng: np.random.Generator) -> Unit:
        stretch = scale_of(x)
        return blurred(x, round(radius * stretch), sigma * stretch, rng.uniform(-45, 45))

    return each(images, seed, indices, one)


def blurred(
    x: NDArray[np.float64], radius: int, sigma: float, degrees: float
) -> NDArray[np.float64]:
    """Σ_i k_i·x shifted by i pixels along a direction, i = 0 … 2·radius; edge pixels are repeated.

    Args:
        x: [3, H, W].
        radius: in pixels.
        sigma: of the weights k_i ∝ exp(−i²/2σ²), in pixels.
        degrees: the direction, from the horizontal.

    Source: ImageMagick, `MotionBlurImage`: steps are rounded by ⌈i·cos − ½⌉, ⌈i·sin − ½⌉.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    angle = math.radians(degrees)
    down = np.ceil(steps * math.sin(angle) - 0.5).astype(int)
    right = np.ceil(steps * math.cos(angle) - 0.5).astype(int)
    reach = 2 * radius + 1
    height, width = x.shape[1:]
    wide = np.pad(x, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    total = np.zeros_like(x)
    for weight, dy, dx in zip(weights, down, right, strict=True):
        if weight < 1e-6:  # together less than a thousandth of an 8-bit step
            break
        top, left = reach + dy, reach + dx
        total += weight * wide[:, top : top + height, left : left + width]
    return total


def contrast(
    images: Images, severity: int, *, seed: int = 0, indices: Sequence[int] | None = None
) -> Images:
    """(x − m)·f + m with the image's mean m of each channel; f .75, .5, .4, .3, .15.

    Uses no random numbers: seed and indices have no effect.

    Source: hendrycks/robustness, `make_cifar_c.py`, `contrast`.
    """
    factor = (0.75, 0.5, 0.4, 0.3, 0.15)[level(severity)]

    def one(x: Unit, rng: np.random.Generator) -> Unit:
        mean = x.mean(axis=(1, 2), keepdims=True)
        return np.asarray((x - mean) * factor + mean)

    return each(images, seed, indices, one)


def pixelate(
    images: Images, severity: int, *, seed: int = 0, indices: Sequence[int] | None = None
) -> Images:
    """Shrunk to ⌊side·f⌋ and back by box filters; f .95, .9, .85, .75, .65.

    Uses no random numbers: seed and indices have no effect. The generator enlarges every image to
    32 × 32; here the image keeps its size.

    Source: hendrycks/robustness, `make_cifar_c.py`, `pixelate`.
    """
    from PIL import Image

    factor = (0.95, 0.9, 0.85, 0.75, 0.65)[level(severity)]

    def one(x: Images) -> Images:
        image = Image.fromarray(x.transpose(1, 2, 0))
        width, height = image.size
        small = image.resize((int(width * factor), int(height * factor)), Image.Resampling.BOX)
        large = small.resize((width, height), Image.Resampling.BOX)
        return np.asarray(large).transpose(2, 0, 1)

    return stacked(images, seed, indices, lambda x, rng: one(x))


def jpeg_compression(
    images: Images, severity: int, *, seed: int = 0, indices: Sequence[int] | None = None
) -> Images:
    """Through JPEG of quality 80, 65, 58, 50, 40; Pillow halves the colours in both directions.

    Uses no random numbers: seed and indices have no effect.

    Source: hendrycks/robustness, `make_cifar_c.py`, `jpeg_compression`.
    """
    from PIL import Image

    quality = (80, 65, 58, 50, 40)[level(severity)]

    def one(x: Images) -> Images:
        file = io.BytesIO()
        Image.fromarray(x.transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file)).transpose(2, 0, 1)

    return stacked(images, seed, indices, lambda x, rng: one(x))


def spatter(
    images: Images, severity: int, *, seed: int = 0, indices: Sequence[int] | None = None
) -> Images:
    """Drops of water (1 to 3) or mud (4, 5) where smoothed normal noise passes a threshold.

    (mean, deviation, blur σ, threshold, last): (.62, .1, .7, .7, .5), (.65, .1, .8, .7, .5),
    (.65, .3, 1, .69, .5) of water, whose last is the mixing weight; (.65, .1, .7, .69, .6),
    (.65, .1, .5, .68, .6) of mud, whose last is the σ that softens its mask. The layer is drawn
    for a shorter side of at most 32 pixels and enlarged bilinearly.

    The published parameters do not increase the shift with severity by every measure: water
    brightens, mud darkens.

    Source: hendrycks/robustness, `make_cifar_c.py`, `spatter`.
    """
    mean, deviation, sigma, threshold, last = (
        (0.62, 0.1, 0.7, 0.7, 0.5),
        (0.65, 0.1, 0.8, 0.7, 0.5),
        (0.65, 0.3, 1.0, 0.69, 0.5),
        (0.65, 0.1, 0.7, 0.69, 0.6),
        (0.65, 0.1, 0.5, 0.68, 0.6),
    )[level(severity)]
    from scipy.ndimage import gaussian_filter

    from actors.data.images.spatter import enlarged, mud_layer, water_layer

    def one(x: Unit, rng: np.random.Generator) -> Unit:
        shape = tuple(round(side / scale_of(x)) for side in x.shape[1:])
        noise = mean + deviation * rng.standard_normal(shape)
        liquid = gaussian_filter(noise, sigma, mode="nearest")
        liquid[liquid < threshold] = 0
        if severity <= 3:
            layer = enlarged(water_layer(liquid), x.shape[1:]) * last
            return x + layer * PALE_TURQUOISE
        layer = enlarged(mud_layer(liquid, last), x.shape[1:])
        return x * (1 - layer) + layer * BROWN

    return each(images, seed, indices, one)


PALE_TURQUOISE = np.array([175, 238, 238]).reshape(3, 1, 1) / 255
BROWN = np.array([63, 42, 20]).reshape(3, 1, 1) / 255

CORRUPTIONS: Mapping[str, Callable[..., Images]] = {
    function.__name__: function
    for function in (
        gaussian_noise,
        impulse_noise,
        motion_blur,
        contrast,
        pixelate,
        jpeg_compression,
        spatter,
    )
}
"""name -> function(images, severity, *, seed, indices) -> corrupted images, new memory."""


def corrupt(
    name: str,
    images: Images,
    severity: int,
    *,
    seed: int = 0,
    indices: Sequence[int] | None = None,
) -> Images:
    """Apply a corruption by name.

    Args:
        name: a key of `CORRUPTIONS`.
        images: uint8 [N, 3, H, W], sides of at least 28 pixels.
        severity: 1 to 5.
        seed: with a row's index, the seed of its random numbers.
        indices: [N], the rows' numbers in their data set; default 0, 1, ….

    Raises:
        InputError: an unknown name, an invalid severity, or images of another shape or dtype.
    """
    if name not in CORRUPTIONS:
        raise refused(f"corruption: {name!r}; one of {', '.join(CORRUPTIONS)} allowed")
    return CORRUPTIONS[name](images, severity, seed=seed, indices=indices)


def level(severity: int) -> int:
    """Index of a severity in a table of five."""
    if severity not in SEVERITIES or isinstance(severity, bool):
        raise refused(f"severity: {severity!r}; an integer from 1 to 5 allowed")
    return SEVERITIES.index(severity)


def stacked(
    images: Images,
    seed: int,
    indices: Sequence[int] | None,
    function: Callable[[Images, np.random.Generator], NDArray[Any]],
) -> Images:
    """Apply `function` to each image with the image's own random numbers."""
    rows = checked(images, seed, indices)
    out = np.empty_like(images, order="C")
    for row, image, index in zip(out, images, rows, strict=True):
        row[:] = function(image, np.random.default_rng([SALT, seed, index]))
    return out


SALT = zlib.crc32(b"corruptions")
"""So that no other user of (seed, index) draws the same numbers."""


def each(
    images: Images,
    seed: int,
    indices: Sequence[int] | None,
    function: Callable[[Unit, np.random.Generator], Unit],
) -> Images:
    """As `stacked`, for functions on [0, 1]: results are clipped and rounded to 8 bits."""

    def one(image: Images, rng: np.random.Generator) -> NDArray[Any]:
        return np.asarray(np.rint(function(image / 255, rng).clip(0, 1) * 255))

    return stacked(images, seed, indices, one)


def checked(images: Images, seed: int, indices: Sequence[int] | None) -> list[int]:
    """Check images, seed and indices, and return the rows' numbers.

    Raises:
        InputError: images of another shape or dtype, a wrong number of indices, negative numbers.
    """
    fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] == 3
    if not fits or min(images.shape[2:]) < SMALLEST:
        raise refused(
            f"images: {images.dtype} {list(images.shape)};"
            f" uint8 [N, 3, H, W] with sides of at least {SMALLEST} needed"
        )
    rows = list(range(len(images))) if indices is None else [int(index) for index in indices]
    if len(rows) != len(images):
        raise refused(f"indices: {len(rows)} for {len(images)} images")
    if seed < 0 or min(rows, default=0) < 0:
        raise refused(f"seed {seed}, smallest index {min(rows, default=0)}; >= 0 needed")
    return rows


def refused(line: str) -> Exception:
    """An InputError; imported here because the import brings torch."""
    from fusion.errors import InputError

    return InputError(line)


def scale_of(x: Unit) -> float:
    """Ratio of the shorter side to the generator's 32 pixels, at least 1."""
    return float(max(1.0, min(x.shape[-2:]) / SOURCE_SIDE))
