"""A pool whose task vectors are stored in bfloat16: half the memory, and exports with the bits of
what was evaluated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.artifacts.coding_file import dump_coding
from actors.artifacts.recipe import Recipe
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import local_experts
from actors.experts.recipe import rebuilt
from actors.pool.pool import load_flat, task_vectors
from actors.pool.vectors_in_memory import flatten, unflatten
from fusion.methods.learned.steps import MicroBatch
from fusion.task_vectors.lazy import NarrowTensors
from fusion.task_vectors.sparsify import Trim
from fusion.task_vectors.task_vectors import TaskVectors
from tests.actors.conftest import Tiny
from tests.actors.shards.world import World, make_world

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> World:
    found = make_world(tiny, tmp_path_factory.mktemp("narrow"))
    return replace(found, pool=replace(found.pool, deltas="bfloat16"))


@pytest.fixture(scope="module")
def narrow(world: World) -> TaskVectors:
    return task_vectors(world.pool)


@pytest.fixture(scope="module")
def wide(world: World) -> TaskVectors:
    """float32 task vectors with the same values."""
    deltas = {name: delta.bfloat16().float() for name, delta in world.vectors.deltas.items()}
    return replace(world.vectors, deltas=deltas)


def test_they_are_the_rounded_differences_in_half_the_memory(
    world: World, narrow: TaskVectors, wide: TaskVectors
) -> None:
    full = load_flat(replace(world.pool, deltas="float32"))
    half = load_flat(world.pool)
    assert sum(each.nbytes for each in half.deltas.values()) * 2 == sum(
        each.nbytes for each in full.deltas.values()
    )
    assert isinstance(narrow.deltas, NarrowTensors)
    assert list(narrow.deltas) == list(wide.deltas)
    for name, delta in wide.deltas.items():
        assert narrow.deltas.held(name).dtype == torch.bfloat16
        assert narrow.deltas[name].dtype == torch.float32
        assert torch.equal(narrow.deltas[name], delta)
    again = unflatten(flatten(narrow)).deltas
    assert isinstance(again, NarrowTensors)
    assert all(torch.equal(again[name], delta) for name, delta in narrow.deltas.items())


def test_learning_evaluation_and_export_agree(world: World, wide: TaskVectors) -> None:
    names = {key: key for key in (*world.data, "pretrained")}

    def experts(place: str, **given: TaskVectors):  # type: ignore[no-untyped-def]
        cache = EmbeddingCache(Path(world.cache / place), names)
        return local_experts(world.pool, world.data, cache, **given)

    rounded, exact = experts("narrow"), experts("wide", vectors=wide)
    coding = world.coding("layer mean", 1).float()
    rows = {"t0": torch.tensor([3, 0]), "t1": torch.tensor([1, 5])}
    given = [MicroBatch(rows, coding)]
    (found,), (wanted,) = (each.gradients(given, "fit", Trim()) for each in (rounded, exact))
    torch.testing.assert_close(found.coding, wanted.coding, rtol=1e-5, atol=1e-6)
    learned = dump_coding(coding, world.pool.tasks, world.pool.groups)
    for recipe in (Recipe("task_arithmetic", {"scale": 0.3}), Recipe("adamerging", {}, learned)):
        merged, exported = rounded.merge(recipe), rebuilt(world.pool, recipe)
        for name, tensor in exported.items():
            assert torch.equal(merged[name], tensor)
        assert any(
            not torch.equal(tensor, other)
            for tensor, other in zip(
                exported.values(),
                rebuilt(replace(world.pool, deltas="float32"), recipe).values(),
                strict=True,
            )
        )
