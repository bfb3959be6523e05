from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from actors.preprocess import clip_preprocess, read_preprocess


def draw(mode: str, size: tuple[int, int]) -> Image.Image:
    width, height = size
    rng = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 60000, (height, width), dtype=np.uint16))
    pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("size", [(28, 28), (50, 90), (91, 40), (32, 32), (33, 200)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16"])
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


def test_fingerprint_is_of_the_pixels_only() -> None:
    from dataclasses import replace

    one = clip_preprocess(32)
    assert one.fingerprint == replace(one, mean=(0.0, 0.0, 0.0)).fingerprint
    assert one.fingerprint != replace(one, resample=2).fingerprint
    assert one.fingerprint != clip_preprocess(33).fingerprint
