"""Tasks of characters: Latin and Greek letters in the fonts that matplotlib ships."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from actors.embedded.canvas import (
    JITTER,
    SIZE,
    SUPER,
    TILT,
    Colour,
    Pixels,
    Rng,
    near,
    photographed,
)

LETTERS = "ABEGKMRSTW"
GREEK = {
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
    "delta": "δ",
    "lambda": "λ",
    "xi": "ξ",
    "pi": "π",
    "phi": "φ",
    "psi": "ψ",
    "omega": "ω",
}
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "STIXGeneral.ttf",
)
"""Fonts of matplotlib's own data folder that hold both alphabets: the same files everywhere."""
LATIN_FONTS = (*FONTS, "cmss10.ttf")


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of matplotlib's data folder at `size` pixels."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / name), size, layout_engine=ImageFont.Layout.BASIC)


def glyph(text: str, fonts: tuple[str, ...], rng: Rng, paper: Colour, ink: Colour) -> Pixels:
    """One character: random font, size, place, slant and colours."""
    ground = near(paper, rng)
    size = int(rng.integers(23, 29)) * SUPER
    face = font(fonts[rng.integers(len(fonts))], size)
    side = SIZE * SUPER
    image = Image.new("RGB", (side, side), ground)
    middle = side / 2 + rng.uniform(-JITTER, JITTER, 2) * SUPER
    ImageDraw.Draw(image).text(tuple(middle), text, fill=near(ink, rng), font=face, anchor="mm")
    turned = image.rotate(rng.uniform(-TILT, TILT), Image.Resampling.BILINEAR, fillcolor=ground)
    return photographed(np.asarray(turned.reduce(SUPER)), rng)


def letter(label: int, rng: Rng) -> Pixels:
    """A capital of `LETTERS`."""
    return glyph(LETTERS[label], LATIN_FONTS, rng, (225, 215, 180), (55, 45, 45))


def greek(label: int, rng: Rng) -> Pixels:
    """A lower-case Greek letter."""
    return glyph(list(GREEK.values())[label], FONTS, rng, (35, 50, 110), (205, 225, 245))


def digit(label: int, rng: Rng) -> Pixels:
    """A printed digit, white on black, at the resolution of a scan of 8 × 8 pixels."""
    image = Image.new("L", (SIZE, SIZE), 0)
    middle = SIZE / 2 + rng.uniform(-1.5 * JITTER, 1.5 * JITTER, 2)
    face = font(LATIN_FONTS[rng.integers(len(LATIN_FONTS))], int(rng.integers(34, 43)))
    ImageDraw.Draw(image).text(tuple(middle), str(label), fill=255, font=face, anchor="mm")
    turned = image.rotate(rng.uniform(-2 * TILT, 2 * TILT), Image.Resampling.BILINEAR)
    coarse = turned.reduce(4).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.repeat(np.asarray(coarse)[..., None], 3, axis=2)
