"""Tasks of surfaces: textures, and land seen from above."""

from __future__ import annotations

import numpy as np

from actors.embedded.canvas import (
    SIZE,
    TILT,
    Colour,
    Field,
    Pixels,
    Rng,
    near,
    photographed,
    ramp,
    smooth_field,
)

TEXTURES = (
    "horizontal stripes",
    "vertical stripes",
    "falling stripes",
    "rising stripes",
    "checks",
    "grid",
    "dots",
    "rings",
    "bricks",
    "waves",
)
LAND = ("forest", "river", "lake", "highway", "crops", "houses", "desert", "coast", "orchard")

ROWS, COLUMNS = np.meshgrid(np.arange(SIZE) - SIZE / 2, np.arange(SIZE) - SIZE / 2, indexing="ij")


def soft(values: Field, sharpness: float = 4.0) -> Field:
    """A smooth step: 0 where `values` are far below 0, 1 far above."""
    step: Field = 1 / (1 + np.exp(-np.clip(sharpness * values, -30, 30)))
    return step


def texture(label: int, rng: Rng) -> Pixels:
    """A texture of random period (4 to 9 pixels), phase, slight rotation and colours."""
    low, high = near((95, 55, 115), rng), near((230, 170, 150), rng)
    values = pattern(TEXTURES[label], rng)
    return photographed(ramp(values, low, high), rng)


def pattern(name: str, rng: Rng) -> Field:
    """The grey values [SIZE, SIZE] in [0, 1] of texture `name`."""
    wave = 2 * np.pi / rng.uniform(4, 9)
    turn, phase = np.radians(rng.uniform(-TILT, TILT)), rng.uniform(0, 2 * np.pi, 2)
    turn += {"falling stripes": np.pi / 4, "rising stripes": -np.pi / 4}.get(name, 0.0)
    y = (ROWS * np.cos(turn) - COLUMNS * np.sin(turn)) * wave + phase[0]
    x = (ROWS * np.sin(turn) + COLUMNS * np.cos(turn)) * wave + phase[1]
    if name == "vertical stripes":
        return soft(np.sin(x))
    if name == "checks":
        return soft(3 * np.sin(y) * np.sin(x))
    if name == "grid":
        return soft(np.maximum(np.sin(y), np.sin(x)) - 0.75, 8.0)
    if name == "dots":
        return soft(np.minimum(np.sin(y), np.sin(x)) - 0.1, 8.0)
    if name == "rings":
        middle = rng.uniform(-8, 8, 2)
        return soft(np.sin(np.hypot(ROWS - middle[0], COLUMNS - middle[1]) * wave + phase[0]))
    if name == "bricks":
        shift = np.where(np.floor(y / (2 * np.pi)) % 2, np.pi, 0.0)
        return soft(np.maximum(np.cos(y), np.cos(x / 1.5 + shift)) - 0.7, 8.0)
    if name == "waves":
        return soft(np.sin(y + 1.6 * np.sin(0.7 * x)))
    return soft(np.sin(y))  # the three other stripes


def land(label: int, rng: Rng) -> Pixels:
    """Land from above: random soil, and the objects or lines of its class."""
    soil = near((150, 120, 80), rng)
    ground = ramp(smooth_field(rng, 5), soil, near(soil, rng, 20))
    painted = LANDSCAPES[LAND[label]](ground, rng)
    return photographed(painted, rng)


def cover(ground: Field, mask: Field, paint: Colour) -> Field:
    """Paint over `ground` [SIZE, SIZE, 3] where `mask` [SIZE, SIZE] is 1."""
    return ground + mask[..., None] * (np.asarray(paint, float) - ground)


def across(rng: Rng, bend: float) -> Field:
    """Signed distance [SIZE, SIZE], in pixels, to a line through the image that bends."""
    turn, offset = rng.uniform(0, np.pi), rng.uniform(-6, 6)
    along = ROWS * np.sin(turn) + COLUMNS * np.cos(turn)
    over = ROWS * np.cos(turn) - COLUMNS * np.sin(turn) + offset
    distance: Field = over + bend * np.sin(along / rng.uniform(3.5, 6) + rng.uniform(0, 6))
    return distance


