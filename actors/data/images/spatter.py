"""Layers of drops for the `spatter` corruption of `corruptions.py`.

OpenCV's functions by their definitions, in NumPy and SciPy: Canny edges, distance transform,
histogram equalisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import (
    correlate,
    distance_transform_edt,
    gaussian_filter,
    label,
    sobel,
    uniform_filter,
)


def mud_layer(liquid: NDArray[np.float64], softness: float) -> NDArray[np.float64]:
    """Opacity of mud at each pixel, 0 or 0.8 to 1: the liquid's mask, softened and clipped."""
    mask: NDArray[np.float64] = gaussian_filter(
        (liquid > 0).astype(np.float64), softness, mode="nearest"
    )
    mask[mask < 0.8] = 0
    return mask


def enlarged(layer: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    """Resize a layer [h, w] to [H, W], bilinear."""
    from PIL import Image

    if layer.shape == tuple(shape):
        return layer
    image = Image.fromarray(layer.astype(np.float32))
    grown = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(grown, dtype=np.float64)


def water_layer(liquid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Amount of water colour at each pixel, at most 1, from the liquid above the threshold.

    Computed as: distance from the drops' edges, cut at 20, smoothed, histogram-equalised, lit from
    one side, times the liquid.
    """
    drops = np.floor(liquid.clip(0, 1) * 255)
    found = edges(drops, 50, 150)
    away = distance_transform_edt(~found) if found.any() else np.full(liquid.shape, 20.0)
    smooth = np.floor(uniform_filter(np.minimum(away, 20), 3, mode="mirror"))
    light = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=np.float64)
    lit = correlate(evened(smooth), light, mode="mirror").clip(0, 255)
    layer = drops * uniform_filter(lit, 3, mode="mirror")
    top = float(np.max(layer))
    # The generator divides by zero where nothing passes the threshold; here the image is kept.
    return np.asarray(layer / top if top > 0 else layer)


def evened(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Histogram equalisation of whole numbers 0 to 255: the lowest becomes 0, the highest 255."""
    counts = np.bincount(values.astype(np.int64).ravel(), minlength=256)
    below = np.cumsum(counts)
    first = counts[np.flatnonzero(counts)[0]]
    if first == values.size:
        return values
    table = np.rint((below - first).clip(0) * 255.0 / (values.size - first))
    return np.asarray(table[values.astype(np.int64)], dtype=np.float64)


def edges(image: NDArray[np.float64], low: float, high: float) -> NDArray[np.bool_]:
    """Canny edges: thin ridges of |dx| + |dy| (3 × 3 Sobel) above `low` that touch `high`."""
    dx, dy = sobel(image, axis=1, mode="nearest"), sobel(image, axis=0, mode="nearest")
    size = np.abs(dx) + np.abs(dy)
    around = np.pad(size, 1)
    height, width = image.shape

    def at(down: int, right: int) -> NDArray[np.float64]:
        return around[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    flat = np.abs(dy) <= np.abs(dx) * math.tan(math.pi / 8)
    steep = np.abs(dy) >= np.abs(dx) * math.tan(3 * math.pi / 8)
    falls = dx * dy >= 0
    one = np.select([flat, steep, falls], [at(0, -1), at(-1, 0), at(-1, -1)], at(-1, 1))
    two = np.select([flat, steep, falls], [at(0, 1), at(1, 0), at(1, 1)], at(1, -1))
    ridge = (size > one) & (size >= two) & (size > low)
    parts, count = label(ridge, structure=np.ones((3, 3)))
    strong = np.zeros(count + 1, dtype=bool)
    strong[np.unique(parts[ridge & (size > high)])] = True
    strong[0] = False
    return np.asarray(strong[parts])
