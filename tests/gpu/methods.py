"""Every method of the table against float64 on the CPU.

Merges of weights by themselves, on tensors of some thousand elements; all else in a replica of a
tiny CLIP: logits, gradients, steps of methods that learn in the model. Then models of 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from actors.artifacts.in_model_state_file import learned_of
from actors.artifacts.recipe import Recipe
from actors.experts.in_model_training import plan_of
from actors.experts.local import LocalExperts
from fusion import testing
from fusion.registry import METHODS, Fitted
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion import laws
from tests.gpu.cases import (
    FITTED,
    IN_MODEL,
    NAMES,
    PLAIN,
    ROUGH,
    TAUGHT,
    plan_and_batches,
    taught_recipe,
)
from tests.gpu.families import World
from tests.gpu.places import Place, distance, doubled, flat, widened
from tests.gpu.report import CHECKED, Found, Part, Row, within

SHAPES: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
    "embed.weight": (torch.float32, (300, 48)),
    "conv.weight": (torch.float32, (32, 3, 8, 8)),
    "block.0.weight": (torch.float32, (96, 64)),
    "block.0.bias": (torch.float32, (96,)),
    "block.1.weight": (torch.float32, (64, 96)),
    "logit_scale": (torch.float32, ()),
}
"""Of the merged model."""

DECOMPOSED = {"tsv_m", "iso_c", "iso_cts", "wudi", "regmean", "regmean_plusplus", "lot",
              "fisher"}  # fmt: skip
"""Methods that decompose, solve or divide: 1e-4 of the norm is allowed, else 1e-6."""

HALF = 4e-3
"""Of the weight, where the model is in bfloat16: half a unit in its last place."""

AGREES = {torch.float32: 0.99, torch.bfloat16: 0.97}
"""dtype -> share of rows whose first class must be that of float64."""

ROUNDED = 2e-2
"""Of logits, where task vectors are rounded to bfloat16."""

QUICK = ("task_arithmetic", "ties", "fisher", "regmean", "tsv_m")
"""Merges that are also tried with a model in bfloat16."""


def merge_vectors(dtype: torch.dtype) -> TaskVectors:
    """Drawn base and experts of `SHAPES`."""
    kinds = {name: (dtype, shape) for name, (_, shape) in SHAPES.items()}
    with patch.dict(testing.SCHEMAS, {"wide": kinds}):
        return laws.toy("wide")


def merged(place: Place, name: str, dtype: torch.dtype) -> Found:
    """A method's merges there; of a model in float32 the differences to the base are compared."""
    vectors, off = merge_vectors(dtype), 0.0
    half = dtype == torch.bfloat16
    most = HALF if half else 1e-4 if name in DECOMPOSED else 1e-6
    tried = laws.examples(name, vectors)
    for params in tried:
        found = flat(laws.merge(name, place.vectors(vectors), params))
        exact = doubled(vectors)
        wanted, base = flat(laws.merge(name, exact, widened(params))), flat(exact.base)
        off = max(off, distance(found, wanted) if half else distance(found - base, wanted - base))
    return within(off, most, f"{len(tried)} parameter sets")


def compared(
    found: dict[str, Tensor],
    wanted: dict[str, Tensor],
    dtype: torch.dtype = torch.float32,
    rounded: bool = False,
) -> Found:
    """Logits: largest difference, and rows whose first class is the same.

    `rounded`: whether the task vectors were rounded to 16 bits.
    """
    most = ROUNDED if rounded else ROUGH[dtype]
    off = max(float((found[t].cpu().double() - wanted[t].double()).abs().max()) for t in wanted)
    same = [(found[t].cpu().argmax(1) == wanted[t].argmax(1)).double() for t in wanted]
    share = float(torch.cat(same).mean())
    right = off <= most and share >= AGREES[dtype]
    return replace(within(off, most, f"same first class: {share:.0%}"), right=right)


