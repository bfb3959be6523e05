"""Decoding: parity with `datasets` and the model's processor, pixel by pixel; bounds; refusals."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from actors.data.images import preprocess
from actors.data.images.decode import FORMATS, PIXELS, SUFFIXES, Unusable, decoded, formats
from actors.data.images.preprocessor_config import clip_preprocess

PREPROCESS = clip_preprocess(32)

HELD = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "JPEG": ["L", "RGB", "CMYK"],
    "WEBP": ["RGB", "RGBA"],
    "GIF": ["1", "L", "P", "RGB"],
    "BMP": ["1", "L", "P", "RGB", "RGBA"],
    "TIFF": ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"],
    "PPM": ["1", "L", "RGB"],
    "JPEG2000": ["L", "LA", "RGB", "RGBA"],
    "TGA": ["L", "LA", "P", "RGB", "RGBA"],
    "ICO": ["RGB", "RGBA", "P"],
    "PCX": ["1", "L", "P", "RGB"],
    "DDS": ["RGB", "RGBA"],
    "SGI": ["L", "RGB", "RGBA"],
    "MSP": ["1"],
    "XBM": ["1"],
}
TURNED = [
    (name, mode, turn)
    for name, modes in HELD.items()
    for mode in modes
    for turn in ([0, 1, 2, 3, 4, 5, 6, 7, 8] if name in ("PNG", "JPEG", "WEBP", "TIFF") else [0])
]


def drawn(mode: str, size: tuple[int, int] = (45, 38)) -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    if mode == "LAB":
        return Image.frombytes("LAB", size, pixels[..., :3].tobytes())
    if mode == "PA":
        return image.convert("LA").convert("PA")
    return image.convert("RGB").convert(mode) if mode in ("P", "CMYK", "1") else image.convert(mode)


def encoded(image: Image.Image, name: str, turn: int = 0, **options) -> bytes:
    exif = Image.Exif()
    if turn:
        exif[0x0112] = turn
        options["exif"] = exif
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def reference(content: bytes) -> np.ndarray:
    """What `datasets.Image` and the model's processor make of it."""
    from datasets import Image as Feature
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    image = Feature().decode_example({"bytes": content, "path": None})
    return processor(image, do_rescale=False, do_normalize=False, return_tensors="np")[
        "pixel_values"
    ][0]


def ours(content: bytes) -> tuple[np.ndarray, bool]:
    with decoded(content) as (image, deep):
        return PREPROCESS.to_uint8(image), deep


@pytest.mark.parametrize(("name", "mode", "turn"), TURNED)
def test_parity_with_datasets_and_the_processor(name: str, mode: str, turn: int) -> None:
    content = encoded(drawn(mode), name, turn)
    found, deep = ours(content)
    assert not deep
    np.testing.assert_array_equal(found, reference(content))


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_transparency_by_colour(mode: str) -> None:
    clear = {"P": bytes(range(256)), "L": 7, "RGB": (1, 2, 3)}[mode]
    content = encoded(drawn(mode), "PNG", transparency=clear)
    np.testing.assert_array_equal(ours(content)[0], reference(content))


@pytest.mark.parametrize("name", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_frames(name: str) -> None:
    others = [drawn("L", (45, 38)).rotate(90).convert("RGB")]
    content = encoded(drawn("RGB"), name, save_all=True, append_images=others)
    np.testing.assert_array_equal(ours(content)[0], reference(content))


DEEP = np.array([[0, 1, 128, 129, 256, 257, 32768, 65534, 65535]], dtype=np.uint16)


@pytest.mark.parametrize("turn", [0, 3])
@pytest.mark.parametrize("name", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bit_grey_is_scaled(name: str, turn: int) -> None:
    turn = turn if name in ("PNG", "TIFF") else 0
    options = {"irreversible": False} if name == "JPEG2000" else {}
    content = encoded(Image.fromarray(DEEP), name, turn, **options)
    wanted = np.round(DEEP / 257).astype(np.uint8)
    with decoded(content) as (image, deep):
        assert deep
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), wanted[:, ::-1] if turn else wanted)


