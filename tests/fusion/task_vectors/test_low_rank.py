"""Low-rank task vectors: factors by hand, and in mixes and layers in the place of dense ones."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from fusion.errors import InputError
from fusion.merged_layers.functional import merged_linear
from fusion.task_vectors.coding import mix_tensor
from fusion.task_vectors.low_rank import LowRank, Zeros, product
from tests.fusion.draws import drawn_as_double as drawn

OUT, IN = 7, 5
RANKS = (2, 0, 3)


def factors(dtype: torch.dtype = torch.float64, ranks: tuple[int, ...] = RANKS) -> LowRank:
    return LowRank.of(
        [
            (drawn(r, IN, seed=t, dtype=dtype), drawn(OUT, r, seed=9 + t, dtype=dtype))
            for t, r in enumerate(ranks)
        ]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_shape_dtype_and_memory(dtype: torch.dtype) -> None:
    low = factors(dtype)
    assert low.shape == low.dense().shape == (3, OUT, IN)
    assert low.dtype == low.dense().dtype == dtype
    assert low.nbytes == sum(RANKS) * (OUT + IN) * dtype.itemsize


def test_dense_by_hand() -> None:
    pairs = [
        (torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [0.0]])),
        (torch.zeros(0, 2), torch.zeros(2, 0)),
        (torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 4.0], [5.0, 0.0]])),
    ]
    low = LowRank.of(pairs)
    wanted = [[[3.0, 6.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 4.0], [5.0, 0.0]]]
    assert low.ranks == (1, 0, 2)
    assert low.dense().tolist() == wanted
    assert low.dense([False, True, True]).tolist() == [wanted[1], wanted[1], wanted[2]]
    assert low.mixed([2.0, 7.0, -1.0], torch.float64).tolist() == [[5.0, 8.0], [-5.0, 0.0]]
    assert low.mixed([0.0, 7.0, 0.0], torch.float32).tolist() == wanted[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threads", [1, 2])
def test_dense_has_the_bits_of_one_product_a_task(dtype: torch.dtype, threads: int) -> None:
    pairs = [
        (drawn(r, 96, seed=t, dtype=dtype), drawn(80, r, seed=9 + t, dtype=dtype))
        for t, r in enumerate((16, 4, 1))
    ]
    wanted = [product(*pair) for pair in pairs]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(LowRank.of(pairs).dense(), torch.stack(wanted))
    finally:
        torch.set_num_threads(before)


def test_a_convolutions_factors_keep_its_shape() -> None:
    down, up = drawn(2, 3 * 2 * 2, seed=0), drawn(4, 2, seed=1)
    low = LowRank.of([(down, up)], dims=(4, 3, 2, 2))
    assert torch.equal(low.dense()[0], (up @ down).view(4, 3, 2, 2))
    assert torch.equal(low.flatten(2).dense()[0], up @ down)
    assert low.mixed([2.0], torch.float64).shape == (4, 3, 2, 2)


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 3.0)], ids=str)
@pytest.mark.parametrize("half", [torch.float16, torch.float32, torch.float64])
def test_a_mix_is_one_product_added_to_the_base(
    half: torch.dtype, scale: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    low, base = factors(torch.float32), drawn(OUT, IN, seed=5).to(half)
    c = [0.5, 3.0, -0.25]
    exact = scale[1] * base.double() + scale[0] * sum(
        each * delta for each, delta in zip(c, low.dense().double(), strict=True)
    )
    monkeypatch.setattr(LowRank, "dense", None)
    out = torch.empty_like(base)
    mix_tensor(out, base, low, c, scale=scale[0], base_scale=scale[1])
    step = max(torch.finfo(half).eps, 1e-6)
    torch.testing.assert_close(out.double(), exact, rtol=step, atol=step)
    mix_tensor(out, base, low, [0.0, 2.0, 0.0], scale=scale[0])  # expert 1 has no factors
    assert torch.equal(out, base)
    mix_tensor(out, base, low, [0.0, 0.0, 0.0], base_scale=2.0)
    assert torch.equal(out, 2 * base)


def test_a_mix_of_no_task_vectors_is_the_base() -> None:
    base = drawn(3, 2, seed=0)
    nothing = Zeros(torch.Size((2, 3, 2)), torch.float64, base.device)
    out = torch.empty_like(base)
    mix_tensor(out, base, nothing, [1.0, 2.0], scale=3.0)
    assert torch.equal(out, base)
    mix_tensor(out, base, nothing, [1.0, 2.0], base_scale=0.5)
    assert torch.equal(out, base / 2)
    assert nothing.dense().untyped_storage().nbytes() == 8
    assert nothing.flatten(1).shape == (2, 6)


@pytest.mark.parametrize("form", ["auto", "A", "B"])
@pytest.mark.parametrize("models", [1, 4])
def test_a_layer_never_multiplies_them_out(
    form: str, models: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    low, base = factors(), drawn(OUT, IN, seed=4)
    x = drawn(4, 3, IN, seed=1).requires_grad_()
    c = drawn(models, 3, seed=2).requires_grad_()
    wanted = merged_linear(x, c, base, low.dense(), form="A")
    dy = drawn(*wanted.shape, seed=3)
    slopes = torch.autograd.grad(wanted, (x, c), dy)
    monkeypatch.setattr(LowRank, "dense", None)
    found = merged_linear(x, c, base, low, form=form)  # type: ignore[arg-type]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(found, (x, c), dy), slopes, rtol=1e-11, atol=0)


def test_what_an_evaluation_made_serves_a_micro_batch() -> None:
    low, x, c = factors(), drawn(2, 3, IN, seed=1), torch.ones(1, 3, dtype=torch.float64)
    with torch.inference_mode():
        merged_linear(x, c, drawn(OUT, IN, seed=4), low)
    merged_linear(x, c.requires_grad_(), drawn(OUT, IN, seed=4), low).sum().backward()
    assert c.grad is not None
    assert low.owners.tolist() == [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1]]


@pytest.mark.parametrize("models", [1, 3])
def test_gradients_by_finite_differences(models: int) -> None:
    low, base = factors(), drawn(OUT, IN, seed=4)
    x = drawn(3, 2, IN, seed=1).requires_grad_()
    c = drawn(models, 3, seed=2).requires_grad_()
    assert gradcheck(lambda x, c: merged_linear(x, c, base, low), (x, c))
    nothing = Zeros(low.shape, low.dtype, low.device)
    assert gradcheck(lambda x, c: merged_linear(x, c, base, nothing), (x, c))


def test_a_layer_no_expert_changes_is_the_bases() -> None:
    x, base = drawn(4, 3, IN, seed=1), drawn(OUT, IN, seed=4)
    c = drawn(4, 2, seed=2).requires_grad_()
    nothing = Zeros(torch.Size((2, OUT, IN)), torch.float64, base.device)
    found = merged_linear(x, c, base, nothing, drawn(4, OUT, seed=3))
    wanted = torch.nn.functional.linear(x, base) + drawn(4, OUT, seed=3)[:, None]
    assert torch.equal(found, wanted)
    (slope,) = torch.autograd.grad(found.sum(), c)
    assert slope.shape == c.shape
    assert not slope.any()
    with pytest.raises(InputError, match=r"task vectors \[2, 7, 5\]; \[3, 7, 5\] needed"):
        merged_linear(x, torch.ones(4, 3), base, nothing)


def test_the_base_is_not_kept_in_another_precision() -> None:
    low, base = factors(torch.float32, (1, 1, 1)), drawn(OUT, IN, seed=4).half()
    x, c = drawn(1, 2, IN, seed=1).float().requires_grad_(), torch.ones(1, 3, requires_grad=True)
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        merged_linear(x, c, base, low)
    assert any(tensor is base for tensor in kept)
    assert not any(t.dtype == torch.float32 and t.shape == base.shape for t in kept)


@pytest.mark.parametrize(
    ("down", "up", "dims", "said"),
    [
        ((2, 5), (7, 3), (), r"down \[2, 5\], up \[7, 3\]; \[3, in\] and \[out, 3\] needed for"),
        ((3, 5), (7, 2), (), r"needed for ranks \[1, 2\]"),
        ((3, 1, 5), (7, 3), (), r"down \[3, 1, 5\]"),
        ((3, 6), (4, 3), (4, 3, 3), r"of a weight \[4, 3, 3\]"),
    ],
)
def test_factors_that_do_not_fit(
    down: tuple[int, ...], up: tuple[int, ...], dims: tuple[int, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        LowRank(torch.ones(down), torch.ones(up), (1, 2), dims)


def test_pairs_that_do_not_fit() -> None:
    good = torch.ones(2, 5), torch.ones(7, 2)
    for bad in ((torch.ones(2, 5), torch.ones(7, 3)), (torch.ones(2, 6), torch.ones(7, 2))):
        with pytest.raises(InputError, match="expert 1: down "):
            LowRank.of([good, bad])
