"""Every method of weights, and layers that read merged weights, there and on the CPU."""

from dataclasses import replace

import pytest
import torch

from actors.pool.vectors_in_memory import flatten, unflatten
from fusion.methods.learned.concrete import drawn, mask_of, masked_merge
from fusion.methods.learned.in_model import MaskOptions
from fusion.registry import METHODS, InModel
from fusion.task_vectors.lazy import widened
from fusion.task_vectors.packed import packed
from fusion.task_vectors.random_draws import bernoulli, key_of, uniform
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion import laws
from tests.fusion.laws import LEARNING, SCHEMAS, SELECTED, STATIC, examples, tied, toy
from tests.gpu.layers import forms, linear, others, wide
from tests.gpu.places import distance
from tests.pretend.device import OnGpu, on_gpu, on_host, pretending


def there(vectors: TaskVectors) -> TaskVectors:
    """The same task vectors on the pretended device."""
    return TaskVectors(
        vectors.tasks,
        {name: on_gpu(tensor) for name, tensor in vectors.base.items()},
        {name: on_gpu(tensor) for name, tensor in vectors.deltas.items()},
        None,
        vectors.groups,
    )


def assert_equal_there(found, wanted, relative=1e-6):
    """All on the device, and the CPU's to a relative norm (of 16 bits: to their rounding)."""
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert isinstance(found[name], OnGpu), name
        assert found[name].dtype == tensor.dtype, name
        if not tensor.is_floating_point():
            assert torch.equal(on_host(found[name]), tensor), name
            continue
        rough = max(relative, torch.finfo(tensor.dtype).eps)
        off = (on_host(found[name]).double() - tensor.double()).norm()
        assert float(off) <= rough * float(tensor.double().norm()) + 1e-12, name


def together(vectors: TaskVectors) -> TaskVectors:
    """The same task vectors packed on the pretended device, as the product loads them."""
    made = replace(unflatten(flatten(vectors), "cuda"), groups=vectors.groups)
    kinds = {name: (t.shape, t.dtype) for name, t in vectors.base.items()}
    return made.into(packed(kinds, "cuda", aligned=16)) if len(vectors.base) % 2 else made


KINDS = [
    schema if schema == "float32" else pytest.param(schema, marks=pytest.mark.slow)
    for schema in SCHEMAS
]


@pytest.mark.parametrize("make", [toy, tied])
@pytest.mark.parametrize("schema", KINDS)
@pytest.mark.parametrize("name", STATIC)
def test_static_methods(name, schema, make):
    vectors = make(schema)
    for params in examples(name, vectors):
        wanted = laws.merge(name, vectors, params)
        given = [params]
        if "statistics" in params:  # of files: on the CPU; gathered now: on the device
            moved = {key: on_gpu(each) for key, each in params["statistics"].items()}
            given.append({**params, "statistics": moved})
        for each in given:
            with pretending():
                found = laws.merge(name, there(vectors), each)
                at_once = laws.merge(name, together(vectors), each)
            assert_equal_there(found, wanted, 1e-4 if name in SPECTRAL else 1e-6)
            assert_equal_there(at_once, wanted, 1e-4 if name in SPECTRAL else 1e-6)


@pytest.mark.parametrize("make", [toy, tied])
@pytest.mark.parametrize("name", STATIC)
def test_static_methods_of_task_vectors_in_bfloat16(name, make):
    vectors = make()
    narrow = {key: delta.bfloat16() for key, delta in vectors.deltas.items()}
    stored = replace(vectors, deltas=widened(narrow))
    for params in examples(name, vectors):
        wanted = laws.merge(name, stored, params)
        with pretending():
            found = laws.merge(name, together(stored), params)
        assert_equal_there(found, wanted, 1e-4 if name in SPECTRAL else 1e-6)


SPECTRAL = {"tsv_m", "iso_c", "iso_cts", "wudi", "regmean", "regmean_plusplus", "lot"}


@pytest.mark.parametrize("name", [*LEARNING, *SELECTED])
def test_codings(name):
    from fusion.task_vectors.coding import mix

    vectors = toy()
    generator = torch.Generator().manual_seed(0)
    coding = torch.rand(1, len(vectors.tasks), len(vectors.groups), generator=generator)
    with pretending():
        found, at_once = mix(there(vectors), coding), mix(together(vectors), coding)
    assert_equal_there(found, mix(vectors, coding))
    assert_equal_there(at_once, mix(vectors, coding))