def test_16_bit_grey_big_endian_inverted_and_of_12_bits() -> None:
    rows = [(258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1), (278, 3, 1, 1)]

    def tiff(order: str, values: np.ndarray, **tags: int) -> bytes:
        given = {256: values.shape[1], 257: 1, 279: values.nbytes, 273: 8}
        given |= {tag: tags.get(f"t{tag}", value) for tag, _, _, value in rows}
        data = values.astype(f"{order}u2").tobytes()
        if tags.get("t258") == 12:  # two values in three bytes
            bits = "".join(f"{value:012b}" for value in values.ravel())
            data = int(bits, 2).to_bytes(len(bits) // 8)
        head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
        body = struct.pack(order + "H", len(given))
        for tag, value in sorted(given.items()):
            body += struct.pack(order + "HHII", tag, 4, 1, value)
        return head + data + body + bytes(4)

    wanted = np.round(DEEP / 257).astype(np.uint8)
    for content, expected in [
        (tiff(">", DEEP), wanted),
        (tiff("<", DEEP), wanted),
        (tiff("<", DEEP, t262=0), 255 - wanted),
        (tiff("<", np.array([[0, 8, 9, 4095]], dtype=np.uint16), t258=12), [[0, 0, 1, 255]]),
    ]:
        with decoded(content) as (image, deep):
            assert deep
            np.testing.assert_array_equal(np.asarray(image), expected)


def test_16_bit_grey_with_a_transparent_value() -> None:
    content = encoded(Image.fromarray(DEEP), "PNG")
    chunk = b"tRNS" + struct.pack(">H", 256)
    at = content.index(b"IDAT") - 4
    content = content[:at] + struct.pack(">I", 2) + chunk + struct.pack(
        ">I", zlib.crc32(chunk)
    ) + content[at:]  # fmt: skip
    with decoded(content) as (image, _):
        assert np.asarray(image)[0, 4] == 255
        assert np.asarray(image)[0, 5] == 1


def test_16_bit_colour_keeps_the_high_byte() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    row = b"\0" + struct.pack(">6H", 0x12FF, 0x3400, 0xFFFF, 0x00FF, 0x0100, 0x8000)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", 2, 1, 16, 2, 0, 0, 0))
    content += chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    with decoded(content) as (image, deep):
        assert not deep
        assert np.asarray(image).tolist() == [[[0x12, 0x34, 0xFF], [0x00, 0x01, 0x80]]]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_other_numbers_are_refused_by_mode(kind: type) -> None:
    content = encoded(Image.fromarray(np.zeros((4, 4), dtype=kind)), "TIFF")
    with pytest.raises(Unusable, match=r"mode '[IF]' \(TIFF\); images of 8 bits"), decoded(content):
        pass


def blank(width: int, height: int) -> bytes:
    """A grey PNG of one bit, of a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    pack = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(pack.compress(row) for _ in range(height)) + pack.flush()
    head = struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    return start + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_large_images_pass_and_larger_ones_do_not() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with decoded(blank(16000, 12000)) as (image, _):  # more than Pillow's own bound
        assert image.size == (16000, 12000)
    assert before == Image.MAX_IMAGE_PIXELS
    head = blank(1, 1)[:16] + struct.pack(">2I", 1 << 15, (1 << 13) + 1) + blank(1, 1)[24:]
    start, end = head[:12], head[29:]
    head = start + head[12:29] + struct.pack(">I", zlib.crc32(head[12:29])) + end[4:]
    message = rf"32768 x 8193 pixels; 1 to {PIXELS:,} allowed"
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(Unusable, match=message):
        decoded(head).__enter__()


@pytest.mark.parametrize("size", [(20000, 1), (1, 20000)])
def test_long_narrow_images_take_no_memory(size: tuple[int, int]) -> None:
    code = (
        "import sys, resource\n"
        "from actors.data.readers import decode_row\n"
        "from actors.data.images.preprocess import Preprocess\n"
        "import numpy as np\n"
        "out = np.zeros((3, 224, 224), dtype=np.uint8)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "preprocess = Preprocess(224, None, (224, 224))\n"
        "print(decode_row(sys.stdin.buffer.read(), 0, 2, preprocess, out)[0])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=blank(*size), capture_output=True, check=True
    )
    said, grown = done.stdout.decode().splitlines()
    assert "too long and narrow to be resized" in said
    assert int(grown) < 200_000  # kB


def test_panoramas_pass() -> None:
    with decoded(blank(20000, 100)) as (image, _):
        assert clip_preprocess(224).to_uint8(image).shape == (3, 224, 224)


def test_ghostscript_is_never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_args, **_options):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    content = encoded(Image.new("RGB", (9, 9)), "EPS")
    with pytest.raises(Image.UnidentifiedImageError), decoded(content):
        pass


def test_formats_and_suffixes_are_pillows() -> None:
    assert set(FORMATS) - set(formats()) <= {"AVIF", "JPEG2000", "WEBP"}  # built without a library
    Image.init()
    named = {end for end, name in Image.registered_extensions().items() if name in FORMATS}
    assert SUFFIXES - {".mpo"} <= named
    assert named - SUFFIXES <= {".pfm"}  # floats


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    image = drawn("RGBA", (3000, 2000))
    whole = np.asarray(preprocess.to_rgb(image))
    monkeypatch.setattr(preprocess, "STRIP", 5000)
    np.testing.assert_array_equal(np.asarray(preprocess.to_rgb(image)), whole)
