"""Every call of a replica, on the pretended device: whole, and cut into three shards."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from actors.artifacts.coding_file import dump_coding
from actors.artifacts.gate_file import Manifest, dump
from actors.artifacts.in_model_state_file import learned_of
from actors.artifacts.recipe import Recipe
from actors.data.images.pixel_cache import open_pixels
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.in_model_training import plan_of
from actors.experts.local import local_experts
from actors.experts.model_runner import Precisions
from actors.experts.prepare_data import prepare_data
from actors.experts.recipe import rebuilt
from actors.files.matrix_file import write_matrix
from actors.fleet.transport import pack, unpack
from actors.pool.pool import open_pool
from actors.pool.vectors_on_disk import file_vectors, opened_vectors
from fusion.methods.learned.gate import Gate
from fusion.methods.learned.steps import MicroBatch, Shape, micro_batches
from fusion.registry import (
    METHODS,
    Adaptive,
    Fitted,
    Gated,
    InModel,
    LogitSpace,
    PerTask,
    Routed,
    Selected,
    Static,
    StatisticsBased,
)
from fusion.task_vectors.sparsify import Trim
from tests.pretend.device import on_host, pretending

NAMES = ("lines", "tones", "blobs")
CUT = ((0, 1), (1, 2), (2, 4))
ROWS, WIDTH, EXTRACTOR = 8, 6, "made-up"
ROUGH = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-1}
"""dtype -> how far logits may be from the CPU's, absolutely."""


@pytest.fixture(scope="module")
def world(tiny_pool, tmp_path_factory):
    """A pool, a few rows of each task with made-up features, and a cache."""
    root, cache = tiny_pool.root, tmp_path_factory.mktemp("pretended")
    patch = pytest.MonkeyPatch()
    patch.setenv("FUSION_SWEEPS_CACHE", str(cache))
    pool = open_pool(str(root / "base"), {name: str(root / "experts" / name) for name in NAMES})
    tasks = {name: open_task(TaskSource(name, str(root / "data" / name))) for name in NAMES}
    found = prepare_data(pool.base, tasks, Splits(), ["fit", "select"], cache)
    draw, data = np.random.default_rng(3), {}
    for name, task in found.items():
        rows = {}
        for role, each in task.rows.items():
            count = len(open_pixels(each.file).labels)
            path = cache / f"{name}-{role}.arrow"
            write_matrix(
                path, np.arange(count), WIDTH, [draw.normal(size=(count, WIDTH)).astype(np.float32)]
            )
            at = np.arange(count) if each.indices is None else each.indices
            few = of_every_class(open_pixels(each.file).labels.numpy(), at)
            rows[role] = replace(each, indices=few, features={EXTRACTOR: path})
        data[name] = replace(task, rows=rows)
    yield pool, data, cache
    patch.undo()


def of_every_class(labels, at):
    """`ROWS` of these rows, in turn of each class."""
    turns = [at[labels[at] == label] for label in np.unique(labels)]
    mixed = [rows[i] for i in range(ROWS) for rows in turns if i < len(rows)]
    return np.sort(np.array(mixed[:ROWS]))


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


GIVEN = {
    "fisher": [{"examples": 4}, {"examples": 4, "estimate": "exact"}, {"estimate": "batch"}],
    "regmean": [{"examples": 8}],
    "regmean_plusplus": [{"examples": 8}],
    "wise_ft": [{"expert": "tones"}],
    "slerp": [{"experts": ["lines", "tones"]}],
    "wudi": [{"steps": 3}],
    "ties": [{}, {"compat": "fusionbench", "density": 0.3}, {"granularity": "tensor"}],
    "dare": [{}, {"merge": "ties"}],
    "dawin": [
        {}, {"granularity": "sample"}, {"granularity": "cluster", "clusters": 2},
        {"combine": "outputs"},
    ],
}  # fmt: skip
"""method -> parameters; of all others the defaults."""

QUICK = {"task_arithmetic", "ties", "regmean", "fisher", "ensemble", "tsv_m"}
"""Of plain methods those that are evaluated in `make test`."""


