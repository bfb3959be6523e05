"""The tasks of the embedded pool: one table of names, classes, prompts and generators."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from actors.data.task import partition
from actors.embedded import draw_geometry, draw_glyphs, draw_textures
from actors.embedded.canvas import SIZE, Pixels, Rng

TRAIN, TEST = 1400, 900
"""Images a drawn task: enough for a 95 % interval of ±2 points on a task's test accuracy."""


@dataclass(frozen=True)
class Drawing:
    """One task: its class names, and a function that draws an image of a class."""

    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    draw: Callable[[int, Rng], Pixels]
    """(label, generator) -> RGB image."""


@dataclass(frozen=True, eq=False)
class Part:
    """The images [N, SIZE, SIZE, 3] uint8 and labels [N] int64 of one split."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


SCANNED = "digits"
"""The task whose images are real scans; its drawn ones serve pretraining only."""

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

DRAWINGS: Mapping[str, Drawing] = MappingProxyType(
    {
        "digits": Drawing(
            NUMBERS,
            ("a scan of the digit {}.", "a handwritten {}.", "the digit {}."),
            draw_glyphs.digit,
        ),
        "letters": Drawing(
            tuple(draw_glyphs.LETTERS.lower()),
            ("the letter {}.", "a printed letter {}.", "a photo of the letter {}."),
            draw_glyphs.letter,
        ),
        "greek": Drawing(
            tuple(draw_glyphs.GREEK),
            ("the greek letter {}.", "a greek {}.", "the symbol {}."),
            draw_glyphs.greek,
        ),
        "signs": Drawing(
            draw_geometry.SIGNS,
            ("a {} sign.", "a road sign: {}.", "a photo of a {} traffic sign."),
            draw_geometry.sign,
        ),
        "dials": Drawing(
            draw_geometry.DIRECTIONS,
            ("a dial pointing {}.", "the hand points {}.", "a compass: {}."),
            draw_geometry.dial,
        ),
        "counts": Drawing(
            draw_geometry.COUNTS,
            ("{} pips.", "a die that shows {}.", "there are {} spots."),
            draw_geometry.count,
        ),
        "textures": Drawing(
            draw_textures.TEXTURES,
            ("a texture of {}.", "a surface with {}.", "{}."),
            draw_textures.texture,
        ),
        "land": Drawing(
            draw_textures.LAND,
            ("an aerial photo of {}.", "{} seen from above.", "a satellite image of {}."),
            draw_textures.land,
        ),
    }
)
"""Task name -> task, in the pool's order."""


def generator(seed: int, *purpose: str) -> Rng:
    """A separate generator for each purpose: adding a task changes no other task's bits."""
    return np.random.default_rng([seed, *(zlib.crc32(word.encode()) for word in purpose)])


def parts(task: str, seed: int, train: int = TRAIN, test: int = TEST) -> dict[str, Part]:
    """Both splits of a task: at most `train` and `test` images, classes in equal shares.

    >>> {name: part.images.shape for name, part in parts("counts", 0, 14, 7).items()}
    {'train': (14, 32, 32, 3), 'test': (7, 32, 32, 3)}
    """
    if task == SCANNED:
        return scans(seed, train, test)
    return {
        split: drawn_even(task, number, generator(seed, task, split))
        for split, number in (("train", train), ("test", test))
    }


def drawn_even(task: str, number: int, rng: Rng) -> Part:
    """`number` drawn images of a task in random order, every class as often as every other."""
    classes = len(DRAWINGS[task].classnames)
    labels = rng.permutation(np.arange(number) % classes).astype(np.int64)
    return drawn_part(task, labels, rng)


def drawn_part(task: str, labels: NDArray[np.int64], rng: Rng) -> Part:
    """Drawn images of a task, one for each of `labels` [N]."""
    draw = DRAWINGS[task].draw
    return Part(np.stack([draw(int(label), rng) for label in labels]), labels)


def web(task: str, seed: int, number: int, skew: float, train: int = TRAIN) -> Part:
    """Pretraining images of a task: its classes with a long tail, as on the web.

    Class k in a random ranking occurs in proportion to 1 / k^skew, so the base knows some classes
    well and has hardly seen others: its zero-shot accuracy is moderate on every task. If the task's
    images are scans, a quarter are scans and the others printed, all classes equally often. The
    scans are those of the fit part of `train` images, on which experts are trained too, repeated.
    """
    rng = generator(seed, task, "web")
    classes = len(DRAWINGS[task].classnames)
    shares = rng.permutation(1.0 / np.arange(1, classes + 1) ** skew)
    if task != SCANNED:
        labels = rng.choice(classes, number, p=shares / shares.sum()).astype(np.int64)
        return drawn_part(task, labels, rng)
    scanned = parts(task, seed, train)["train"]
    fit, _ = partition(scanned.labels)
    weights = shares[scanned.labels[fit]]
    rows = rng.choice(fit, number // 4, p=weights / weights.sum())
    printed = drawn_part(task, np.arange(number - len(rows)) % classes, rng)
    return Part(
        np.concatenate([scanned.images[rows], printed.images]),
        np.concatenate([scanned.labels[rows], printed.labels]),
    )


def scans(seed: int, train: int, test: int) -> dict[str, Part]:
    """scikit-learn's 1797 scanned digits (8 × 8, 17 grey levels), enlarged: a third is test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.clip(bunch.images * 255 / 16, 0, 255).astype(np.uint8)
    images = np.stack(
        [
            np.asarray(Image.fromarray(scan).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
            for scan in grey
        ]
    )
    images = np.repeat(images[..., None], 3, axis=3)
    labels = bunch.target.astype(np.int64)
    order = generator(seed, "digits").permutation(len(labels))
    cut = len(order) // 3
    chosen = {"train": order[cut:][:train], "test": order[:cut][:test]}
    return {split: Part(images[rows], labels[rows]) for split, rows in chosen.items()}
