import json
from pathlib import Path
from typing import Any

import pytest

from actors.data.images.preprocess import MEAN, STD
from actors.data.images.preprocessor_config import clip_preprocess, read_convnext, read_preprocess
from fusion.errors import InputError

OLD = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": list(MEAN),
    "image_std": list(STD),
    "resample": 3,
    "size": 224,
}
"""As OpenAI's models on the hub have it."""


def write(folder: Path, config: dict[str, Any], file: str = "preprocessor_config.json") -> Path:
    (folder / file).write_text(json.dumps(config))
    return folder


def test_the_form_of_2021(tmp_path: Path) -> None:
    assert read_preprocess(write(tmp_path, OLD)) == clip_preprocess(224)


def test_what_the_processor_saves(tmp_path: Path) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    CLIPImageProcessorPil().save_pretrained(tmp_path)
    assert read_preprocess(tmp_path) == clip_preprocess(224)


def test_inside_a_processor_config(tmp_path: Path) -> None:
    write(tmp_path, {"image_processor": OLD, "processor_class": "x"}, "processor_config.json")
    assert read_preprocess(tmp_path) == clip_preprocess(224)


def test_flags(tmp_path: Path) -> None:
    off = {"do_rescale": False, "do_normalize": False, "do_center_crop": False}
    exact = {"size": {"height": 32, "width": 32}}
    found = read_preprocess(write(tmp_path, OLD | off | exact))
    assert (found.shortest_edge, found.resize, found.crop) == (None, (32, 32), None)
    assert (found.rescale, found.mean, found.std) == (1.0, (0.0,) * 3, (1.0,) * 3)
    assert found.size == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_pad": True}, "do_pad: True; not supported"),
        ({"do_convert_rgb": False}, "do_convert_rgb: False"),
        ({"do_center_crop": False}, "images would differ in size"),
        ({"image_processor_type": "ViTImageProcessor"}, "'ViTImageProcessor'; allowed: CLIPImage"),
        ({"size": {"longest_edge": 9}}, "size: "),
        ({"crop_size": {"height": 9, "width": 8}}, "crop_size: "),
        ({"resample": 9}, "resample: 9"),
        ({"image_std": [0.0, 1.0, 1.0]}, "image_std: "),
        ({"image_mean": 3}, "image_mean: 3; three numbers"),
    ],
)
def test_refusals(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_preprocess(write(tmp_path, OLD | change))
    assert message in str(caught.value)
    assert str(tmp_path / "preprocessor_config.json") in str(caught.value)


def test_missing_and_damaged(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"preprocessor_config\.json: missing"):
        read_preprocess(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("[")
    with pytest.raises(InputError, match="not JSON"):
        read_preprocess(tmp_path)


RESNET = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 224,
}
"""As microsoft/resnet-18 and -50 have it."""


def test_a_resnets(tmp_path: Path) -> None:
    found = read_convnext(write(tmp_path, RESNET))
    assert (found.shortest_edge, found.resize, found.crop) == (256, None, (224, 224))
    assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (found.resample, found.rescale, found.squash) == (3, 1 / 255, None)
    large = read_convnext(write(tmp_path, RESNET | {"size": {"shortest_edge": 384}}))
    assert (large.shortest_edge, large.resize, large.crop) == (None, (384, 384), None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_extractor_type": "CLIPFeatureExtractor"}, "allowed: ConvNextImageProcessor"),
        ({"size": {"height": 9, "width": 9}}, "shortest_edge needed"),
        ({"size": 0}, "size: 0; shortest_edge needed"),
        ({"crop_pct": 0}, "crop_pct: 0; more than 0, at most 1"),
        ({"crop_pct": True}, "crop_pct: True"),
        ({"do_resize": False}, "images would differ in size"),
        ({"do_center_crop": True}, "do_center_crop: True; not supported"),
        ({"do_pad": True}, "do_pad: True; not supported"),
        ({"resample": "bicubic"}, "resample: 'bicubic'"),
        ({"image_std": ["0.2", 0.2, 0.2]}, "image_std: ['0.2', 0.2, 0.2]; three numbers"),
        ({"image_std": [1e40, 0.2, 0.2]}, "image_std: [1e+40, 0.2, 0.2]; three numbers"),
        ({"image_mean": [True, 0.2, 0.2]}, "image_mean: [True, 0.2, 0.2]; three numbers"),
        ({"rescale_factor": 1e40}, "rescale_factor: 1e+40; a number other than 0"),
        ({"rescale_factor": None}, "rescale_factor: None; a number other than 0"),
    ],
)
def test_refusals_for_a_resnet(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_convnext(write(tmp_path, RESNET | change))
    assert message in str(caught.value)
    assert str(tmp_path / "preprocessor_config.json") in str(caught.value)
