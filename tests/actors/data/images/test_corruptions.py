"""Corruptions: a row is a function of (image, seed, index, severity), by published parameters."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from actors.data.images.corruptions import CORRUPTIONS, blurred, corrupt
from fusion.errors import InputError

NAMES = list(CORRUPTIONS)
DRAWN = ("gaussian_noise", "impulse_noise", "motion_blur", "spatter")
Images = NDArray[np.uint8]


def natural(count: int = 4, height: int = 32, width: int = 32) -> Images:
    """Shaded shapes on shaded grounds: edges, gradients, and no value at 0 or 255."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / min(height, width)
    out = np.empty((count, 3, height, width))
    for image in out:
        turn = rng.uniform(0, 2 * np.pi)
        image[:] = 0.45 + 0.25 * (np.cos(turn) * (x - 0.5) + np.sin(turn) * (y - 0.5))
        for _ in range(6):
            where, radius = rng.uniform(0, 1, 2), rng.uniform(0.08, 0.3)
            inside = (y - where[0]) ** 2 + (x - where[1]) ** 2 < radius**2
            image[:, inside] = (rng.uniform(0.15, 0.85, (3, 1, 1)) + 0.1 * (x - y))[:, inside]
    return (out.clip(0.05, 0.95) * 255).astype(np.uint8)


def apart(name: str, images: Images, severity: int) -> float:
    found = corrupt(name, images, severity).astype(float)
    return float(np.abs(found - images).mean())


@pytest.mark.parametrize("name", NAMES)
def test_pure_and_of_the_same_kind(name: str) -> None:
    images = natural(2, 30, 45)
    kept = images.copy()
    found = CORRUPTIONS[name](images, 3)
    assert found.dtype == np.uint8
    assert found.shape == images.shape
    np.testing.assert_array_equal(images, kept)
    assert not np.shares_memory(found, images)
    assert not np.array_equal(found, images)
    assert CORRUPTIONS[name](images[:0], 3).shape == (0, 3, 30, 45)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    images = natural(5)
    whole = corrupt(name, images, 2, seed=7)
    np.testing.assert_array_equal(corrupt(name, images, 2, seed=7), whole)
    some = [4, 1, 3]
    part = corrupt(name, images[some], 2, seed=7, indices=some)
    np.testing.assert_array_equal(part, whole[some])


@pytest.mark.parametrize("name", NAMES)
def test_seed_and_index_matter_where_something_is_drawn(name: str) -> None:
    images = np.repeat(natural(1), 2, axis=0)
    found = corrupt(name, images, 2)
    other_seed = corrupt(name, images, 2, seed=1)
    assert np.array_equal(found[0], found[1]) == (name not in DRAWN)
    assert np.array_equal(found, other_seed) == (name not in DRAWN)


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "spatter"])
def test_severity_grows(name: str, side: int) -> None:
    images = natural(8, side, side)
    found = [apart(name, images, severity) for severity in (1, 2, 3, 4, 5)]
    assert found[0] > 0
    if name == "motion_blur":
        # The published (6, 2) and (8, 2) differ in taps of a weight below 1e-9.
        assert found[2] == found[3]
        del found[3]
    assert found == sorted(found)
    assert found[-1] > 1.3 * found[0]


def test_severity_of_spatter_grows_within_water_and_within_mud() -> None:
    images = natural(16)
    found = [apart("spatter", images, severity) for severity in (1, 2, 3, 4, 5)]
    assert 0 < found[0] < found[1] < found[2]
    assert 0 < found[3] < found[4]


@pytest.mark.parametrize(("severity", "sigma"), list(enumerate((0.04, 0.06, 0.08, 0.09, 0.10), 1)))
def test_gaussian_noise_has_the_published_deviation(severity: int, sigma: float) -> None:
    grey = np.full((1, 3, 64, 64), 128, dtype=np.uint8)
    found = corrupt("gaussian_noise", grey, severity) / 255 - 128 / 255
    assert found.std() == pytest.approx(sigma, rel=0.03)
    assert found.mean() == pytest.approx(0, abs=4 * sigma / 110)
    assert np.corrcoef(found[0, 0].ravel(), found[0, 1].ravel())[0, 1] < 0.1


@pytest.mark.parametrize(("severity", "amount"), list(enumerate((0.01, 0.02, 0.03, 0.05, 0.07), 1)))
def test_impulse_noise_hits_the_published_share(severity: int, amount: float) -> None:
    grey = np.full((4, 3, 64, 64), 128, dtype=np.uint8)
    found = corrupt("impulse_noise", grey, severity)
    assert set(np.unique(found)) == {0, 128, 255}
    assert (found != 128).mean() == pytest.approx(amount, rel=0.12)
    assert (found == 255).mean() == pytest.approx((found == 0).mean(), rel=0.25)


