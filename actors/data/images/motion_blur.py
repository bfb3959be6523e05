"""Motion blur as ImageMagick makes it: half a Gaussian along a line, for `corruptions.py`."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def blurred(
    x: NDArray[np.float64], radius: int, sigma: float, degrees: float
) -> NDArray[np.float64]:
    """Σ_i k_i·x moved by i pixels along a direction, i = 0 … 2·radius; edges go on.

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