class Replicas:
    """One there, one on the CPU in float64, and one there in bfloat16; made when first used."""

    def __init__(self, place: Place, make: Callable[[], World]) -> None:
        """`make`: gives the pool and its rows."""
        self.place, self.make = place, make
        self.made: dict[Any, Any] = {}

    def known(self, key: Any, make: Callable[[], Any]) -> Any:
        """Made once."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    @property
    def world(self) -> World:
        """Pool and rows."""
        return self.known("world", self.make)  # type: ignore[no-any-return]

    def there(self, dtype: torch.dtype = torch.float32) -> LocalExperts:
        """On the device."""
        return self.known(dtype, lambda: self.world.experts(self.place, dtype))  # type: ignore[no-any-return]

    @property
    def host(self) -> LocalExperts:
        """In float32 on the CPU."""
        return self.known("host", lambda: self.world.experts(Place("cpu")))  # type: ignore[no-any-return]

    def logits(self, recipe: Recipe, dtype: torch.dtype = torch.float32) -> Found:
        """A recipe's logits there against float64's."""
        found = self.there(dtype).logits(recipe, "select")
        rounded = recipe.params.get("delta_dtype") == "bfloat16"
        return compared(found, self.world.exact.logits(recipe, "select"), dtype, rounded)

    def fitted(self, name: str) -> Found:
        """A classifier fitted on the CPU, applied there."""
        row = METHODS[name]
        assert isinstance(row, Fitted)
        params = {"steps": 5} if "steps" in row.parameters else {}
        kept, _ = self.host.fit(Recipe(name, params))
        recipe = Recipe(name, params, kept)
        found, wanted = (e.logits(recipe, "select") for e in (self.there(), self.world.exact))
        return within(max(distance(found[task], z) for task, z in wanted.items()), 1e-3)

    def taught(self, name: str, params: dict[str, Any]) -> Found:
        """Gradients of a step's codings there, and the logits of the models that they make."""
        learning, given = plan_and_batches(name, params, self.host)
        role, off, loss = learning.adapt_on, 0.0, 0.0
        exact = [replace(each, coding=each.coding.double()) for each in given]
        wanted = self.world.exact.gradients(exact, role, learning.trim)
        found = self.there().gradients(given, role, learning.trim)
        for got, want in zip(found, wanted, strict=True):
            off = max(off, distance(got.coding, want.coding))
            loss = max(loss, *(abs(got.losses[task] - each) for task, each in want.losses.items()))
        allowed = 3e-2 if params.get("delta_dtype") == "bfloat16" else 1e-4
        recipe = taught_recipe(name, params, self.host, (learning, given))
        rest = self.logits(recipe)
        checked = within(off, allowed, f"losses: {loss:.1e}; logits: {', '.join(rest.cells[::2])}")
        return replace(checked, right=off <= allowed and loss <= allowed and bool(rest.right))

    def trained(self, name: str, params: dict[str, Any]) -> Found:
        """Three steps in the model there, twice the same; losses and logits against the CPU's."""
        recipe = Recipe(name, {"batch_size": 4, "learning_rate": 0.02, **params})
        state, losses = self.host.train(recipe, None, 0, 3, 5)
        there, found = self.there().train(recipe, None, 0, 3, 5)
        again, _ = self.there().train(recipe, None, 0, 3, 5)
        pairs = [
            (got[k], each) for got, w in zip(found, losses, strict=True) for k, each in w.items()
        ]
        off = max(abs(got - each) / max(abs(each), 1e-6) for got, each in pairs)
        groups = self.host.runner.pipeline.groups
        steps = getattr(plan_of(recipe, NAMES, groups).options, "mask_steps", 0)
        learned = replace(recipe, learned=learned_of(state, name, NAMES, steps))
        rest = compared(self.there().logits(learned, "select"), self.host.logits(learned, "select"))
        same = "repeated: the same bits" if again == there else "repeated: other bits"
        checked = within(off, 1e-3, f"logits: {', '.join(rest.cells[::2])}; {same}")
        return replace(checked, right=off <= 1e-3 and bool(rest.right))


def said(name: str, params: dict[str, Any]) -> str:
    """A method with its parameters."""
    return ", ".join([name, *(f"{key} {value}" for key, value in params.items())])


def in_replicas(replicas: Replicas) -> Iterator[Row]:
    """Rows of what needs a model."""
    for name, params in [("pretrained", {}), ("experts", {}), *PLAIN]:
        recipe = Recipe(name, params)
        yield Row(f"{said(name, params)}: logits", lambda r=recipe: replicas.logits(r))
    for name in FITTED:
        yield Row(f"{name}: logits of a fit", lambda name=name: replicas.fitted(name))
    for cases, check, what in (
        (TAUGHT, replicas.taught, "gradients"), (IN_MODEL, replicas.trained, "steps"),
    ):  # fmt: skip
        for name, params in cases:
            yield Row(
                f"{said(name, params)}: {what}",
                lambda check=check, name=name, params=params: check(name, params),
            )
    for name in ("task_arithmetic", "ties"):
        yield Row(
            f"{name}: logits in bfloat16",
            lambda name=name: replicas.logits(Recipe(name), torch.bfloat16),
        )


def part(place: Place, make: Callable[[], World]) -> Part:
    """`make`: gives the tiny pool's world."""
    replicas = Replicas(place, make)

    def rows() -> Iterator[Row]:
        for name in laws.STATIC:
            yield Row(f"{name}: merges", lambda name=name: merged(place, name, torch.float32))
        for name in QUICK:
            yield Row(
                f"{name}: merges in bfloat16",
                lambda name=name: merged(place, name, torch.bfloat16),
            )
        yield from in_replicas(replicas)

    note = (
        "Against float64 on the CPU. Merges: relative L2 difference of merged − base (in bfloat16:"
        " of the weights). Logits: largest difference. Gradients: relative L2. Steps of methods"
        " that learn in the model: relative difference of losses from the CPU's in float32."
    )
    return Part("methods", CHECKED, 90, rows, note)
