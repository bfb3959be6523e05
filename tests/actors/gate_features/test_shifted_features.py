"""Features of corrupted rows: those of the corrupted images, at the extractor's size, made once."""

from pathlib import Path

import numpy as np
import torch

from actors.data.images.corruptions import corrupt
from actors.data.images.pixel_cache import open_pixels, prepare
from actors.data.protocol import Corruption
from actors.data.task import TaskSource, open_task
from actors.gate_features.extractor import load_extractor, open_extractor
from actors.gate_features.feature_cache import open_features
from actors.gate_features.shifted_features import corrupted_features
from tests.actors.gate_features.test_extractor import write_resnet


def test_features_are_of_the_corrupted_rows(animals: Path, tmp_path: Path) -> None:
    task = open_task(TaskSource("pets", str(animals)))
    extractor = open_extractor(str(write_resnet(tmp_path / "resnet")), "gate.extractor")
    rows = np.array([1, 4, 7])

    def asked(seed: int) -> Path:
        shift = Corruption("gaussian_noise", 3, seed)
        return corrupted_features(extractor, task, "train", rows, shift, tmp_path)

    path = asked(5)
    (clean,) = prepare(
        {"pets": task}, [("pets", "train")], extractor.inputs.preprocess, tmp_path
    ).values()
    images = open_pixels(clean).images.numpy()[rows]
    made = corrupt("gaussian_noise", images, 3, seed=5, indices=rows.tolist())
    expected = load_extractor(extractor)({"pixels": torch.from_numpy(made)})
    torch.testing.assert_close(open_features(path), expected)
    assert not torch.allclose(
        expected, load_extractor(extractor)({"pixels": torch.from_numpy(images)})
    )
    before = path.stat().st_mtime_ns
    assert asked(5) == path
    assert path.stat().st_mtime_ns == before
    assert asked(6) != path
