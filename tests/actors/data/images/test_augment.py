"""Augmentations: deterministic, of the shape that came in, and what they are called."""

import numpy as np
import pytest
import torch

from actors.data.images.augment import (
    NAMES,
    OPERATIONS,
    augmented,
    cropped,
    flipped,
    mixed,
    randaugment,
)
from actors.training.random_numbers import draws


def ramp(count: int = 8, side: int = 32) -> torch.Tensor:
    """Images that grow by 4 a column, and by 1 a row."""
    rows, columns = torch.arange(side).view(-1, 1), torch.arange(side)
    return (4 * columns + rows).to(torch.uint8).expand(count, 3, side, side).contiguous()


@pytest.mark.parametrize("kind", ["crop", "flip", "crop_flip", "randaugment"])
def test_the_same_numbers_make_the_same_images(kind):
    images = ramp()
    before = images.clone()
    one, two = (augmented(images, kind, draws(3, 7, "augmentation")) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == images.shape
    assert one.dtype == torch.uint8
    assert not torch.equal(one, augmented(images, kind, draws(3, 8, "augmentation")))
    assert not torch.equal(one, augmented(images, kind, draws(4, 7, "augmentation")))
    assert torch.equal(images, before)
    assert augmented(images, "none", draws(3, 7, "augmentation")) is images


def test_a_crop_of_a_ramp_is_a_flatter_ramp():
    """Bicubic interpolation keeps straight lines: the slope is the share of the side."""
    found = cropped(ramp(64), draws(0, 1, "x"), 0.25).double()[:, 0, 4:-4, 4:-4]
    across = (found[:, :, -1] - found[:, :, 0]).mean(1) / 23 / 4
    down = (found[:, -1] - found[:, 0]).mean(1) / 23
    assert bool(((across > 0.4) & (across <= 1.01)).all())
    area = across * down
    assert 0.22 < float(area.min()) < 0.45
    assert 0.8 < float(area.max()) < 1.05
    bend = found[:, :, 2:] - 2 * found[:, :, 1:-1] + found[:, :, :-2]
    assert float(bend.abs().max()) <= 2  # roundings


def test_a_flip_is_a_flip_of_about_half():
    images = ramp(400, 8)
    found = flipped(images, draws(0, 1, "x"))
    turned = (found == images.flip(-1)).flatten(1).all(1)
    assert bool((turned | (found == images).flatten(1).all(1)).all())
    assert 160 < int(turned.sum()) < 240


def test_randaugment():
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32)))
    images = noise.to(torch.uint8)
    assert torch.equal(randaugment(images, draws(0, 1, "x"), 0, 30), images)
    near = (randaugment(images, draws(0, 1, "x"), 1, 1).double() - images).abs().mean()
    far = (randaugment(images, draws(0, 1, "x"), 3, 30).double() - images).abs().mean()
    assert float(near) < float(far)
    assert len(NAMES) == 14


@pytest.mark.parametrize("name", NAMES)
def test_each_operation_keeps_size_and_does_something_at_full_strength(name):
    from PIL import Image

    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(40, 200, (32, 32, 3), dtype=np.uint8))
    found = OPERATIONS[name](image, -1.0)
    assert (found.size, found.mode) == (image.size, image.mode)
    same = np.array_equal(np.asarray(found), np.asarray(image))
    assert same == (name == "identity")


def test_mixup_by_hand():
    pixels = torch.arange(6.0).view(3, 2)
    found, order, share = mixed(pixels, 0.3, draws(1, 1, "mixup"))
    assert 0 <= share <= 1
    assert sorted(order.tolist()) == [0, 1, 2]
    expected = [
        [share * a + (1 - share) * b for a, b in zip(row, pixels[at].tolist(), strict=True)]
        for row, at in zip(pixels.tolist(), order.tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected))
    shares = [mixed(pixels, 0.3, draws(1, step, "mixup"))[2] for step in range(200)]
    assert abs(float(np.mean(shares)) - 0.5) < 0.08
    assert float(np.std(shares)) > 0.35  # Beta(0.3, 0.3) lies at the ends
