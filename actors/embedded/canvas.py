"""Shared parts of drawn images: a supersampled canvas, colours near a given one, camera noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels: TypeAlias = NDArray[np.uint8]
"""One RGB image: [SIZE, SIZE, 3]."""
Field: TypeAlias = NDArray[np.floating]
"""Real numbers, one a pixel: [SIZE, SIZE], or [SIZE, SIZE, 3] where they are colours."""
Rng: TypeAlias = np.random.Generator
Colour: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]

SIZE = 32
"""Side of every image of the pool, in pixels."""
SUPER = 3
"""Drawn this many times larger, then averaged down: smooth edges at any position."""


NOISE = 5.0
"""Standard deviation of the sensor noise, in grey levels."""
LIGHT = 0.2
"""Standard deviation of the slope of the light over the image; 1 is the whole brightness."""
JITTER = 1.0
"""Objects are moved by at most this, in pixels."""
TILT = 6.0
"""Objects are turned by at most this, in degrees."""


def near(middle: Colour, rng: Rng, spread: float = 35.0) -> Colour:
    """A random colour; each channel differs from `middle` by at most `spread`."""
    return colour(np.clip(np.asarray(middle) + rng.uniform(-spread, spread, 3), 0, 255))


def colour(values: Sequence[float] | NDArray[np.generic]) -> Colour:
    """Three numbers as the integer tuple that Pillow needs."""
    red, green, blue = (int(value) for value in values)
    return red, green, blue


def drawn(background: Colour, paint: Callable[[ImageDraw.ImageDraw, float], None]) -> Pixels:
    """An image painted by `paint(draw, unit)`; `unit` is the length of one final pixel."""
    side = SIZE * SUPER
    image = Image.new("RGB", (side, side), background)
    paint(ImageDraw.Draw(image), float(SUPER))
    return np.asarray(image.reduce(SUPER))


def photographed(pixels: NDArray[np.generic], rng: Rng) -> Pixels:
    """`pixels` [SIZE, SIZE, 3] with light from one side and sensor noise."""
    slope = rng.normal(0, LIGHT, 2)
    grid = np.linspace(-0.5, 0.5, SIZE)
    light = 1 + slope[0] * grid[:, None, None] + slope[1] * grid[None, :, None]
    out: Field = pixels * light + rng.normal(0, NOISE, (SIZE, SIZE, 3))
    pixels8: Pixels = np.clip(out, 0, 255).astype(np.uint8)
    return pixels8


def ramp(values: Field, low: Colour, high: Colour) -> Field:
    """Grey `values` in [0, 1], [SIZE, SIZE], as colours between `low` and `high`."""
    start, stop = np.asarray(low, float), np.asarray(high, float)
    colours: Field = start + values[..., None] * (stop - start)
    return colours


def smooth_field(rng: Rng, cells: int) -> Field:
    """A random field [SIZE, SIZE] in [0, 1] whose features are about SIZE / `cells` pixels wide."""
    coarse = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
    field = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), float)
    low, high = field.min(), field.max()
    stretched: Field = (field - low) / max(high - low, 1e-6)
    return stretched
