"""Decode an encoded image to an upright Pillow image of 8 bits a channel.

For 8-bit modes the result is that of `datasets.Image`: the first frame, rotated by its EXIF tag.
16-bit grey images are scaled to 8 bits, where Pillow's own conversion would clip them to white.
Of 16-bit colour, Pillow keeps the high byte of each channel. All other modes are refused.

Formats and sizes are checked before decoding: only formats of `FORMATS`, at most `PIXELS` pixels.

Imports neither torch nor `fusion` at load time, for the reason given in `preprocess.py`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO"),
    *("CUR", "DIB", "ICNS", "PCX", "DCX", "DDS", "FLI", "MSP", "PSD", "QOI", "SGI", "SUN"),
    *("XBM", "XPM"),
)
"""Formats that are read, as Pillow names them (JPEG includes MPO): those that Pillow's own code
decodes from the bytes alone.

Left out: EPS (Pillow starts Ghostscript), IPTC (opens what it holds as any format), WMF, BUFR,
GRIB, HDF5 and MPEG (stubs), FITS, SPIDER and MCIDAS (measurements, not pictures), IM (deprecated),
and BLP, FTEX, GBR, IMT, PCD, PIXAR and XVTHUMB (rare, some without a signature).
"""

SUFFIXES = frozenset(
    (
        ".apng",
        ".avif",
        ".avifs",
        ".bmp",
        ".bw",
        ".cur",
        ".dcx",
        ".dds",
        ".dib",
        ".flc",
        ".fli",
        ".gif",
        ".icb",
        ".icns",
        ".ico",
        ".j2c",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpc",
        ".jpe",
        ".jpeg",
        ".jpf",
        ".jpg",
        ".jpx",
        ".mpo",
        ".msp",
        ".pbm",
        ".pcx",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".psd",
        ".qoi",
        ".ras",
        ".rgb",
        ".rgba",
        ".sgi",
        ".tga",
        ".tif",
        ".tiff",
        ".vda",
        ".vst",
        ".webp",
        ".xbm",
        ".xpm",
    )
)
"""How names of such files end; a test compares them with Pillow's own table."""

PIXELS = 1 << 28
"""Pixels of an image, at most: 268 million. The largest sensors of cameras and phones have 200
million; RGB then takes 1 GB while it is decoded."""

MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"))
"""Pillow's modes of 8 bits a channel."""

LFS = b"version https://git-lfs.github.com/spec/"

ORIENTATION = 0x0112
"""The EXIF tag that says how an image is to be turned."""


class Unusable(ValueError):
    """An image that can be read but is refused; the message gives the reason."""


@contextmanager
def decoded(content: bytes | str) -> Iterator[tuple[Image, bool]]:
    """The upright image, and whether it was scaled from 16 bits.

    Args:
        content: the encoded image, or the path of its file.

    Raises:
        Unusable: too large, of an unsupported mode, or a Git LFS pointer.
        Exception: any exception of Pillow on a damaged file.
    """
    from PIL import Image, ImageOps

    if isinstance(content, str):
        with open(content, "rb") as file:
            start = file.read(len(LFS))
    else:
        start = content[: len(LFS)]
    if start == LFS:
        raise Unusable("a Git LFS pointer, not the image; run `git lfs pull` in its folder")
    source = io.BytesIO(content) if isinstance(content, bytes) else content
    with bounded(), Image.open(source, formats=formats()) as image:
        check_size(image)
        image.load()
        check_size(image)  # an icon's header may give another size than its image
        scale = sixteen(image)
        if scale is None and image.mode not in MODES:
            raise Unusable(
                f"mode {image.mode!r} ({image.format}); images of 8 bits a channel, or of 16-bit"
                " grey, are needed"
            )
        upright: Image.Image = image
        if image.getexif().get(ORIENTATION) is not None:
            upright = ImageOps.exif_transpose(image)
        yield (upright, False) if scale is None else (scaled(upright, scale), True)


@cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow supports."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def bounded() -> Iterator[None]:
    """Set Pillow's limit on pixels to `PIXELS`; its own limit is half that."""
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = PIXELS
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def check_size(image: Image) -> None:
    """Raise Unusable where an image has no pixels, or too many."""
    width, height = image.size
    if not 0 < width * height <= PIXELS:
        raise Unusable(f"{width} x {height} pixels; 1 to {PIXELS:,} allowed")


def sixteen(image: Image) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """Lookup table from 16-bit grey to uint8, [65536]; None: the image is not 16-bit grey.

    White is 65535; it is 4095 in a TIFF of 12 bits, and 0 in one whose tag says that white is zero.
    """
    deep = image.mode.startswith("I;16")
    if not deep and not (image.mode == "I" and image.format in ("PNG", "PPM")):
        return None
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(258, (16,))
    top = 4095 if bits in (12, (12,)) else 65535
    values = np.minimum((np.arange(65536) * 255 + top // 2) // top, 255).astype(np.uint8)
    return 255 - values if tags.get(262) == 0 else values


def scaled(image: Image, values: np.ndarray[Any, np.dtype[np.uint8]]) -> Image:
    """A 16-bit grey image as 8-bit grey; the value that marks transparency becomes white."""
    from PIL import Image as images

    deep = np.asarray(image)
    grey = values[np.clip(deep, 0, 65535)]
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[deep == clear] = 255
    return images.fromarray(grey)
