"""Every call of a replica, on the pretended device: whole, and cut into three shards."""

from dataclasses import replace

import pytest
import torch

from actors.artifacts.in_model_state_file import learned_of
from actors.artifacts.recipe import Recipe
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.in_model_training import plan_of
from actors.experts.local import local_experts
from actors.experts.model_runner import Precisions
from actors.experts.recipe import rebuilt
from actors.fleet.transport import pack, unpack
from actors.pool.vectors_on_disk import file_vectors, opened_vectors
from fusion.registry import (
    METHODS,
    InModel,
    PerTask,
    Static,
    StatisticsBased,
)
from fusion.task_vectors.sparsify import Trim
from tests.gpu.cases import (
    FITTED,
    GIVEN,
    IN_MODEL,
    NAMES,
    PLAIN,
    ROUGH,
    SELECTED,
    TAUGHT,
    few_rows,
    plan_and_batches,
    taught_recipe,
)
from tests.pretend.device import on_host, pretending

CUT = ((0, 1), (1, 2), (2, 4))


@pytest.fixture(scope="module")
def world(tiny_pool, tmp_path_factory):
    """A pool, a few rows of each task with made-up features, and a cache."""
    cache = tmp_path_factory.mktemp("pretended")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSION_SWEEPS_CACHE", str(cache))
        yield few_rows(tiny_pool.root, cache)


def experts_of(world, device, **given):
    """A replica in this process; embeddings of its own."""
    pool, data, cache = world
    place = cache / f"{device} {given.get('blocks')} {given.get('dtype')}" / "embeddings"
    kept = EmbeddingCache(place, {name: name for name in (*NAMES, "pretrained")})
    return local_experts(pool, data, kept, device=device, **given)


@pytest.fixture(scope="module")
def cpu(world):
    return experts_of(world, "cpu")


@pytest.fixture(scope="module", params=["whole", pytest.param("cut", marks=pytest.mark.slow)])
def gpu(request, world):
    with pretending():
        return experts_of(world, "cuda", blocks=(None,) if request.param == "whole" else CUT)


def assert_logits(found, wanted, dtype=torch.float32):
    assert list(found) == list(wanted)
    for task, z in wanted.items():
        torch.testing.assert_close(on_host(found[task]), z, rtol=0, atol=ROUGH[dtype])


QUICK = {"task_arithmetic", "ties", "regmean", "fisher", "ensemble", "tsv_m"}
"""Of plain methods those that are evaluated in `make test`."""


def cases(given, quick):
    """Parameters of a test; all but the quick ones are slow."""
    return [
        each if each in quick else pytest.param(*each, marks=pytest.mark.slow) for each in given
    ]


ASKED = [("pretrained", {}), ("experts", {}), *PLAIN]
FIRST = [
    (name, params) for name, params in PLAIN if name in QUICK and params == GIVEN.get(name, [{}])[0]
]


@pytest.mark.parametrize(("name", "params"), cases(ASKED, FIRST))
def test_evaluations(name, params, cpu, gpu):
    recipe = Recipe(name, params)
    wanted = cpu.logits(recipe, "select")
    with pretending():
        found = gpu.logits(recipe, "select")
    assert_logits(found, wanted)


MADE = [
    name
    for name, row in METHODS.items()
    if isinstance(row, Static) and not isinstance(row, PerTask)
]


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_merges_end_on_the_host(name, cpu, gpu):
    row = METHODS[name]
    params = GIVEN.get(name, [{}])[0]
    recipe = Recipe(
        name, {**params, **({"examples": 8} if isinstance(row, StatisticsBased) else {})}
    )
    wanted = cpu.merge(recipe)
    with pretending():
        found = gpu.merge(recipe)
    for key, tensor in wanted.items():
        assert type(found[key]) is torch.Tensor
        torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5)


def test_gram(cpu, gpu):
    with pretending():
        found = gpu.gram()
    torch.testing.assert_close(on_host(found.total), cpu.gram().total)


@pytest.mark.slow
@pytest.mark.parametrize("name", FITTED)
def test_fits(name, cpu, gpu):
    params = {"steps": 5} if "steps" in METHODS[name].parameters else {}
    kept, _ = cpu.fit(Recipe(name, params))
    wanted = cpu.logits(Recipe(name, params, kept), "select")
    with pretending():
        gpu.fit(Recipe(name, params))  # of few rows: a last digit may choose another α or β
        found = gpu.logits(Recipe(name, params, kept), "select")
    for task, z in wanted.items():
        assert float((on_host(found[task]) - z).norm()) <= 1e-3 * float(z.norm())