@pytest.mark.parametrize("entries", [1 << 23, 50])
def test_codings_of_blocks_are_batched(entries, monkeypatch):
    """Blocks of equal tensors, one coding a tensor; also in 16 bits, and piece by piece."""
    from fusion.task_vectors.coding import mix

    for module in ("coding", "elementwise", "packed"):
        monkeypatch.setattr(f"fusion.task_vectors.{module}.ENTRIES", entries)
    names = [f"layers.{i}.{part}" for i in range(3) for part in ("a.weight", "a.bias", "b.weight")]
    shapes = {name: (6, 4) if name.endswith("weight") else (6,) for name in ["e", *names, "n"]}
    for dtype in (torch.float32, torch.bfloat16):
        draw = torch.Generator().manual_seed(0)
        base = {n: torch.randn(s, generator=draw).to(dtype) for n, s in shapes.items()}
        deltas = {n: torch.randn(3, *s, generator=draw) for n, s in shapes.items()}
        vectors = TaskVectors(tuple("abc"), base, deltas)
        coding = torch.rand(1, 3, len(shapes), generator=draw)
        with pretending() as noted:
            at_once = replace(together(vectors), arena=None)  # aligned, small tensors have gaps
            noted.clear()
            found = mix(at_once, coding)
            launches = noted.launches
            soup = METHODS["weighted_average"].merge(
                together(vectors), weights=coding[0].tolist(), normalize=False
            )
        assert_equal_there(found, mix(vectors, coding))
        wanted = METHODS["weighted_average"].merge(
            vectors, weights=coding[0].tolist(), normalize=False
        )
        assert_equal_there(soup, wanted)
        if entries > 50 and dtype == torch.float32:
            assert launches <= 5 + 2  # kinds of tensors, and coefficients to the device


def test_the_same_numbers_are_drawn_there():
    for shape in ((), (0, 3), (5,), (37, 41), (1 << 18,)):
        wanted = uniform(shape, key_of(3, "drawn 0 w"))
        with pretending():
            found = uniform(shape, key_of(3, "drawn 0 w"), device="cuda")
        assert isinstance(found, OnGpu)
        assert torch.equal(on_host(found), wanted)


def test_the_same_entries_are_dropped_there():
    keys = [key_of("a"), key_of("b")]
    for size in (1, 5, 1 << 12):
        wanted = bernoulli(keys, 0.3, slice(2, 2 + size))
        with pretending():
            found = bernoulli(keys, 0.3, slice(2, 2 + size), device="cuda")
        assert isinstance(found, OnGpu)
        assert torch.equal(on_host(found), wanted)


@pytest.mark.parametrize("kind", ["continuous", "discrete", "expected"])
def test_the_same_masks_are_drawn_there(kind):
    logits = torch.linspace(-4, 4, 10_001)
    options = MaskOptions(0.0, 0.5, kind, 7)
    wanted = mask_of(logits, options, "w")
    with pretending():
        assert torch.equal(on_host(drawn(on_gpu(logits), 3, "0 w")), drawn(logits, 3, "0 w"))
        found = on_host(mask_of(on_gpu(logits), options, "w"))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0 if kind == "discrete" else 1e-6)


MASKED = [name for name, row in METHODS.items() if isinstance(row, InModel) and row.blend]


@pytest.mark.parametrize("name", MASKED)
def test_masked_models(name):
    from fusion.methods.learned.steps import Shape

    vectors = toy()
    plan = METHODS[name].plan(Shape(vectors.tasks, vectors.groups), mask="discrete")
    draw = torch.Generator().manual_seed(1)
    learned = {key: torch.randn(base.shape, generator=draw) for key, base in vectors.base.items()}
    wanted = masked_merge(vectors, learned, plan)
    with pretending():
        found = masked_merge(there(vectors), learned, plan)
    assert_equal_there(found, wanted)


# ---------------------------------------------------------------------------------- merged layers


@pytest.mark.parametrize("models", [1, 4])
@pytest.mark.parametrize("form", forms())
def test_merged_linear_layers_forward_and_backward(form, models):
    """Against float64: a GPU's rates choose another form of `auto` than the CPU's."""
    wanted = linear(wide, form, models)
    with pretending():
        found = linear(lambda t: on_gpu(t.clone()), form, models)
    for got, want in zip(found, wanted, strict=True):
        assert isinstance(got, OnGpu)
        assert distance(on_host(got), want) <= 1e-6


def test_other_merged_layers_forward_and_backward():
    wanted = others(torch.clone)
    with pretending():
        found = others(lambda t: on_gpu(t.clone()))
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(on_host(got), want, rtol=1e-4, atol=1e-5)
