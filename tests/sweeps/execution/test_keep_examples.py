"""Samples on which two rows differ: which are taken, and how rows look to people."""

from __future__ import annotations

import io
from base64 import b64decode
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from actors.data.images.inputs import PREVIEW, ImageInputs
from actors.data.images.pixel_cache import Pixels
from actors.data.images.preprocessor_config import clip_preprocess
from actors.data.task_rows import Rows, TaskData
from sweeps.execution.keep_examples import EACH, samples


class Numbers:
    """Inputs whose rows look like their places in the file."""

    def open(self, path):
        return SimpleNamespace(labels=torch.arange(100) % 7)

    def preview(self, rows, at):
        return [f"row {place}" for place in at.tolist()]


def data(indices=None) -> TaskData:
    return TaskData("a", Path("head"), {"report": Rows(Path("file"), indices)})


def test_samples_of_both_sides_by_hand():
    first, second = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    answers = [np.array([5, 6, 7, 8], np.int32), np.array([1, 2, 3, 4], np.int32)]
    one, other = samples(Numbers(), data(np.array([50, 60, 70, 80])), first, second, answers)
    assert (one.index, one.right, one.label, one.answers) == (1, "first", 60 % 7, [6, 2])
    assert (other.index, other.right, other.shown) == (2, "second", "row 70")
    old = list(samples(Numbers(), data(), first, second, [None, answers[1]]))
    assert [each.answers for each in old] == [[], []]
    assert [each.shown for each in old] == ["row 1", "row 2"]


def test_of_many_samples_few_are_taken_from_all_over():
    wrong, right = np.zeros(90, bool), np.ones(90, bool)
    found = [each.index for each in samples(Numbers(), data(), right, wrong, [None, None])]
    assert len(found) == EACH
    assert (found[0], found[-1]) == (0, 89)
    assert list(samples(Numbers(), data(), right, right, [None, None])) == []


@pytest.mark.parametrize("size", [32, 224])
def test_a_picture_is_small_and_looks_like_the_row(size):
    pixels = torch.zeros(3, 3, size, size, dtype=torch.uint8)
    pixels[1, 0] = 255  # red
    rows = Pixels(pixels, torch.zeros(3, dtype=torch.int64))
    (url,) = ImageInputs(clip_preprocess(size)).preview(rows, torch.tensor([1]))
    kind, _, content = url.partition(",")
    assert kind == "data:image/jpeg;base64"
    picture = np.asarray(Image.open(io.BytesIO(b64decode(content))))
    assert picture.shape[:2] == (min(size, PREVIEW),) * 2
    assert picture[..., 0].mean() > 250
    assert picture[..., 1:].mean() < 5
