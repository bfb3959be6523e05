"""All parts of the acceptance, by name."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tests.gpu import families, laws, layers, machine, memory, methods, product, speed
from tests.gpu.cases import few_rows
from tests.gpu.families import World
from tests.gpu.machine import Rates
from tests.gpu.places import Place
from tests.gpu.report import Part
from tests.tiny_pool import make_pool


def chosen(place: Place, root: Path, size: str, pool: Path | None = None) -> dict[str, Part]:
    """The parts, in a folder of their own.

    Args:
        place: where they run.
        root: an empty folder.
        size: of speed and memory.
        pool: a tiny pool that is there already; None: it is made when it is needed.
    """

    @cache
    def tiny() -> Path:
        return pool or make_pool(root / "tiny").root

    @cache
    def few() -> World:
        (root / "few").mkdir()
        return World(*few_rows(tiny(), root / "few"))

    rates = Rates(place, size == "tiny")
    of_families = {
        "clip": cache(lambda: families.clip(root / "clip", tiny())),
        "t5": cache(lambda: families.t5(root / "t5")),
        "bert": cache(lambda: families.bert(root / "bert")),
    }
    found = (
        machine.part(place, rates),
        methods.part(place, few),
        product.part(place, few, tiny, root / "product"),
        layers.part(place, of_families),
        speed.part(place, rates, size, root / "speed"),
        memory.part(place, size, root / "memory"),
        laws.part(place),
    )
    return {part.name: part for part in found}