def forest(ground: Field, rng: Rng) -> Field:
    """Tree crowns without a gap."""
    green = near((50, 90, 45), rng, 25)
    return 0.25 * ground + 0.75 * ramp(smooth_field(rng, 13), green, near(green, rng, 45))


def river(ground: Field, rng: Rng) -> Field:
    """A bending stream."""
    return cover(ground, soft(rng.uniform(2, 4) - np.abs(across(rng, 4.0))), water(rng))


def water(rng: Rng) -> Colour:
    """A colour of water, from blue to brown."""
    return near((70, 95, 125), rng, 45)


def lake(ground: Field, rng: Rng) -> Field:
    """A closed shore."""
    middle, radius = rng.uniform(-6, 6, 2), rng.uniform(6, 10)
    shore = radius - np.hypot(ROWS - middle[0], COLUMNS - middle[1])
    return cover(ground, soft(shore + 5 * (smooth_field(rng, 6) - 0.5)), water(rng))


def highway(ground: Field, rng: Rng) -> Field:
    """A straight grey band with a pale line in it."""
    distance = np.abs(across(rng, 0.0))
    grey = int(rng.integers(80, 150))
    road = cover(ground, soft(rng.uniform(2.2, 4) - distance), (grey, grey, grey))
    return cover(road, 0.7 * soft(0.6 - distance), (220, 220, 200))


def crops(ground: Field, rng: Rng) -> Field:
    """Furrows, in one or two fields."""
    rows = np.sin(across(rng, 0.0) * 2 * np.pi / rng.uniform(3, 5))
    green = near((110, 140, 60), rng, 40)
    return cover(ground, 0.9 * soft(rows) * soft(across(rng, 0.0) + 9), green)


def houses(ground: Field, rng: Rng) -> Field:
    """Roofs in loose rows along the image's axes."""
    step, (top, left) = int(rng.integers(7, 10)), rng.integers(0, 5, 2)
    for row in range(top, SIZE - 3, step):
        for column in range(left, SIZE - 3, step):
            if rng.random() < 0.85:
                height, width = rng.integers(3, 6, 2)
                roof = near((170, 90, 75), rng, 50)
                ground[row : row + height, column : column + width] = roof
    return ground


def desert(ground: Field, rng: Rng) -> Field:
    """Sand with soft dunes."""
    sand = near((205, 180, 130), rng, 30)
    dunes = soft(np.sin(across(rng, 2.0) * 2 * np.pi / rng.uniform(8, 13)), 1.5)
    return 0.3 * ground + 0.7 * ramp(dunes, sand, near(sand, rng, 30))


def coast(ground: Field, rng: Rng) -> Field:
    """MemoryMeter on one side, with surf."""
    distance = across(rng, 1.5)
    sea = cover(ground, soft(distance), water(rng))
    return cover(sea, 0.8 * soft(1.2 - np.abs(distance)), (225, 225, 215))


def orchard(ground: Field, rng: Rng) -> Field:
    """Single trees on a lattice."""
    wave, phase = 2 * np.pi / rng.uniform(5, 7.5), rng.uniform(0, 6, 2)
    turn = rng.uniform(-0.4, 0.4)
    y = (ROWS * np.cos(turn) - COLUMNS * np.sin(turn)) * wave + phase[0]
    x = (ROWS * np.sin(turn) + COLUMNS * np.cos(turn)) * wave + phase[1]
    trees = soft(np.minimum(np.sin(y), np.sin(x)) - 0.1, 8.0)
    return cover(ground, trees, near((55, 95, 50), rng, 25))


LANDSCAPES = {
    "forest": forest,
    "river": river,
    "lake": lake,
    "highway": highway,
    "crops": crops,
    "houses": houses,
    "desert": desert,
    "coast": coast,
    "orchard": orchard,
}
