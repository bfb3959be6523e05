from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from actors.data.images.preprocessor_config import clip_preprocess, read_convnext, read_preprocess


def draw(mode: str, size: tuple[int, int]) -> Image.Image:
    width, height = size
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("size", [(28, 28), (50, 90), (91, 40), (32, 32), (33, 200)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "YCbCr", "HSV"])
def test_equals_the_processor_of_transformers(mode: str, size: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    preprocess, image = clip_preprocess(32), draw(mode, size)
    found = preprocess.to_uint8(image)
    raw = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, raw["pixel_values"][0])
    whole = processor(image, return_tensors="pt")["pixel_values"]
    normalised = preprocess.normalise(torch.from_numpy(found)[None])
    torch.testing.assert_close(normalised, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("crop", [40, 41])
@pytest.mark.parametrize("size", [(32, 50), (33, 20), (50, 31), (60, 61)])
def test_crops_larger_than_the_image_are_padded(
    tmp_path: Path, crop: int, size: tuple[int, int]
) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(do_resize=False, crop_size={"height": crop, "width": crop})
    processor.save_pretrained(tmp_path)
    image = draw("RGB", size)
    raw = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
    found = read_preprocess(tmp_path).to_uint8(image)
    np.testing.assert_array_equal(found, raw["pixel_values"][0])


def test_what_comes_after_the_pixels_leaves_their_fingerprint_and_changes_the_whole_one() -> None:
    one = clip_preprocess(32)
    for change in ({"mean": (0.0, 0.0, 0.0)}, {"std": (1.0, 1.0, 1.0)}, {"rescale": 1.0}):
        other = replace(one, **change)
        assert one.pixels == other.pixels
        assert one.fingerprint != other.fingerprint
    for other in (
        replace(one, resample=2),
        replace(one, squash=(32, 32)),
        replace(one, crop=None, resize=(32, 32)),
        clip_preprocess(33),
    ):
        assert one.pixels != other.pixels
        assert one.fingerprint != other.fingerprint


def convnext(**config: Any) -> Any:
    from transformers.models.convnext.image_processing_pil_convnext import (
        ConvNextImageProcessorPil,
    )

    return ConvNextImageProcessorPil(
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], **config
    )


@pytest.mark.parametrize("size", [(28, 28), (50, 90), (91, 40), (224, 224), (500, 333)])
@pytest.mark.parametrize(
    "config",
    [
        {"size": {"shortest_edge": 224}, "crop_pct": 0.875},
        {"size": {"shortest_edge": 32}, "crop_pct": 1.0, "resample": 2},
        {"size": {"shortest_edge": 33}},
        {"size": {"shortest_edge": 384}},
    ],
)
def test_equals_convnexts_processor(
    tmp_path: Path, config: dict[str, Any], size: tuple[int, int]
) -> None:
    processor, image = convnext(**config), draw("RGB", size)
    processor.save_pretrained(tmp_path)
    preprocess = read_convnext(tmp_path)
    found = preprocess.to_uint8(image)
    raw = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
    assert found.shape == (3, *preprocess.shape)
    np.testing.assert_array_equal(found, raw["pixel_values"][0])
    whole = processor(image, return_tensors="pt")["pixel_values"]
    normalised = preprocess.normalise(torch.from_numpy(found)[None])
    torch.testing.assert_close(normalised, whole, rtol=0, atol=2e-6)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(28, 28), (50, 90), (300, 200)])
def test_the_chain_of_the_original_dawe(tmp_path: Path, mode: str, size: tuple[int, int]) -> None:
    processor = convnext(size={"shortest_edge": 224}, crop_pct=0.875)
    processor.save_pretrained(tmp_path)
    preprocess = replace(read_convnext(tmp_path), squash=(224, 224))
    image = draw(mode, size)
    # torchvision's Resize((224, 224)) of a Pillow image, then the processor on what comes out.
    loaded = image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    found = preprocess.to_uint8(image)
    raw = processor(loaded, do_rescale=False, do_normalize=False, return_tensors="np")
    np.testing.assert_array_equal(found, raw["pixel_values"][0])
    # It hands the processor floats in [0, 1]; those survive the way through 8 bits and back.
    floats = np.asarray(loaded).transpose(2, 0, 1).astype(np.float32) / 255
    assert np.array_equal((floats * 255).astype(np.uint8), np.asarray(loaded).transpose(2, 0, 1))