@pytest.mark.parametrize(("severity", "factor"), list(enumerate((0.75, 0.5, 0.4, 0.3, 0.15), 1)))
def test_contrast_by_the_formula(severity: int, factor: float) -> None:
    images = natural()
    mean = images.astype(float).mean(axis=(2, 3), keepdims=True)
    wanted = np.rint(mean + factor * (images - mean))
    assert np.abs(corrupt("contrast", images, severity) - wanted).max() <= 1
    assert (corrupt("contrast", images, severity) == wanted).mean() > 0.999


def test_jpeg_is_pillows() -> None:
    images = natural(1)
    for severity, quality in enumerate((80, 65, 58, 50, 40), 1):
        file = io.BytesIO()
        Image.fromarray(images[0].transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
        wanted = np.asarray(Image.open(file)).transpose(2, 0, 1)
        np.testing.assert_array_equal(corrupt("jpeg_compression", images, severity)[0], wanted)


def test_pixelate_by_hand() -> None:
    # 40 · 0.65 = 26, 30 · 0.65 = 19: so many different columns and rows are left.
    ramp = np.zeros((1, 3, 30, 40), dtype=np.uint8)
    ramp[:] = np.arange(40) * 6
    found = corrupt("pixelate", ramp, 5)
    assert len(np.unique(found[0, 0, 0])) == 26
    tall = np.ascontiguousarray(ramp.transpose(0, 1, 3, 2))
    np.testing.assert_array_equal(corrupt("pixelate", tall, 5), found.transpose(0, 1, 3, 2))
    flat = np.full((1, 3, 30, 40), 77, dtype=np.uint8)
    np.testing.assert_array_equal(corrupt("pixelate", flat, 5), flat)


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


def test_motion_blur_draws_an_angle_and_has_no_dark_edges() -> None:
    images = np.zeros((40, 3, 32, 32), dtype=np.uint8)
    images[:, :, 16, 16] = 255
    found = corrupt("motion_blur", images, 5)
    slopes = []
    for image in found:
        rows, columns = np.nonzero(image[0])
        assert columns.max() == 16  # to one side only
        slopes.append((16 - rows.mean()) / (16 - columns.mean()))
    assert np.abs(slopes).max() <= 1.01
    assert min(slopes) < -0.5
    assert max(slopes) > 0.5
    flat = np.full((1, 3, 40, 28), 90, dtype=np.uint8)
    np.testing.assert_array_equal(corrupt("motion_blur", flat, 5), flat)


@pytest.mark.parametrize("name", ["motion_blur", "spatter"])
@pytest.mark.parametrize("severity", [2, 5])
def test_lengths_scale_with_the_image(name: str, severity: int) -> None:
    small = natural(6, 32, 32)
    large = np.repeat(np.repeat(small, 4, axis=2), 4, axis=3)
    change = corrupt(name, large, severity).astype(float) - large
    change = change.reshape(6, 3, 32, 4, 32, 4).mean(axis=(3, 5))
    wanted = corrupt(name, small, severity).astype(float) - small
    assert np.corrcoef(change.ravel(), wanted.ravel())[0, 1] > 0.75
    assert np.abs(change).mean() == pytest.approx(np.abs(wanted).mean(), rel=0.25)


def test_water_brightens_and_mud_darkens() -> None:
    images = natural(8)
    water = corrupt("spatter", images, 3).astype(int) - images
    assert water.min() >= 0
    assert water.max() > 40
    bright = np.full((4, 3, 32, 32), 250, dtype=np.uint8)
    mud = corrupt("spatter", bright, 5)
    assert (mud <= 250).all()
    hit = (mud < 250).any(axis=1).mean()
    assert 0.01 < hit < 0.6
    assert mud.transpose(1, 0, 2, 3).reshape(3, -1).min(axis=1).tolist() == [63, 42, 20]


@pytest.mark.parametrize("severity", [0, 6, -1, 2.5, "3", None, True])
def test_severities_that_are_none(severity: object) -> None:
    with pytest.raises(InputError, match=r"severity: .*; an integer from 1 to 5 allowed"):
        corrupt("contrast", natural(1), severity)  # type: ignore[arg-type]


def test_wrong_input() -> None:
    images = natural(2)
    with pytest.raises(InputError, match="'fog'; one of gaussian_noise, impulse_noise"):
        corrupt("fog", images, 1)
    with pytest.raises(InputError, match=r"float64 \[2, 3, 32, 32\]; uint8"):
        corrupt("contrast", images / 255, 1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"sides of at least 28"):
        corrupt("contrast", images[:, :, :27], 1)
    with pytest.raises(InputError, match=r"\[2, 32, 32\]"):
        corrupt("contrast", images[:, 0], 1)
    with pytest.raises(InputError, match="indices: 1 for 2 images"):
        corrupt("contrast", images, 1, indices=[0])
    with pytest.raises(InputError, match="smallest index -1; >= 0"):
        corrupt("contrast", images, 1, indices=[0, -1])


def test_imports_no_torch() -> None:
    script = (
        "import sys, numpy as np; from actors.data.images.corruptions import CORRUPTIONS\n"
        "for f in CORRUPTIONS.values(): f(np.zeros((1, 3, 32, 32), np.uint8), 1)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
