"""Merged layers: three forms against explicitly merged weights and against finite differences."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck
from torch.autograd.graph import saved_tensors_hooks

import fusion.merged_layers.functional as module
from fusion.errors import InputError
from fusion.merged_layers.forms import H200, Form, Rates, crossover, form_for, rates_of
from fusion.merged_layers.functional import (
    chunks,
    contract,
    merge_weights,
    merged_conv2d,
    merged_embedding,
    merged_linear,
    merged_norm,
    merged_table,
)
from fusion.task_vectors.low_rank import LowRank
from tests.fusion.draws import drawn_as_double as drawn

OUT, IN, TASKS, RANK = 6, 5, 3, 2
FORMS = ("A", "B", "C")
HALVES = (torch.float16, torch.bfloat16)


def layer() -> tuple[Tensor, LowRank]:
    """θ₀ [out, in] and low-rank task vectors."""
    return drawn(OUT, IN, seed=1), low(TASKS, OUT, IN)


def low(tasks: int, out: int, width: int) -> LowRank:
    """Factors of one rank."""
    downs, ups = drawn(tasks, RANK, width, seed=2), drawn(tasks, out, RANK, seed=3)
    return LowRank.of([*zip(downs, ups, strict=True)])


def cast(factors: LowRank, dtype: torch.dtype) -> LowRank:
    return LowRank(factors.down.to(dtype), factors.up.to(dtype), factors.ranks)


def linear(form: Any, x: Tensor, c: Tensor, bias: Tensor | None = None) -> Tensor:
    base, factors = layer()
    if form == "C":
        return merged_linear(x, c, base, factors, bias)
    return merged_linear(x, c, base, factors.dense(), bias, form)


def weights_of(c: Tensor, base: Tensor, deltas: Tensor) -> Tensor:
    """[M, *shape], one model at a time, one task at a time."""
    models = []
    for row in c:
        weight = base.clone()
        for coefficient, delta in zip(row, deltas, strict=True):
            weight = weight + coefficient * delta
        models.append(weight)
    return torch.stack(models)


def dealt(weights: Tensor, batch: int) -> Tensor:
    """One model's weights for each of a batch."""
    return weights.expand(batch, *weights.shape[1:]) if len(weights) == 1 else weights


def oracle(x: Tensor, c: Tensor, bias: Tensor | None = None) -> Tensor:
    base, factors = layer()
    weights = dealt(weights_of(c, base, factors.dense()), len(x))
    out = torch.stack([a @ w.T for a, w in zip(x, weights, strict=True)])
    if bias is None:
        return out
    moved = dealt(bias, len(x)).view(len(x), *[1] * (x.ndim - 2), OUT)
    return out + moved


@pytest.fixture(params=[False, True], ids=["whole", "chunked"])
def chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        monkeypatch.setattr(module, "BUDGET", {"cpu": 2 * OUT * IN * 8 + 3})
        monkeypatch.setattr(module, "COLUMNS", 7)
        assert [part.stop for part in chunks(5, OUT * IN, 8, "cpu")] == [2, 4, 5]
    return bool(request.param)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("models", [1, 5])
