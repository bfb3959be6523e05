"""A model's preprocessing, as its `preprocessor_config.json` says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.imaging import MEAN, STD
from actors.imaging import Preprocess as Preprocess
from fusion.errors import InputError

KINDS = (
    "CLIPImageProcessor",
    "CLIPImageProcessorPil",
    "CLIPImageProcessorFast",
    "CLIPFeatureExtractor",
)

FLAGS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")


def clip_preprocess(size: int) -> Preprocess:
    """CLIP's own preprocessing, for images of `size` pixels a side."""
    return Preprocess(size, None, (size, size))


def read_preprocess(folder: Path) -> Preprocess:
    """The preprocessing of a model folder: `preprocessor_config.json` or `processor_config.json`.

    Raises:
        InputError: neither file, or something in it that is not supported, by name.
    """
    file, config = read_file(folder)
    kind = config.get("image_processor_type") or config.get("feature_extractor_type") or KINDS[0]
    if kind not in KINDS:
        raise InputError(f"{file}: image_processor_type {kind!r}; allowed: {', '.join(KINDS)}")
    for name, value in config.items():
        if name.startswith("do_") and name not in FLAGS and value:
            raise InputError(f"{file}: {name}: {value!r}; not supported (allowed: {list(FLAGS)})")
    if config.get("do_convert_rgb") is False:
        raise InputError(f"{file}: do_convert_rgb: False; not supported (CLIP needs RGB)")
    on = {name: config.get(name) is not False for name in FLAGS}
    shortest_edge, resize = sizes(config, file) if on["do_resize"] else (None, None)
    crop = square(config.get("crop_size", 224), "crop_size", file) if on["do_center_crop"] else None
    if crop is None and resize is None:
        raise InputError(f"{file}: do_center_crop: False; images would differ in size")
    resample = config.get("resample", 3)
    if type(resample) is not int or not 0 <= resample <= 5:
        raise InputError(f"{file}: resample: {resample!r}; Pillow's filters 0 to 5 allowed")
    return Preprocess(
        shortest_edge,
        resize,
        crop,
        resample,
        float(config.get("rescale_factor", 1 / 255)) if on["do_rescale"] else 1.0,
        channels(config, "image_mean", MEAN, file) if on["do_normalize"] else (0.0,) * 3,
        channels(config, "image_std", STD, file) if on["do_normalize"] else (1.0,) * 3,
    )


def read_file(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file that says it, and what it says."""
    files = (folder / "preprocessor_config.json", folder / "processor_config.json")
    for file in files:
        if not file.exists():
            continue
        try:
            config = json.loads(file.read_text())
            inner = config.get("image_processor")
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{file}: not a JSON object: {error}") from None
        if file == files[0] or inner:
            return file, dict(inner or config)
    raise InputError(f"{files[0]}: missing; it says how images are prepared for the model")


def sizes(config: Mapping[str, Any], file: Path) -> tuple[int | None, tuple[int, int] | None]:
    """`size`: (shortest edge, None) or (None, (height, width))."""
    size = config.get("size", {"shortest_edge": 224})
    if type(size) is int:
        return size, None
    if isinstance(size, dict) and type(size.get("shortest_edge")) is int:
        if not size.get("longest_edge"):
            return size["shortest_edge"], None
    elif isinstance(size, dict) and size.get("height"):
        return None, square(size, "size", file)
    raise InputError(f"{file}: size: {size!r}; allowed: shortest_edge, or height and width")


def square(size: Any, name: str, file: Path) -> tuple[int, int]:
    """A whole number, or height and width, as (height, width)."""
    if type(size) is int and size > 0:
        return size, size
    if isinstance(size, dict):
        height, width = size.get("height"), size.get("width")
        if type(height) is int and height == width and height > 0:
            return height, width
    raise InputError(f"{file}: {name}: {size!r}; a number of pixels, or equal height and width")


def channels(
    config: Mapping[str, Any], name: str, default: tuple[float, ...], file: Path
) -> tuple[float, ...]:
    """Three numbers, one a channel."""
    values = config.get(name, default)
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3 or (name == "image_std" and 0.0 in numbers):
        raise InputError(f"{file}: {name}: {values!r}; three numbers needed")
    return numbers
