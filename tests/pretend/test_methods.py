"""Every method of weights, and layers that read merged weights, there and on the CPU."""

import pytest
import torch

from fusion.merged_layers.functional import (
    merged_conv2d,
    merged_embedding,
    merged_linear,
    merged_norm,
    merged_table,
)
from fusion.methods.learned.concrete import drawn, mask_of, masked_merge
from fusion.methods.learned.in_model import MaskOptions
from fusion.registry import METHODS, InModel
from fusion.task_vectors.lazy import Recomputed
from fusion.task_vectors.low_rank import LowRank, Zeros
from fusion.task_vectors.random_draws import key_of, uniform
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion import laws
from tests.fusion.laws import LEARNING, SCHEMAS, SELECTED, STATIC, examples, toy
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


KINDS = [
    schema if schema == "float32" else pytest.param(schema, marks=pytest.mark.slow)
    for schema in SCHEMAS
]


@pytest.mark.parametrize("schema", KINDS)
@pytest.mark.parametrize("name", STATIC)
def test_static_methods(name, schema):
    vectors = toy(schema)
    for params in examples(name, vectors):
        wanted = laws.merge(name, vectors, params)
        given = [params]
        if "statistics" in params:  # of files: on the CPU; gathered now: on the device
            moved = {key: on_gpu(each) for key, each in params["statistics"].items()}
            given.append({**params, "statistics": moved})
        for each in given:
            with pretending():
                found = laws.merge(name, there(vectors), each)
            assert_equal_there(found, wanted, 1e-4 if name in SPECTRAL else 1e-6)


SPECTRAL = {"tsv_m", "iso_c", "iso_cts", "wudi", "regmean", "regmean_plusplus"}


@pytest.mark.parametrize("name", [*LEARNING, *SELECTED])
def test_codings(name):
    from fusion.task_vectors.coding import mix

    vectors = toy()
    generator = torch.Generator().manual_seed(0)
    coding = torch.rand(1, len(vectors.tasks), len(vectors.groups), generator=generator)
    with pretending():
        found = mix(there(vectors), coding)
    assert_equal_there(found, mix(vectors, coding))


def test_the_same_numbers_are_drawn_there():
    for shape in ((), (0, 3), (5,), (37, 41), (1 << 18,)):
        wanted = uniform(shape, key_of(3, "drawn 0 w"))
        with pretending():
            found = uniform(shape, key_of(3, "drawn 0 w"), device="cuda")
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

TASKS, IN, OUT = 3, 6, 5


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def forms():
    """Name -> how task vectors [T, out, in] are given, on either device."""
    dense, down, up = normal(TASKS, OUT, IN, seed=1), normal(6, IN, seed=2), normal(OUT, 6)
    return {
        "A": (lambda move: move(dense), "A"),
        "B": (lambda move: move(dense), "B"),
        "auto": (lambda move: move(dense), "auto"),
        "remade": (lambda move: Recomputed(lambda: move(dense)), "A"),
        "factors": (lambda move: LowRank(move(down), move(up), (1, 2, 3)), "auto"),
        "none": (lambda move: Zeros(dense.shape, torch.float32, move(up).device), "auto"),
    }


def passed(move, deltas, form, models):
    """Output and gradients of one layer."""
    x = move(normal(max(models, 4), 7, IN, seed=3)).requires_grad_()
    c = move(normal(models, TASKS, seed=4)).requires_grad_()
    bias = merged_table(c, move(normal(OUT, seed=5)), move(normal(TASKS, OUT, seed=6)))
    y = merged_linear(x, c, move(normal(OUT, IN, seed=7)), deltas(move), bias, form)
    y.square().sum().backward()
    return y, x.grad, c.grad


@pytest.mark.parametrize("models", [1, 4])
@pytest.mark.parametrize("form", forms())
def test_merged_linear_layers_forward_and_backward(form, models):
    deltas, kind = forms()[form]
    wanted = passed(lambda t: t.clone(), deltas, kind, models)
    with pretending():
        found = passed(lambda t: on_gpu(t.clone()), deltas, kind, models)
    for got, want in zip(found, wanted, strict=True):
        assert isinstance(got, OnGpu)
        torch.testing.assert_close(on_host(got), want, rtol=1e-4, atol=1e-5)


def others(move):
    """A convolution, an embedding and a norm of two models, and the gradients of their codings."""
    c = move(normal(2, TASKS, seed=4)).requires_grad_()
    images = move(normal(2, 3, 8, 8, seed=8))
    conv = merged_conv2d(
        images, c, move(normal(4, 3, 2, 2)), move(normal(TASKS, 4, 3, 2, 2, seed=1)), stride=(2, 2)
    )
    ids = move(torch.arange(5)[None])
    rows = merged_embedding(ids, c, move(normal(5, 4)), move(normal(TASKS, 5, 4, seed=2)))
    scale = merged_table(c, move(normal(4)), move(normal(TASKS, 4, seed=3)))
    normed = merged_norm(rows, scale, scale, 1e-5)
    (conv.square().sum() + normed.square().sum()).backward()
    return conv, normed, c.grad


def test_other_merged_layers_forward_and_backward():
    wanted = others(lambda t: t.clone())
    with pretending():
        found = others(lambda t: on_gpu(t.clone()))
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(on_host(got), want, rtol=1e-4, atol=1e-5)
