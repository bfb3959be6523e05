"""Read a model's preprocessing from `preprocessor_config.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from actors.data.images.preprocess import BILINEAR, MEAN, STD
from actors.data.images.preprocess import Preprocess as Preprocess
from actors.files.documents import read_json
from fusion.errors import InputError, reading

KINDS = (
    "CLIPImageProcessor",
    "CLIPImageProcessorPil",
    "CLIPImageProcessorFast",
    "CLIPFeatureExtractor",
)

CONVNEXT = (
    "ConvNextImageProcessor",
    "ConvNextImageProcessorPil",
    "ConvNextImageProcessorFast",
    "ConvNextFeatureExtractor",
)

VIT = (
    "ViTImageProcessor",
    "ViTImageProcessorPil",
    "ViTImageProcessorFast",
    "ViTFeatureExtractor",
)

BIT = ("BitImageProcessor", "BitImageProcessorPil", "BitImageProcessorFast")
"""The same steps, fields and defaults as CLIP's."""

FILES = ("preprocessor_config.json", "processor_config.json")

Parse: TypeAlias = Callable[[Mapping[str, Any], Path], Preprocess]
"""(a processor's configuration, its file) -> the preprocessing."""

STEPS = ("rescale", "normalize")

FLAGS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")


def clip_preprocess(size: int) -> Preprocess:
    """CLIP's default preprocessing for images of `size` pixels a side."""
    return Preprocess(size, None, (size, size))


def read_preprocess(folder: Path) -> Preprocess:
    """Read a CLIP's preprocessing from `preprocessor_config.json` or `processor_config.json`.

    Raises:
        InputError: neither file exists, or a field has an unsupported value; names the field.
    """
    file, config = read_file(folder)
    with reading(str(file)):
        return of_clip(config, file)


def of_clip(config: Mapping[str, Any], file: Path) -> Preprocess:
    """Parse a CLIP's configuration. See `read_preprocess`."""
    check(config, KINDS, file)
    return clip(config, file)


NAMES = {
    "shortest_edge": "size",
    "resize": "size",
    "crop": "crop_size",
    "rescale": "rescale_factor",
    "mean": "image_mean",
    "std": "image_std",
}
"""Fields of `Preprocess` as files call them, where that is another name."""


def difference(base: Path, expert: Path, parse: Parse | None = None) -> str | None:
    """Difference between an expert's preprocessing and the base's; None: none, or no expert file.

    Args:
        base: the base's folder.
        expert: the folder of a model or an adapter.
        parse: of files of these models. Default: CLIP's.

    Returns:
        One line with both files, the first field that differs, and both values.

    Raises:
        InputError: a file that cannot be read, or an unsupported value.
    """
    found = found_file(expert)
    if found is None:
        return None
    file, config = found
    parse = parse or of_clip
    theirs, ours = parse(config, file), parse(read_file(base)[1], read_file(base)[0])
    for field, own in asdict(theirs).items():
        if own != getattr(ours, field):
            other, _ = read_file(base)
            name = NAMES.get(field, field)
            return f"{file}: {name}: {own}; {other} has {getattr(ours, field)}"
    return None


def read_convnext(folder: Path) -> Preprocess:
    """Read a ResNet's preprocessing, which is ConvNeXt's for the ResNets on the hub.

    Below 384 pixels the shorter edge is resized to int(size / crop_pct) and the centre is kept
    (224: 256, then 224); from 384 on the whole image is resized. Defaults as in
    `transformers.ConvNextImageProcessor`: size 384, crop_pct 224 / 256, bicubic, mean and std 0.5.

    Raises:
        InputError: as for `read_preprocess`.
    """
    file, config = read_file(folder)
    with reading(str(file)):
        return convnext(config, file)


def convnext(config: Mapping[str, Any], file: Path) -> Preprocess:
    """Parse a ConvNeXt configuration. See `read_convnext`."""
    check(config, CONVNEXT, file)
    edge, _ = sizes({"size": config.get("size", {"shortest_edge": 384})}, file)
    share = config.get("crop_pct")
    share = 224 / 256 if share is None else share
    if edge is None or edge < 1:
        raise InputError(f"{file}: size: {config['size']!r}; shortest_edge needed")
    if type(share) not in (int, float) or not 0 < share <= 1:
        raise InputError(f"{file}: crop_pct: {share!r}; more than 0, at most 1")
    if config.get("do_resize") is False:
        raise InputError(f"{file}: do_resize: False; images would differ in size")
    if config.get("do_center_crop"):
        raise InputError(f"{file}: do_center_crop: True; not supported (crop_pct says it)")
    square = (edge, edge)
    geometry = (None, square, None) if edge >= 384 else (int(edge / share), None, square)
    return finish(config, file, geometry, (0.5,) * 3, (0.5,) * 3)


def read_classifier(folder: Path) -> Preprocess:
    """Read the preprocessing of an image classifier: ViT's, ConvNeXt's, BiT's or CLIP's kind.

    Raises:
        InputError: as for `read_preprocess`; another kind of image processor.
    """
    file, config = read_file(folder)
    with reading(str(file)):
        return of_classifier(config, file)