@pytest.mark.parametrize(("name", "params"), cases(TAUGHT, [TAUGHT[0], TAUGHT[5]]))
def test_gradients_and_what_was_learned(name, params, cpu, gpu):
    learning, given = plan_and_batches(name, params, cpu)
    role = learning.adapt_on
    wanted = cpu.gradients(given, role, learning.trim)
    with pretending():
        found = gpu.gradients(given, role, learning.trim)
    for got, want in zip(found, wanted, strict=True):
        assert got.losses == pytest.approx(want.losses, rel=1e-4)
        off = (on_host(got.coding) - want.coding).norm()
        assert float(off) <= 1e-4 * float(want.coding.norm())
    recipe = taught_recipe(name, params, cpu, (learning, given))
    wanted_logits = cpu.logits(recipe, "select")
    with pretending():
        found_logits = gpu.logits(recipe, "select")
    assert_logits(found_logits, wanted_logits)


@pytest.mark.parametrize(("name", "params"), cases(IN_MODEL, [IN_MODEL[0], IN_MODEL[4]]))
def test_what_lives_in_shards(name, params, world, cpu, gpu):
    recipe = Recipe(name, {"batch_size": 4, "learning_rate": 0.02, **params})
    state, losses = cpu.train(recipe, None, 0, 3, 5)
    with pretending():
        there, found = gpu.train(recipe, None, 0, 3, 5)
        half, _ = gpu.train(recipe, None, 0, 2, 5)
        resumed, _ = gpu.train(recipe, half, 2, 3, 5)
    assert resumed == there
    for got, want in zip(found, losses, strict=True):
        assert got == pytest.approx(want, rel=1e-3)
    steps = getattr(plan_of(recipe, NAMES, cpu.runner.pipeline.groups).options, "mask_steps", 0)
    learned = replace(recipe, learned=learned_of(state, name, NAMES, steps))
    wanted_logits = cpu.logits(learned, "select")
    with pretending():
        assert_logits(gpu.logits(learned, "select"), wanted_logits)
    row = METHODS[name]
    if isinstance(row, InModel) and row.blend is not None:
        # What is exported on a CPU is the model that was measured on the device.
        exported = rebuilt(world[0], learned)
        with pretending():
            measured = gpu.merge(learned)
        for key, tensor in exported.items():
            torch.testing.assert_close(measured[key], tensor, rtol=1e-5, atol=1e-6)


def test_no_kind_of_method_is_left_out():
    tried = {name for name, _ in (*PLAIN, *TAUGHT, *IN_MODEL)} | {*FITTED, *SELECTED}
    # What selection picks is a coding, which `adamerging` and `learned_soup` stand for.
    assert tried == set(METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_models_of_16_bits(dtype, world, cpu):
    with pretending():
        gpu = experts_of(world, "cuda", dtype=dtype)
    for name, params in (("task_arithmetic", {}), ("ties", {}), ("regmean", {"examples": 8})):
        wanted = cpu.logits(Recipe(name, params), "select")
        with pretending():
            assert_logits(gpu.logits(Recipe(name, params), "select"), wanted, dtype)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_products_in_another_precision(precision, world, cpu):
    """There is no TF32 here, so those are the numbers of float32."""
    with pretending():
        gpu = experts_of(world, "cuda", precisions=Precisions(precision))
    off = {"tf32": 1e-4, "bf16": 2e-1}[precision]
    for name in ("task_arithmetic", "experts"):
        wanted = cpu.logits(Recipe(name), "select")
        with pretending():
            found = gpu.logits(Recipe(name), "select")
        for task, z in wanted.items():
            torch.testing.assert_close(on_host(found[task]), z, rtol=0, atol=off)
            if precision == "bf16":
                assert not torch.allclose(on_host(found[task]), z, rtol=0, atol=1e-4)
    _, given = plan_and_batches("adamerging", {}, cpu)
    wanted = cpu.gradients(given, "select", Trim())
    with pretending():
        found = gpu.gradients(given, "select", Trim())
    for got, want in zip(found, wanted, strict=True):
        apart = (on_host(got.coding) - want.coding).norm() / want.coding.norm()
        assert float(apart) <= {"tf32": 1e-4, "bf16": 3e-2}[precision]


@pytest.mark.slow
def test_task_vectors_that_stay_in_files(world, cpu):
    pool, _, _ = world
    with pretending():
        filed = opened_vectors(file_vectors(pool), "cuda")
        gpu = experts_of(world, "cuda", vectors=filed)
    for name in ("task_arithmetic", "ties", "dare"):
        wanted = cpu.logits(Recipe(name), "select")
        with pretending():
            assert_logits(gpu.logits(Recipe(name), "select"), wanted)


def test_carries_travel_packed():
    with pretending():
        carry = {"hidden": torch.ones(3, 4, device="cuda"), "half": torch.ones(2, device="cuda")}
        carry["half"] = carry["half"].to(torch.bfloat16)
        found = unpack(pack(carry))
    assert all(type(each) is torch.Tensor for each in found.values())
    assert found["half"].dtype == torch.bfloat16