@pytest.mark.parametrize("tokens", [(), (1,), (4,), (2, 3)])
@pytest.mark.usefixtures("chunked")
def test_all_forms_are_the_explicit_merge(form: str, models: int, tokens: tuple[int, ...]) -> None:
    x, c = drawn(5, *tokens, IN, seed=4), drawn(models, TASKS, seed=5)
    for bias in (None, drawn(models, OUT, seed=6)):
        found = linear(form, x, c, bias)
        torch.testing.assert_close(found, oracle(x, c, bias), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("models", [1, 5])
@pytest.mark.usefixtures("chunked")
def test_gradients_of_all_forms_are_finite_differences(form: str, models: int) -> None:
    x, c = drawn(5, 3, IN, seed=4).requires_grad_(), drawn(models, TASKS, seed=5).requires_grad_()
    base, deltas = drawn(OUT, seed=6), drawn(TASKS, OUT, seed=7)
    assert gradcheck(lambda x, c: linear(form, x, c, merged_table(c, base, deltas)), (x, c))
    assert gradcheck(lambda x: linear(form, x, c.detach()), (x,))
    assert gradcheck(lambda c: linear(form, x.detach(), c), (c,))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("models", [1, 5])
@pytest.mark.usefixtures("chunked")
def test_gradients_of_all_forms_are_the_explicit_merges(form: str, models: int) -> None:
    x, c = drawn(5, 3, IN, seed=4).requires_grad_(), drawn(models, TASKS, seed=5).requires_grad_()
    upstream = drawn(5, 3, OUT, seed=8)
    found = torch.autograd.grad(linear(form, x, c), (x, c), upstream)
    wanted = torch.autograd.grad(oracle(x, c), (x, c), upstream)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("models", [1, 5])
def test_strided_inputs_and_gradients(form: str, models: int) -> None:
    c = drawn(models, TASKS, seed=5).requires_grad_()
    x = drawn(5, IN, 4, seed=4).transpose(1, 2).requires_grad_()
    assert not x.is_contiguous()
    torch.testing.assert_close(linear(form, x, c), oracle(x, c), rtol=1e-12, atol=1e-12)
    upstream = drawn(5, OUT, 4, seed=8).transpose(1, 2)  # as a convolution's output sends back
    for gradient in (upstream, torch.ones(()).double().expand(5, 4, OUT)):
        found = torch.autograd.grad(linear(form, x, c), (x, c), gradient)
        wanted = torch.autograd.grad(oracle(x, c), (x, c), gradient)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def saved(function: Any) -> tuple[Tensor, list[Tensor]]:
    """The result, and what autograd keeps for its backward pass."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        return function(), kept


@pytest.mark.parametrize("form", ["A", "B"])
@pytest.mark.parametrize("models", [1, 7])
def test_only_inputs_and_coefficients_are_kept(form: Any, models: int) -> None:
    base, deltas = drawn(OUT, IN, seed=1), drawn(TASKS, OUT, IN, seed=2)
    x = drawn(7, 3, IN, seed=4).requires_grad_()
    c = drawn(models, TASKS, seed=5).requires_grad_()
    out, kept = saved(lambda: merged_linear(x, c, base, deltas, form=form))
    given = {tensor.untyped_storage().data_ptr() for tensor in (x, c, base, deltas)}
    assert {tensor.untyped_storage().data_ptr() for tensor in kept} == given
    assert models * OUT * IN not in {tensor.numel() for tensor in kept} or models == 1
    out.sum().backward()
    assert c.grad is not None


def test_a_small_weight_of_one_model_is_merged_once_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merges = []
    plain = merge_weights

    def watched(*args: Any) -> Tensor:
        merges.append(1)
        return plain(*args)

    monkeypatch.setattr(module, "merge_weights", watched)
    found = []
    for kept in (OUT * IN * 8, OUT * IN * 8 - 1):
        monkeypatch.setattr(module, "KEPT", kept)
        merges.clear()
        x, c = drawn(4, 3, IN, seed=4).requires_grad_(), drawn(1, TASKS, seed=5).requires_grad_()
        out = linear("A", x, c)
        out.sin().sum().backward()
        found.append((len(merges), out, x.grad, c.grad))
    (once, *first), (twice, *second) = found
    assert (once, twice) == (1, 2)
    for one, two in zip(first, second, strict=True):
        assert one is not None
        assert torch.equal(one, two)


def test_low_rank_keeps_nothing_dense() -> None:
    base, factors = drawn(40, 30, seed=1), low(3, 40, 30)
    x = drawn(7, 3, 30, seed=4).requires_grad_()
    c = drawn(7, TASKS, seed=5).requires_grad_()
    _, kept = saved(lambda: merged_linear(x, c, base, factors))
    others = [t.numel() for t in kept if t.untyped_storage().data_ptr() != base.data_ptr()]
    assert others
    assert max(others) <= x.numel()  # no [M, out, in], no [T, out, in]


def test_merged_weights_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    plain = merge_weights

    def watched(*args: Any) -> Tensor:
        weights = plain(*args)
        sizes.append(weights.numel() * weights.element_size())
        return weights

    monkeypatch.setattr(module, "BUDGET", {"cpu": 3 * OUT * IN * 8})
    monkeypatch.setattr(module, "merge_weights", watched)
    x, c = drawn(7, 4, IN, seed=4).requires_grad_(), drawn(7, TASKS, seed=5).requires_grad_()
    linear("A", x, c).sum().backward()
    assert sizes == [3 * OUT * IN * 8, 3 * OUT * IN * 8, OUT * IN * 8] * 2


def test_chunks_cover_all_models_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGET", {"cpu": 400})
    for models in range(1, 20):
        parts = [range(models)[part] for part in chunks(models, 25, 4, "cpu")]
        assert [m for part in parts for m in part] == list(range(models))
        assert max(map(len, parts)) <= 4
    assert [len(range(10)[part]) for part in chunks(10, 25, 4, "cpu")] == [4, 4, 2]
    assert len(list(chunks(3, 10**9, 4, "cpu"))) == 3  # one model at least


@pytest.mark.parametrize(
    ("tokens", "tasks", "device", "training", "dtype", "wanted"),
    [
        (3, 8, "cpu", False, torch.float32, "B"),
        (4, 8, "cpu", False, torch.float32, "A"),
        (4, 8, "cpu", False, torch.bfloat16, "A"),
        (13, 8, "cpu", True, torch.float32, "B"),
        (14, 8, "cpu", True, torch.float32, "A"),
        (32, 1, "cpu", False, torch.float32, "A"),
        (31, 1, "cpu", False, torch.float32, "B"),
        (209, 1, "cpu", True, torch.float32, "B"),
        (210, 1, "cpu", True, torch.float32, "A"),
        # A GPU's float32 products are true ones: the 50 tokens of a ViT-B/32 are no reason for B.
        (50, 8, "cuda", False, torch.float32, "A"),
        (50, 8, "cuda", True, torch.float32, "A"),
        (6, 8, "cuda", False, torch.float32, "B"),
        (7, 8, "cuda", False, torch.float32, "A"),
        (50, 8, "cuda", False, torch.bfloat16, "B"),
        (50, 8, "cuda", False, torch.float16, "B"),
        (257, 8, "cuda", False, torch.bfloat16, "A"),
        (257, 1, "cuda", False, torch.bfloat16, "B"),
    ],
)
def test_crossovers(
    tokens: int, tasks: int, device: str, training: bool, dtype: torch.dtype, wanted: str
) -> None:
    costs = crossover(torch.device(device), dtype, False, (768, 768), tasks, H200)
    assert form_for(tokens, tasks, training, costs) == wanted


def seconds_of(form: Form, n: int, tasks: int, training: bool, size: int, rates: Rates) -> float:
    """Of a model's share of a square layer of width `size`, float32, by the FLOPs and bytes of each
    step of `Merge` and `Scale`; a step takes the longer of the two."""
    weight, moved = size * size, 2 * n * size * 4

    def step(flops: float, bytes_moved: float) -> float:
        return max(flops / rates.float32, bytes_moved / rates.memory)

    product = step(2 * n * weight, moved)
    if form == "A":
        merge = step(2 * tasks * weight, 8 * weight)  # written, and read by the product
        total = step(2 * tasks * weight, 8 * weight)  # dW likewise, and the sums
        return 3 * product + 2 * merge + total if training else product + merge
    passes = (2 if training else 1) * (1 + tasks)
    return passes * step(2 * n * weight, 2 * moved)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("tasks", [1, 2, 8, 20])
@pytest.mark.parametrize("rates", [H200, Rates(82e12, 165e12, 1.0e12), Rates(19e12, 312e12, 2e12)])
def test_the_form_is_the_faster_one_by_flops_and_bytes(
    rates: Rates, tasks: int, training: bool
) -> None:
    for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        costs = crossover(torch.device("cuda"), torch.float32, False, (768, 768), tasks, rates)
        chosen = form_for(n, tasks, training, costs)
        of = {form: seconds_of(form, n, tasks, training, 768, rates) for form in ("A", "B")}
        assert of[chosen] <= 1.25 * min(of.values()), (n, of)  # near the crossover either does


def test_rates_are_read_off_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "NVIDIA H100": (9, 0, 132, 1_830_000, 2_619_000, 5120, (62e12, 989e12, 3.35e12)),
        "NVIDIA A100": (8, 0, 108, 1_410_000, 1_593_000, 5120, (19.5e12, 312e12, 2.04e12)),
        "NVIDIA L40S": (8, 9, 142, 2_520_000, 9_001_000, 384, (91.6e12, 366e12, 0.864e12)),
    }
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for number, (*facts, wanted) in enumerate(known.values()):
        names = "major minor multi_processor_count clock_rate memory_clock_rate memory_bus_width"
        found = SimpleNamespace(**dict(zip(names.split(), facts, strict=True)))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, found=found: found)
        rates = rates_of(torch.device("cuda", number))
        for rate, data_sheet in zip(vars(rates).values(), wanted, strict=True):
            assert rate == pytest.approx(data_sheet, rel=0.02)
    rates_of.cache_clear()


def test_rates_of_an_unknown_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    rates_of.cache_clear()
    assert rates_of(torch.device("cuda")) == H200  # this machine has none
    rates_of.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    new = SimpleNamespace(major=99, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: new)
    assert rates_of(torch.device("cuda")) == H200
    rates_of.cache_clear()


def test_auto_is_the_form_of_the_rule() -> None:
    tokens, tasks = 30, 2
    base, deltas = drawn(16, 16, seed=1).float(), drawn(tasks, 16, 16, seed=2).float()
    x, c = drawn(4, tokens, 16, seed=3).float(), drawn(4, tasks, seed=4).float()
    a, b = (merged_linear(x, c, base, deltas, form=form) for form in ("A", "B"))
    assert not torch.equal(a, b)  # else nothing is told apart below
    assert torch.equal(merged_linear(x, c, base, deltas), a)
    trained = merged_linear(x, c.clone().requires_grad_(), base, deltas)
    assert torch.equal(trained.detach(), b)
    with torch.no_grad():
        assert torch.equal(merged_linear(x, c.clone().requires_grad_(), base, deltas), a)


# ------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("models", [1, 5])
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("which", ["base", "deltas", "both"])
def test_halves_are_read_as_they_are(form: str, models: int, half: torch.dtype, which: str) -> None:
    base, factors = layer()
    base = base.to(half) if which != "deltas" else base.float()
    kind = half if which != "base" else torch.float32
    factors = cast(factors, kind)
    exact = cast(factors, torch.float64).dense()
    deltas = factors if form == "C" else factors.dense()
    if form != "C":
        exact = factors.dense().double()
    x, c = drawn(5, 4, IN, seed=4).float(), drawn(models, TASKS, seed=5).float()
    c.requires_grad_()
    kernel: Any = form if form != "C" else "auto"
    found = merged_linear(x, c, base, deltas, form=kernel)
    assert found.dtype == torch.float32
    c64 = c.detach().double().requires_grad_()
    weights = dealt(weights_of(c64, base.double(), exact), 5)
    wanted = torch.einsum("bni,boi->bno", x.double(), weights)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), c)
    (exactly,) = torch.autograd.grad(wanted.sum(), c64)
    torch.testing.assert_close(gradient.double(), exactly, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("half", HALVES)
def test_half_precision_activations(form: Any, half: torch.dtype) -> None:
    base, factors = layer()
    deltas = cast(factors, torch.float32)
    dense = factors.dense().float()
    x, c = drawn(5, 4, IN, seed=4).to(half), drawn(5, TASKS, seed=5).float().requires_grad_()
    if form == "C":
        found = merged_linear(x, c, base.float(), deltas)
    else:
        found = merged_linear(x, c, base.float(), dense, form=form)
    assert found.dtype == half
    step = torch.finfo(half).eps
    torch.testing.assert_close(
        found.double(), oracle(x.double(), c.detach().double()), rtol=8 * step, atol=32 * step
    )
    found.sum().backward()
    assert c.grad is not None
    assert c.grad.dtype == torch.float32


@pytest.mark.parametrize("models", [1, 3])
def test_weights_are_mixed_in_float32_and_rounded_once(models: int) -> None:
    # In float16, 1 + 2⁻¹² is 1; 64 such steps are 2⁻⁶, which it holds.
    base, deltas = torch.ones(4, 4).half(), torch.full((64, 4, 4), 2.0**-12).half()
    weights = merge_weights(torch.ones(models, 64), base, deltas, torch.float16)
    assert weights.dtype == torch.float16
    assert torch.equal(weights, torch.full((models, 4, 4), 1 + 2.0**-6).half())


@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("half", HALVES)
def test_contractions_are_summed_in_float32(
    models: int, half: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COLUMNS", 1000)
    ones = torch.ones(models, 41, 100, dtype=half)
    found = contract(ones, torch.ones(2, 41, 100, dtype=half))
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.full((models, 2), 4100.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("models", [1, 3])
def test_zero_coefficients_give_the_base(dtype: torch.dtype, models: int) -> None:
    base, deltas = drawn(OUT, IN, seed=1).to(dtype), drawn(TASKS, OUT, IN, seed=2)
    zero = torch.zeros(models, TASKS)
    weights = merge_weights(zero, base, deltas.to(dtype), dtype)
    assert torch.equal(weights, base.expand(models, OUT, IN))
    assert torch.equal(merged_table(zero, base, deltas), base.double().expand(models, OUT, IN))
    ids = torch.tensor([[2, 0]])
    rows = merged_embedding(ids, zero, base, deltas)
    assert torch.equal(rows, base[ids].double().expand(models, 2, IN))
    x = drawn(3, 4, IN, seed=4).to(dtype)
    for form in ("A", "B"):
        found = merged_linear(x, zero, base, deltas.to(dtype), form=form)
        torch.testing.assert_close(found, F.linear(x, base))


# --------------------------------------------------------------------- tables, norms, convolutions


@pytest.mark.parametrize("models", [1, 4])
@pytest.mark.parametrize("shape", [(5,), (3, 5), ()])
def test_table(models: int, shape: tuple[int, ...]) -> None:
    base, deltas = drawn(*shape, seed=1), drawn(TASKS, *shape, seed=2)
    c = drawn(models, TASKS, seed=3).requires_grad_()
    found = merged_table(c, base, deltas)
    torch.testing.assert_close(found, weights_of(c, base, deltas), rtol=1e-12, atol=1e-12)
    assert gradcheck(lambda c: merged_table(c, base, deltas), (c,))
    assert merged_table(c.float(), base.half(), deltas.half()).dtype == torch.float32


@pytest.mark.parametrize("models", [1, 4])
@pytest.mark.parametrize("tokens", [(), (3,), (2, 3)])
def test_norm(models: int, tokens: tuple[int, ...]) -> None:
    x, eps = drawn(4, *tokens, 5, seed=1).requires_grad_(), 0.1
    weight = drawn(models, 5, seed=2).requires_grad_()
    bias = drawn(models, 5, seed=3).requires_grad_()
    wanted = torch.stack(
        [
            F.layer_norm(row, (5,), w, b, eps)
            for row, w, b in zip(x, dealt(weight, 4), dealt(bias, 4), strict=True)
        ]
    )
    found = merged_norm(x, weight, bias, eps)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert gradcheck(lambda x, w, b: merged_norm(x, w, b, eps), (x, weight, bias))
    assert merged_norm(x.half(), weight.float(), bias.float(), eps).dtype == torch.float16


@pytest.mark.parametrize("models", [1, 4])
@pytest.mark.parametrize("batch", [1, 4])
def test_embedding(models: int, batch: int) -> None:
    base, deltas = drawn(7, 5, seed=1), drawn(TASKS, 7, 5, seed=2)
    c = drawn(models, TASKS, seed=3).requires_grad_()
    ids = torch.randint(0, 7, (batch, 3), generator=torch.Generator().manual_seed(4))
    size = max(batch, models)
    tables = dealt(weights_of(c, base, deltas), size)
    wanted = torch.stack(
        [F.embedding(row, t) for row, t in zip(dealt(ids, size), tables, strict=True)]
    )
    found = merged_embedding(ids, c, base, deltas)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert gradcheck(lambda c: merged_embedding(ids, c, base, deltas), (c,))


@pytest.mark.parametrize("form", ["A", "B"])
@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": (3, 2)},
        {"stride": (1, 2), "padding": (2, 1)},
        {"dilation": (1, 2), "padding": (0, 3), "stride": (2, 1)},
    ],
)
@pytest.mark.parametrize("biased", [False, True])
def test_convolution(form: Any, models: int, options: dict[str, Any], biased: bool) -> None:
    base, deltas = drawn(4, 2, 3, 2, seed=1), drawn(TASKS, 4, 2, 3, 2, seed=2)
    x = drawn(3, 2, 7, 6, seed=4).requires_grad_()
    c = drawn(models, TASKS, seed=3).requires_grad_()
    bias = drawn(models, 4, seed=5) if biased else None
    weights = dealt(weights_of(c, base, deltas), 3)
    biases = [None] * 3 if bias is None else list(dealt(bias, 3))
    rows: Any = zip(x, weights, biases, strict=True)
    wanted = torch.stack([F.conv2d(image[None], w, b, **options)[0] for image, w, b in rows])
    found = merged_conv2d(x, c, base, deltas, bias, form=form, **options)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    upstream = drawn(*wanted.shape, seed=6)
    torch.testing.assert_close(
        torch.autograd.grad(found, (x, c), upstream),
        torch.autograd.grad(wanted, (x, c), upstream),
        rtol=1e-11,
        atol=1e-11,
    )


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("low", [False, True])
def test_task_vectors_that_do_not_fit(low: bool) -> None:
    base, factors = layer()
    deltas = factors if low else factors.dense()
    with pytest.raises(InputError, match=r"task vectors \[3, 6, 5\]; \[2, 6, 5\] needed"):
        merged_linear(torch.ones(1, IN), torch.ones(1, 2), base, deltas)


@pytest.mark.parametrize(("shape", "models"), [((5, 4), 1), ((4, IN), 5), ((1, 5, IN), 5)])
def test_inputs_that_do_not_fit(shape: tuple[int, ...], models: int) -> None:
    said = rf"input \[{', '.join(map(str, shape))}\] for {models} model\(s\) of weight \[6, 5\]"
    with pytest.raises(InputError, match=said):
        linear("A", torch.ones(shape).double(), torch.ones(models, TASKS).double())
