"""The mixing kernel: dtypes, layouts, chunks, rounding; and codings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.task_vectors import coding as module
from fusion.task_vectors.coding import is_largest, mix, mix_tensor, one_hot
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.laws import TASKS, assert_same_bits, state_dict, toy

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def reference(
    base: Tensor, deltas: Tensor, coefficients: list[float], scale: float, base_scale: float
) -> Tensor:
    total = torch.einsum("t,t...->...", torch.tensor(coefficients).double(), deltas.double())
    return base_scale * base.double() + scale * total


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (1,), (0, 4), (5, 3), (2, 3, 4)])
@pytest.mark.parametrize("base_scale", [1.0, 0.5])
def test_formula(dtype: torch.dtype, shape: tuple[int, ...], base_scale: float) -> None:
    base = random(*shape, dtype=dtype)
    deltas = random(3, *shape, dtype=torch.promote_types(dtype, torch.float32), seed=1)
    coefficients = [0.5, 0.0, -2.0]
    out = torch.empty_like(base)
    mix_tensor(out, base, deltas, coefficients, scale=0.7, base_scale=base_scale)
    wanted = reference(base, deltas, coefficients, 0.7, base_scale)
    torch.testing.assert_close(out, wanted.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_rounded_once(dtype: torch.dtype) -> None:
    base, deltas = random(4096, dtype=dtype), random(8, 4096, seed=1) * 1e-3
    out = torch.empty_like(base)
    mix_tensor(out, base, deltas, [1.0] * 8, scale=1 / 8)
    exact = reference(base, deltas, [1.0] * 8, 1 / 8, 1.0)
    # Rounding once is the nearest there is; the float32 sum may move a value across a midpoint.
    assert (out != exact.to(dtype)).double().mean() < 1e-3
    half_step = 2.0 ** (-11 if dtype == torch.float16 else -8)
    assert bool(((out.double() - exact).abs() <= half_step * exact.abs() * (1 + 1e-3)).all())


def test_low_precision_task_vectors_are_summed_in_float32() -> None:
    deltas = torch.full((64, 8), 1.0, dtype=torch.bfloat16)
    deltas[0] = 256.0  # in bfloat16, 256 + 1 is 256
    out = torch.empty(8)
    mix_tensor(out, torch.zeros(8), deltas, [1.0] * 64)
    assert out.tolist() == [256.0 + 63] * 8


def test_float64_output_of_float32_task_vectors_is_summed_in_float64() -> None:
    deltas = torch.full((2, 1), 1 / 3)
    out = torch.empty(1, dtype=torch.float64)
    mix_tensor(out, torch.zeros(1), deltas, [1 / 3, 1 / 3])
    assert out.item() == pytest.approx(2 / 3 * float(deltas[0, 0]), rel=1e-15)


@pytest.mark.parametrize("step", [1, 7, 64, 1000])
def test_chunks_do_not_show(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    base, deltas = random(10, 13), random(4, 10, 13, seed=1)
    whole, pieces = torch.empty_like(base), torch.empty_like(base)
    mix_tensor(whole, base, deltas, [1.0, 2.0, 3.0, 4.0], scale=0.3, base_scale=0.9)
    monkeypatch.setattr(module, "CHUNK", step)
    mix_tensor(pieces, base, deltas, [1.0, 2.0, 3.0, 4.0], scale=0.3, base_scale=0.9)
    torch.testing.assert_close(pieces, whole, rtol=1e-6, atol=1e-6)


def test_strided_task_vectors_base_and_output() -> None:
    arena = random(3, 100, seed=1)  # [T, d], as an arena of task vectors is laid out
    deltas = arena[:, 20:80].view(3, 10, 6)
    base = random(6, 10).T
    out = torch.empty(6, 10).T
    assert not out.is_contiguous()
    mix_tensor(out, base, deltas, [1.0, 2.0, 3.0], base_scale=2.0)
    wanted = reference(base, deltas, [1.0, 2.0, 3.0], 1.0, 2.0).float()
    torch.testing.assert_close(out, wanted)
    transposed = deltas.transpose(1, 2).contiguous().transpose(1, 2)
    mix_tensor(out, base, transposed, [1.0, 2.0, 3.0], base_scale=2.0)
    torch.testing.assert_close(out, wanted)


def test_a_transposed_base_merges() -> None:
    base = {"w": random(6, 10).T}
    vectors = TaskVectors.from_state_dicts(base, {"a": {"w": random(10, 6, seed=1)}})
    torch.testing.assert_close(mix(vectors, torch.ones(1, 1, 1))["w"], random(10, 6, seed=1))


def test_one_hot_is_the_expert() -> None:
    vectors = toy()
    for index, task in enumerate(TASKS):
        merged = mix(vectors, one_hot(TASKS, task))
        for key, tensor in state_dict("float32", 1 + index).items():
            torch.testing.assert_close(merged[key], tensor)


def test_layer_wise_coding_follows_the_whole_models_tensors() -> None:
    vectors = toy("mixed")
    groups = len(vectors.groups)
    coding = random(1, len(TASKS), groups, seed=5)
    whole = mix(vectors, coding)
    for index, key in enumerate(vectors.groups):
        out = torch.empty_like(vectors.base[key])
        column = coding[0, :, index].tolist()
        mix_tensor(out, vectors.base[key], vectors.deltas[key], column)
        assert torch.equal(out, whole[key])
    names = list(vectors.base)[1:4]
    shard = mix(vectors.restrict(names), coding)
    assert_same_bits(shard, {name: whole[name] for name in names})


def test_the_largest_coefficient_is_that_of_the_mean_over_tensors() -> None:
    nan = float("nan")
    coding = torch.tensor(
        [
            [[0.9, 0.0], [0.4, 0.4], [-1.0, 0.5]],  # means 0.45, 0.4, -0.25
            [[0.2, 0.2], [0.1, 0.3], [0.0, 0.1]],  # the first two are equal
            [[-0.2, -0.2], [-0.1, -0.4], [-0.3, -0.3]],  # means -0.2, -0.25, -0.3
            [[nan, 0.0], [0.1, 0.1], [0.0, 0.0]],
        ]
    )
    assert is_largest(coding, 0).tolist() == [True, False, True, False]
    assert is_largest(coding, 1).tolist() == [False, False, False, False]
    assert is_largest(coding[:, 2:], 0).tolist() == [True, True, True, True]  # of one task


@pytest.mark.parametrize("shape", [(1, 3), (2, 3, 1), (1, 2, 1), (1, 3, 4)])
def test_wrong_codings_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="coding: "):
        mix(toy(), torch.ones(shape))
