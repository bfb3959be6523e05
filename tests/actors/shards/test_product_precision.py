"""Precision of products of activations: how far from exact, what stays exact, and where it is on.

Tolerances: logits 2e-1, ∂L/∂coding 3e-2 of its norm, in bfloat16.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import CodeType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from actors.artifacts.in_model_state_file import load_resident
from actors.artifacts.recipe import Recipe
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import LocalExperts, local_experts
from actors.experts.model_runner import Precisions
from actors.shards.resident_model import ResidentModel
from actors.shards.shard import Shard
from fusion.merged_layers.functional import Form, contract, merge_weights, merged_linear
from fusion.merged_layers.precision import Precision, products
from fusion.merged_layers.tables import merged_embedding, merged_table
from fusion.methods.learned.steps import Gradient, MicroBatch
from fusion.task_vectors.lazy import Recomputed
from fusion.task_vectors.sparsify import Trim
from tests.actors.conftest import Tiny
from tests.actors.shards.world import World, make_world

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
ROWS = {"t0": [3, 0], "t1": [1, 5, 2, 2], "t2": [4, 6, 0]}


@pytest.fixture(scope="module")
def world(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tiny, tmp_path_factory.mktemp("precision"))


@pytest.fixture(scope="module")
def exact(world: World) -> LocalExperts:
    return world.experts(None)


def in_precision(
    world: World, precisions: Precisions, *blocks: tuple[int, int], dtype: Any = torch.float32
) -> LocalExperts:
    return local_experts(
        world.pool,
        world.data,
        EmbeddingCache(world.cache / "one", {key: key for key in (*world.data, "pretrained")}),
        dtype=dtype,
        blocks=blocks or (None,),
        vectors=world.doubles if dtype == torch.float64 else world.vectors,
        precisions=precisions,
    )


@pytest.fixture(scope="module", params=["whole", "cut"])
def rough(world: World, request: pytest.FixtureRequest) -> LocalExperts:
    blocks = [(0, 1), (1, 4)] if request.param == "cut" else []
    return in_precision(world, Precisions("bf16"), *blocks)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("task_arithmetic", {"scale": 0.4}),
        Recipe("experts"),
        Recipe("dawin", {"granularity": "sample"}),
        Recipe("ensemble"),
    ],
    ids=lambda recipe: recipe.method,
)
def test_it_selects_in_bf16_and_reports_in_fp32(
    exact: LocalExperts, rough: LocalExperts, recipe: Recipe
) -> None:
    for role in ("select", "report"):
        wanted, found = exact.logits(recipe, role), rough.logits(recipe, role)
        for task, z in wanted.items():
            if role == "report":
                assert torch.equal(found[task], z)
            else:
                assert not torch.equal(found[task], z)
                torch.testing.assert_close(found[task], z, rtol=0, atol=2e-1)


def gradients(experts: LocalExperts, coding: Tensor) -> list[Gradient]:
    rows = {task: torch.tensor(at) for task, at in ROWS.items()}
    return experts.gradients([MicroBatch(rows, coding)], "fit", Trim())


@pytest.mark.parametrize("kind", ["task mean", "layer mean", "layer sample"])
def test_gradients_in_bf16_against_float64(world: World, rough: LocalExperts, kind: str) -> None:
    coding = world.coding(kind, 9)
    (wanted,) = gradients(in_precision(world, Precisions(), dtype=torch.float64), coding)
    (found,) = gradients(rough, coding.float())
    off = (found.coding.double() - wanted.coding).norm() / wanted.coding.norm()
    assert 0 < off < 3e-2
    for task, loss in wanted.losses.items():
        assert found.losses[task] == pytest.approx(loss, abs=2e-2)


@pytest.mark.parametrize("method", ["wemoe", "concrete_task_arithmetic"])
def test_training_in_shards_follows(exact: LocalExperts, rough: LocalExperts, method: str) -> None:
    recipe = Recipe(method, {"batch_size": 4})
    states = []
    for experts in (exact, rough):
        state, losses = experts.train(recipe, None, 0, 2, seed=1)
        states.append((load_resident(state, method, experts.runner.tasks)[0], losses))
    (wanted, exact_losses), (found, losses) = states
    assert set(found) == set(wanted)
    assert any(not torch.equal(found[name], wanted[name]) for name in wanted)
    for one, other in zip(losses, exact_losses, strict=True):
        assert one == pytest.approx(other, abs=5e-2)


def test_statistics_and_merges_stay_exact(exact: LocalExperts, rough: LocalExperts) -> None:
    for recipe in (Recipe("regmean", {"examples": 8}), Recipe("fisher", {"examples": 4})):
        wanted, found = exact.merge(recipe), rough.merge(recipe)
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert torch.equal(rough.gram().total, exact.gram().total)


def test_embeddings_of_each_precision_are_cached_apart(world: World) -> None:
    cache = EmbeddingCache(world.cache / "apart", {"t0": "t0"})
    file = world.data["t0"].rows["select"].file
    made = [
        cache.get("t0", file, None, lambda value=value: torch.full((2, 3), value), precision)  # type: ignore[misc]
        for value, precision in ((1.0, "fp32"), (2.0, "bf16"), (3.0, "fp32"))
    ]
    assert [float(each[0, 0]) for each in made] == [1.0, 2.0, 1.0]


def operations() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    base, deltas = torch.randn(6, 5, generator=draw), torch.randn(2, 6, 5, generator=draw)
    c, ids = torch.rand(3, 2, generator=draw), torch.tensor([[1, 3]])
    gradient = torch.randn(3, 6, 5, generator=draw)
    return {
        "weights": lambda: merge_weights(c, base, deltas, torch.float32),
        "sums": lambda: contract(gradient, deltas),
        "table": lambda: merged_table(c, base, deltas),
        "made again": lambda: merged_table(c, base, Recomputed(lambda: deltas)),
        "embedding": lambda: merged_embedding(ids, c, base, deltas),
    }


@pytest.mark.parametrize("name", operations())
def test_merging_is_exact_within_a_pass(name: str) -> None:
    operation = operations()[name]
    wanted = operation()
    with products("bf16", CPU):
        found = operation()
        assert torch.is_autocast_enabled("cpu")
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("form", ["A", "B"])
@pytest.mark.parametrize("models", [1, 4])
def test_a_merged_layer_rounds_as_a_layer_does(form: Form, models: int) -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(4, 7, 32, generator=draw, requires_grad=True)
    base, deltas = torch.randn(16, 32, generator=draw), torch.randn(3, 16, 32, generator=draw) / 8
    c = torch.rand(models, 3, generator=draw).requires_grad_()
    with products("bf16", CPU):
        found = merged_linear(x, c, base, deltas, form=form)
    assert found.dtype == torch.bfloat16
    found.float().square().sum().backward()  # type: ignore[no-untyped-call]
    given = [tensor.detach().double().requires_grad_() for tensor in (x, c)]
    wanted = merged_linear(*given, base.double(), deltas.double())
    wanted.square().sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found.double(), wanted, rtol=2e-2, atol=2e-1)
    for mine, theirs in zip((x, c), given, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert mine.grad.dtype == torch.float32
        assert (mine.grad - theirs.grad).norm() < 2e-2 * theirs.grad.norm()


MERGING = {"merge_weights", "contract", "merged_table", "merged_embedding"}
"""Functions whose products are exact in every pass."""

PASSES = {
    Shard.chained.__code__,
    inspect.unwrap(ResidentModel.run).__code__,
    torch.autograd.backward.__code__,
}

PRODUCTS = ("mm", "bmm", "addmm", "addmv", "mv", "convolution", "linear")


class Switches(TorchDispatchMode):
    """Notes for each product whether TF32 is on, and what asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[bool, bool]] = set()
        """(whether of a pass and of no merge in it, whether TF32 is on)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__.rstrip("_") in PRODUCTS:
            codes = set(codes_of_frames())
            merging = not MERGING.isdisjoint(code.co_name for code in codes)
            passing = not PASSES.isdisjoint(codes)
            self.seen.add((passing and not merging, torch.backends.cuda.matmul.allow_tf32))
            assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32
        return func(*args, **(kwargs or {}))


def codes_of_frames() -> Iterator[CodeType]:
    frame = sys._getframe(1)
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back  # type: ignore[assignment]


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_tf32_is_on_in_passes_alone(world: World, precision: Precision) -> None:
    experts = in_precision(world, Precisions(precision))
    with Switches() as merging:
        experts.merge(Recipe("task_arithmetic", {"scale": 0.2}))
        experts.merge(Recipe("regmean", {"examples": 8}))
        experts.gram()
    assert {on for _, on in merging.seen} == {False}
    with Switches() as passes:
        experts.logits(Recipe("task_arithmetic", {"scale": 0.2}), "select")
        gradients(experts, world.coding("layer mean", 9).float())
    assert passes.seen == {(False, False), (True, precision == "tf32")}
    with Switches() as report:
        experts.logits(Recipe("task_arithmetic", {"scale": 0.2}), "report")
    assert {on for _, on in report.seen} == {False}
    assert not torch.backends.cuda.matmul.allow_tf32
