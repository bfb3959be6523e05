"""Motion blur: weights and steps by hand."""

from __future__ import annotations

import numpy as np
import pytest

from actors.data.images.motion_blur import blurred


def test_motion_blur_is_half_a_gaussian_on_a_line() -> None:
    point = np.zeros((3, 33, 33))
    point[:, 16, 16] = 1
    weights = np.exp(-(np.arange(13) ** 2) / (2 * 2.0**2))
    weights /= weights.sum()
    level = blurred(point, 6, 2.0, 0.0)[1]
    np.testing.assert_allclose(level[16, 16:3:-1], weights, atol=1e-6)
    assert level.sum() == pytest.approx(1, abs=1e-5)
    steep = blurred(point, 6, 2.0, 45.0)[1]
    assert {(16 - y, 16 - x) for y, x in np.argwhere(steep)} == {(k, k) for k in range(8)}
    assert steep.sum() == pytest.approx(1, abs=1e-5)