def of_classifier(config: Mapping[str, Any], file: Path) -> Preprocess:
    """Parse the configuration of an image classifier's processor, which must name its kind."""
    kind = config.get("image_processor_type") or config.get("feature_extractor_type")
    kinds = {**dict.fromkeys(VIT, vit), **dict.fromkeys(CONVNEXT, convnext)}
    kinds |= dict.fromkeys((*BIT, *KINDS), clip)
    if kind not in kinds:
        raise InputError(f"{file}: image_processor_type {kind!r}; allowed: {', '.join(kinds)}")
    check(config, tuple(kinds), file)
    return kinds[kind](config, file)


def vit(config: Mapping[str, Any], file: Path) -> Preprocess:
    """Parse the configuration of a ViT's processor: resized as a whole, not cropped.

    Defaults as in `transformers.ViTImageProcessor`: 224 pixels, bilinear, mean and std 0.5. A size
    of one number is that of both sides.
    """
    edge, both = sizes({"size": config.get("size", 224)}, file)
    if config.get("do_resize") is False or config.get("do_center_crop"):
        raise InputError(f"{file}: do_resize: true and do_center_crop: false needed")
    if isinstance(config.get("size"), Mapping) and edge is not None:
        raise InputError(f"{file}: size: {config['size']!r}; height and width needed")
    resize = both if edge is None else (edge, edge)
    given = {"resample": BILINEAR, **config}
    return finish(given, file, (None, resize, None), (0.5,) * 3, (0.5,) * 3)


def check(config: Mapping[str, Any], kinds: tuple[str, ...], file: Path) -> None:
    """Raise InputError for another kind of processor, and for unsupported steps."""
    kind = config.get("image_processor_type") or config.get("feature_extractor_type") or kinds[0]
    if kind not in kinds:
        raise InputError(f"{file}: image_processor_type {kind!r}; allowed: {', '.join(kinds)}")
    for name, value in config.items():
        if name.startswith("do_") and name not in FLAGS and value:
            raise InputError(f"{file}: {name}: {value!r}; not supported (allowed: {list(FLAGS)})")
    if config.get("do_convert_rgb") is False:
        raise InputError(f"{file}: do_convert_rgb: False; not supported (the models need RGB)")


def clip(config: Mapping[str, Any], file: Path) -> Preprocess:
    """Parse the configuration of a CLIP processor."""
    resized, cropped = (config.get(f"do_{step}") is not False for step in ("resize", "center_crop"))
    shortest_edge, resize = sizes(config, file) if resized else (None, None)
    crop = square(config.get("crop_size", 224), "crop_size", file) if cropped else None
    if crop is None and resize is None:
        raise InputError(f"{file}: do_center_crop: False; images would differ in size")
    return finish(config, file, (shortest_edge, resize, crop), MEAN, STD)


def finish(
    config: Mapping[str, Any],
    file: Path,
    geometry: tuple[int | None, tuple[int, int] | None, tuple[int, int] | None],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Preprocess:
    """Preprocessing of this geometry (shortest edge, resize, crop) and the other fields."""
    rescaled, normalised = (config.get(f"do_{step}") is not False for step in STEPS)
    resample = config.get("resample", 3)
    if type(resample) is not int or not 0 <= resample <= 5:
        raise InputError(f"{file}: resample: {resample!r}; Pillow's filters 0 to 5 allowed")
    factor = config.get("rescale_factor", 1 / 255) if rescaled else 1.0
    if not is_number(factor, dividing=True):
        raise InputError(f"{file}: rescale_factor: {factor!r}; a number other than 0 needed")
    return Preprocess(
        *geometry,
        resample,
        float(factor),
        channels(config, "image_mean", mean, file) if normalised else (0.0,) * 3,
        channels(config, "image_std", std, file) if normalised else (1.0,) * 3,
    )


def read_file(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file that holds the preprocessing, and its content."""
    found = found_file(folder)
    if found is None:
        raise InputError(
            f"{folder / FILES[0]}: missing; it says how images are prepared for the model"
        )
    return found


def found_file(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """As `read_file`; None where the folder has no such file, or one that is not about images."""
    for name in FILES:
        file = folder / name
        if not (file.exists() or file.is_symlink()):
            continue
        config = read_json(file)
        inner = config.get("image_processor")
        if name == FILES[0] or inner:
            return file, dict(inner or config)
    return None


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
    """Three numbers, one for each channel."""
    values = config.get(name, default)
    numbers = list(values) if isinstance(values, list | tuple) else []
    good = len(numbers) == 3 and all(is_number(each, name == "image_std") for each in numbers)
    if not good:
        kind = "three numbers other than 0" if name == "image_std" else "three numbers"
        raise InputError(f"{file}: {name}: {values!r}; {kind} needed")
    return tuple(float(number) for number in numbers)


def is_number(value: Any, dividing: bool = False) -> bool:
    """Whether a value is a float32 number; `dividing`: and can be a divisor."""
    if type(value) not in (int, float) or not abs(value) < 3e38:
        return False
    return not dividing or abs(value) > 1e-37
