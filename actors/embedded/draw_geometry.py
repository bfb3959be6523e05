"""Tasks of geometric shapes: road signs, dials, and objects to count."""

from __future__ import annotations

import numpy as np
from PIL import ImageDraw

from actors.embedded.canvas import (
    JITTER,
    SIZE,
    SUPER,
    TILT,
    Colour,
    Pixels,
    Point,
    Rng,
    drawn,
    near,
    photographed,
)

SIGNS = (
    "stop",
    "yield",
    "warning",
    "no entry",
    "turn left",
    "turn right",
    "straight ahead",
    "crossing",
    "priority",
    "roundabout",
)
DIRECTIONS = (
    "north",
    "northeast",
    "east",
    "southeast",
    "south",
    "southwest",
    "west",
    "northwest",
)
COUNTS = ("one", "two", "three", "four", "five", "six")

CORNERS: tuple[Point, ...] = ((-1, -1), (1, 1), (-1, 1), (1, -1))
SIDES: tuple[Point, ...] = ((-1, 0), (1, 0))
MIDDLE: tuple[Point, ...] = ((0, 0),)
PIPS = (
    MIDDLE,
    CORNERS[:2],
    CORNERS[:2] + MIDDLE,
    CORNERS,
    CORNERS + MIDDLE,
    CORNERS + SIDES,
)
"""Where the pips of each count are, in steps from the middle."""


def ring(middle: Point, radius: float, corners: int, turn: float) -> list[Point]:
    """The corners of a regular polygon; `turn` in radians, 0 points up."""
    angles = turn + 2 * np.pi * np.arange(corners) / corners
    x, y = middle[0] + radius * np.sin(angles), middle[1] - radius * np.cos(angles)
    return [(float(a), float(b)) for a, b in zip(x, y, strict=True)]


def arrow(middle: Point, length: float, turn: float) -> list[Point]:
    """An arrow's outline, `length` long, pointing at `turn` radians (0: up)."""
    shape = np.array(
        [(0, -1), (0.6, -0.3), (0.22, -0.3), (0.22, 1), (-0.22, 1), (-0.22, -0.3), (-0.6, -0.3)]
    )
    cos, sin = np.cos(turn), np.sin(turn)
    turned = shape @ np.array([[cos, sin], [-sin, cos]]) * length / 2 + np.array(middle)
    return [(float(x), float(y)) for x, y in turned]


def sign(label: int, rng: Rng) -> Pixels:
    """A road sign: its shape and symbol tell the class, its colours do not."""
    ground, plate = near((90, 140, 80), rng), near((215, 70, 60), rng)
    mark = near((235, 235, 225), rng)
    radius = rng.uniform(11, 14) * SUPER
    x, y = SIZE * SUPER / 2 + rng.uniform(-JITTER, JITTER, 2) * SUPER
    tilt = float(np.radians(rng.uniform(-TILT, TILT)))

    def paint(draw: ImageDraw.ImageDraw, unit: float) -> None:
        paint_sign(draw, SIGNS[label], ((x, y), radius, tilt), (plate, mark), unit)

    return photographed(drawn(ground, paint), rng)


def paint_sign(
    draw: ImageDraw.ImageDraw,
    name: str,
    place: tuple[Point, float, float],
    colours: tuple[Colour, Colour],
    unit: float,
) -> None:
    """Paint the plate of sign `name`, then its symbol; `place` is middle, radius and tilt."""
    middle, radius, tilt = place
    plate, mark = colours
    corners, turn = {
        "stop": (8, np.pi / 8),
        "yield": (3, np.pi),
        "warning": (3, 0.0),
        "crossing": (4, np.pi / 4),
        "priority": (4, 0.0),
    }.get(name, (32, 0.0))
    draw.polygon(ring(middle, radius, corners, turn + tilt), fill=plate)
    arrows = {"turn left": -np.pi / 2, "turn right": np.pi / 2, "straight ahead": 0.0}
    if name in arrows:
        draw.polygon(arrow(middle, 1.3 * radius, arrows[name] + tilt), fill=mark)
    elif name == "no entry":
        bar = np.array(ring(middle, 0.7 * radius, 2, np.pi / 2 + tilt)).ravel()
        draw.line([float(v) for v in bar], fill=mark, width=int(4 * unit))
    elif name == "crossing":
        for half in (0.0, np.pi / 2):
            line = np.array(ring(middle, 0.6 * radius, 2, half + np.pi / 4 + tilt)).ravel()
            draw.line([float(v) for v in line], fill=mark, width=int(2.5 * unit))
    elif name in ("priority", "roundabout", "yield", "warning"):
        inner = ring(middle, 0.5 * radius, corners, turn + tilt)
        draw.polygon(inner, fill=mark)


def dial(label: int, rng: Rng) -> Pixels:
    """A round dial whose hand points in one of eight directions, ± 12 degrees."""
    ground, face = near((135, 135, 140), rng), near((55, 55, 60), rng)
    hand = near((240, 200, 60), rng)
    turn = 2 * np.pi * label / len(DIRECTIONS) + np.radians(rng.uniform(-TILT, TILT))
    radius = rng.uniform(11, 14) * SUPER
    x, y = SIZE * SUPER / 2 + rng.uniform(-JITTER, JITTER, 2) * SUPER

    def paint(draw: ImageDraw.ImageDraw, unit: float) -> None:
        draw.polygon(ring((x, y), radius, 32, 0.0), fill=face)
        tip = ring((x, y), 0.85 * radius, 1, turn)[0]
        tail = ring((x, y), 0.2 * radius, 1, turn + np.pi)[0]
        draw.line([*tail, *tip], fill=hand, width=int(rng.uniform(2, 3.2) * unit))
        hub = rng.uniform(1, 2) * unit
        draw.ellipse([x - hub, y - hub, x + hub, y + hub], fill=hand)

    return photographed(drawn(ground, paint), rng)


def count(label: int, rng: Rng) -> Pixels:
    """`label + 1` pips, arranged as on a die."""
    ground, pip = near((200, 235, 235), rng), near((140, 40, 140), rng)
    step, radius = rng.uniform(7.5, 9.5) * SUPER, rng.uniform(2.3, 3.4) * SUPER
    middle = SIZE * SUPER / 2 + rng.uniform(-JITTER, JITTER, 2) * SUPER
    turn = np.radians(rng.uniform(-TILT, TILT))
    cos, sin = np.cos(turn), np.sin(turn)
    places = np.array(PIPS[label]) @ np.array([[cos, sin], [-sin, cos]]) * step + middle
    places += rng.uniform(-0.7, 0.7, places.shape) * SUPER

    def paint(draw: ImageDraw.ImageDraw, unit: float) -> None:
        for x, y in places:
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=pip)

    return photographed(drawn(ground, paint), rng)
