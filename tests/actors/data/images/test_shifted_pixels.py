"""Corrupted rows as pixel files: what `corrupt` says, row for row, made once."""

import numpy as np
import pyarrow as pa
import pytest

from actors.data.images.corruptions import corrupt
from actors.data.images.inputs import ImageInputs
from actors.data.images.pixel_cache import open_pixels
from actors.data.images.pixel_cache_writer import PixelWriter
from actors.data.images.preprocess import Preprocess
from actors.data.images.shifted_pixels import chunk, corrupted
from actors.data.task_rows import Rows
from fusion.errors import InputError
from tests.refusals import one_line


@pytest.fixture
def rows(tmp_path) -> Rows:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 3 * 28 * 28), dtype=np.uint8)
    with PixelWriter([(tmp_path / "a.arrow", 300, {"shape": "3,28,28"})], 3 * 28 * 28) as writer:
        writer.write(chunk(images, np.arange(300) % 5, 0))
    return Rows(tmp_path / "a.arrow", np.arange(1, 300, 2))


def test_each_row_is_corrupted_by_its_own_number(rows, tmp_path):
    clean = open_pixels(rows.file)
    found = corrupted(rows, "gaussian_noise", 3, tmp_path / "cache", seed=7)
    assert found.indices is None
    made = open_pixels(found.file)
    assert made.labels.tolist() == clean.labels[rows.indices].tolist()
    images = clean.images.numpy()[rows.indices]
    expected = corrupt("gaussian_noise", images, 3, seed=7, indices=rows.indices.tolist())
    assert np.array_equal(made.images.numpy(), expected)
    before = found.file.stat().st_mtime_ns
    assert corrupted(rows, "gaussian_noise", 3, tmp_path / "cache", seed=7) == found
    assert found.file.stat().st_mtime_ns == before
    names = {
        corrupted(Rows(rows.file, at), "contrast", level, tmp_path / "cache").file
        for at in (np.arange(3), np.arange(4))
        for level in (1, 2)
    }
    assert len(names) == 4
    assert pa.ipc.open_file(pa.memory_map(str(found.file))).num_record_batches == 1


def test_an_unknown_corruption_leaves_nothing(rows, tmp_path):
    with pytest.raises(InputError, match="corruption: 'fog'"):
        corrupted(rows, "fog", 3, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_a_corruption_of_texts_is_refused():
    line = "shifts.t: of texts; the pool's models read images: one of gaussian_noise, impulse_noise"
    with one_line(start=line, end="allowed"):
        ImageInputs(Preprocess(28, None, (28, 28))).check_corruption("typos", "shifts.t")
