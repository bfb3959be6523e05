"""Encoded images: damaged in any way, a row is refused in one line, or decoded as Pillow does."""

import functools
import io
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from actors.data.images.decode import FORMATS, Unusable, decoded, formats
from actors.data.images.preprocess import Preprocess
from actors.data.readers import decode_row
from tests.fuzz.damage import altered

PREPROCESS = Preprocess(16, None, (16, 16))

MODES = {
    **dict.fromkeys(["XBM", "MSP"], "1"),
    **dict.fromkeys(["GIF", "PCX"], "P"),
    **dict.fromkeys(["PNG", "TIFF", "ICO", "WEBP", "TGA", "ICNS"], "RGBA"),
}
WRITTEN = [name for name in FORMATS if name not in ("CUR", "DCX", "FLI", "PSD", "SUN", "XPM")]
EXIF = Image.Exif()
EXIF[0x0112] = 6


@functools.cache
def image(name: str, *, deep: bool = False) -> bytes:
    """A small valid image of a format."""
    draw = np.random.default_rng(0)
    if deep:
        picture = Image.fromarray(draw.integers(0, 65536, (9, 7), dtype=np.uint16))
    else:
        pixels = draw.integers(0, 256, (9, 7, 4), dtype=np.uint8)
        picture = Image.fromarray(pixels).convert("RGB").convert(MODES.get(name, "RGB"))
    file = io.BytesIO()
    options = {"exif": EXIF} if name in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    picture.save(file, name, **options)
    return file.getvalue()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    name = draw(st.sampled_from([name for name in WRITTEN if name in formats()]))
    deep = draw(st.booleans()) and name in ("PNG", "TIFF", "PPM", "JPEG2000")
    return draw(altered(image(name, deep=deep)))


@given(damaged())
def test_damaged_images(content: bytes) -> None:
    out = np.full((3, 16, 16), 7, dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said, _ = decode_row(content, 0, 2, PREPROCESS, out)
    if said is not None:
        assert said.startswith(("broken image: ", "refused image: "))
        assert "\n" not in said
        assert len(said) < 500
        return
    # What is accepted is what Pillow reads: damage of the pixels themselves cannot be seen.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content)) as plain:
            plain.load()
            assert plain.format in (*FORMATS, "MPO")


@given(st.binary(max_size=200))
def test_any_bytes(content: bytes) -> None:
    out = np.zeros((3, 16, 16), dtype=np.uint8)
    said, _ = decode_row(content, 0, 2, PREPROCESS, out)
    assert said is None or "\n" not in said


@pytest.mark.parametrize("label", [None, -1, 2, 0.0, "0", True, b"0", [0], 2**70])
def test_odd_labels(label: object) -> None:
    out = np.zeros((3, 16, 16), dtype=np.uint8)
    said, _ = decode_row(image("PNG"), label, 2, PREPROCESS, out)
    assert said is not None
    assert said.startswith("label ")


@given(st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1))
def test_any_stated_size_is_bounded_before_work(width: int, height: int) -> None:
    import struct
    import zlib

    head = b"IHDR" + struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    content = image("PNG")[:8] + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    content += struct.pack(">I", 10) + b"IDAT" + bytes(14)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = np.zeros((3, 16, 16), dtype=np.uint8)
        said, _ = decode_row(content, 0, 2, PREPROCESS, out)
    assert said is not None


def test_the_valid_ones_are_accepted() -> None:
    for name in WRITTEN:
        if name in formats():
            out = np.zeros((3, 16, 16), dtype=np.uint8)
            assert decode_row(image(name), 0, 2, PREPROCESS, out)[0] is None
    with pytest.raises(Unusable), decoded(b"version https://git-lfs.github.com/spec/v1"):
        pass