def cases(given, quick):
    """Parameters of a test; all but the quick ones are slow."""
    return [
        each if each in quick else pytest.param(*each, marks=pytest.mark.slow) for each in given
    ]


PLAIN = [
    (name, params)
    for name, row in METHODS.items()
    if isinstance(row, Static | LogitSpace | Routed)
    for params in GIVEN.get(name, [{}])
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


FITTED = [name for name, row in METHODS.items() if isinstance(row, Fitted)]


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


TAUGHT = [
    ("adamerging", {}), ("adamerging", {"grouping": "task", "density": 0.3}),
    ("adamerging", {"tasks_at_once": 1}), ("learned_soup", {}),
    ("dawe", {}), ("dawe", {"grouping": "layer", "batch_mean": False}), ("dawe", {"density": 0.5}),
    ("dawe", {"delta_dtype": "bfloat16"}),
]  # fmt: skip


def detached(micro_batch):
    beta = None if micro_batch.beta is None else micro_batch.beta.detach()
    return MicroBatch(micro_batch.rows, micro_batch.coding.detach(), beta)


@pytest.mark.parametrize(("name", "params"), cases(TAUGHT, [TAUGHT[0], TAUGHT[5]]))
def test_gradients_and_what_was_learned(name, params, cpu, gpu):
    shape = Shape(cpu.runner.tasks, cpu.runner.pipeline.groups, WIDTH)
    row = METHODS[name]
    assert isinstance(row, Adaptive | Gated)
    learning = row.plan(shape, **{**params, "batch_size": 4})
    role = learning.adapt_on
    features = {task: cpu.runner.features(task, role, EXTRACTOR) for task in NAMES}
    given = micro_batches(learning, dict.fromkeys(NAMES, ROWS), features, 0, 3)
    given = [detached(micro_batch) for micro_batch in given]
    wanted = cpu.gradients(given, role, learning.trim)
    with pretending():
        found = gpu.gradients(given, role, learning.trim)
    for got, want in zip(found, wanted, strict=True):
        assert got.losses == pytest.approx(want.losses, rel=1e-4)
        off = (on_host(got.coding) - want.coding).norm()
        assert float(off) <= 1e-4 * float(want.coding.norm())
    if isinstance(row, Gated):
        recipe = Recipe(name, params, gate_of(cpu, name, learning.router))
    else:
        coding = given[0].coding
        recipe = Recipe(
            name, params, dump_coding(coding, cpu.runner.tasks, cpu.runner.pipeline.groups, 1.0)
        )
    wanted_logits = cpu.logits(recipe, "select")
    with pretending():
        found_logits = gpu.logits(recipe, "select")
    assert_logits(found_logits, wanted_logits)


def gate_of(experts, name, gate: Gate) -> bytes:
    """The file of a gate that tells samples apart."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=draw)
    layer = gate.groups > 1
    about = Manifest(
        method=name, extractor="made-up", extractor_hash=EXTRACTOR, preprocessing="none",
        width=WIDTH, tasks=experts.runner.tasks, grouping="layer" if layer else "task",
        keys=experts.runner.pipeline.groups if layer else (), steps=1, **gate.options,
    )  # fmt: skip
    return dump(gate, about)


IN_MODEL = [
    ("wemoe", {}), ("wemoe", {"depth": 1, "batch_mean": False}), ("ewemoe", {"prune": 0.6}),
    ("concrete_task_arithmetic", {}),
    ("concrete_task_arithmetic", {"tasks_at_once": 2, "mask": "discrete"}),
    ("concrete_adamerging", {"steps": 1, "coefficient_steps": 2}),
]  # fmt: skip


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


SELECTED = [name for name, row in METHODS.items() if isinstance(row, Selected)]


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
    shape = Shape(cpu.runner.tasks, cpu.runner.pipeline.groups, WIDTH)
    given = micro_batches(
        METHODS["adamerging"].plan(shape, batch_size=4), dict.fromkeys(NAMES, ROWS), {}, 0, 3
    )
    given = [detached(micro_batch) for micro_batch in given]
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
