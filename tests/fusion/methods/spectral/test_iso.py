"""iso_c and iso_cts by hand, against full decompositions, and without full rank."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fusion.methods.spectral.iso import iso_c, iso_cts, sizes
from fusion.methods.spectral.tsv import tsv_m
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.draws import drawn_as_double as drawn
from tests.fusion.laws import TASKS, assert_same_bits, copied, state_dict, toy
from tests.fusion.methods.spectral.matrices import vectors_of


def polar(matrix: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    factor: Tensor = u @ v
    return factor


def textbook_c(deltas: Tensor) -> Tensor:
    u, s, v = torch.linalg.svd(deltas.mean(0) * len(deltas), full_matrices=False)
    return u @ torch.diag(s.mean().expand(len(s))) @ v


def textbook_cts(deltas: Tensor, fraction: float) -> Tensor:
    count, rank = len(deltas), min(deltas.shape[1:])
    own = round((rank - int(fraction * rank)) / count) * count
    common, each = rank - own, own // count
    u, s, v = torch.linalg.svd(deltas.sum(0), full_matrices=False)
    shared = u[:, :common], s[:common], v[:common]
    blocks = []
    for delta in deltas:
        left, values, right = torch.linalg.svd(
            delta - shared[0] @ shared[0].T @ delta, full_matrices=False
        )
        blocks.append((left[:, :each], values[:each], right[:each]))
    blocks.append(shared)
    left = polar(torch.cat([block[0] for block in blocks], 1))
    right = polar(torch.cat([block[2] for block in blocks], 0))
    return torch.cat([block[1] for block in blocks]).mean() * left @ right


SHAPES = [(3, 12, 12), (3, 20, 9), (4, 9, 20), (2, 10, 10), (5, 7, 33)]


def close(dtype: torch.dtype) -> dict[str, Any]:
    return {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_iso_c_against_full_decompositions(shape: Any, dtype: torch.dtype) -> None:
    deltas = drawn(*shape, dtype=dtype)
    merged = iso_c(vectors_of(deltas), scale=1.5)["w"]
    wanted = 1.5 * textbook_c(deltas.double())
    torch.testing.assert_close(merged, wanted.to(dtype), **close(dtype))


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_iso_cts_against_full_decompositions(
    shape: Any, dtype: torch.dtype, fraction: float
) -> None:
    deltas = drawn(*shape, dtype=dtype)
    merged = iso_cts(vectors_of(deltas), common_fraction=fraction)["w"]
    wanted = textbook_cts(deltas.double(), fraction)
    torch.testing.assert_close(merged, wanted.to(dtype), **close(dtype))


@pytest.mark.parametrize("shape", [(3, 160, 160), (6, 400, 160), (6, 160, 400)])
def test_large_ones_are_nearer_to_float64_than_a_float32_textbook(shape: Any) -> None:
    deltas = 0.01 * drawn(*shape, dtype=torch.float32)
    for rule, textbook in ((iso_c, textbook_c), (iso_cts, partial(textbook_cts, fraction=0.8))):
        wanted = textbook(deltas.double())
        off = float((rule(vectors_of(deltas))["w"] - wanted).norm() / wanted.norm())
        assert off < min(1e-5, float((textbook(deltas) - wanted).norm() / wanted.norm()))


def test_large_sums_without_full_rank() -> None:
    low = drawn(160, 90, dtype=torch.float32) @ drawn(90, 160, dtype=torch.float32, seed=1)
    u, s, v = torch.linalg.svd(3 * low.double())
    wanted = s[:90].sum() / 160 * u[:, :90] @ v[:90]
    for rule in (iso_c, iso_cts):  # nothing is left of the tasks beside the common space
        merged = rule(vectors_of(low.expand(3, 160, 160)))["w"]
        torch.testing.assert_close(merged, wanted.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", [iso_c, iso_cts, tsv_m])
def test_bits_of_large_ones_do_not_know_where_they_lie(rule: Any) -> None:
    deltas = drawn(3, 160, 192, dtype=torch.float32)
    whole = torch.zeros(5 + deltas.numel())
    whole[5:] = deltas.flatten()
    moved = vectors_of(whole[5:].view_as(deltas))
    assert_same_bits(rule(moved), rule(vectors_of(deltas)))


def test_by_hand() -> None:
    # The sum is diag(6, -2, 1): mean 3.
    deltas = torch.stack(
        [torch.diag(torch.tensor(d)) for d in ([4.0, -1.0, 0.0], [2.0, -1.0, 1.0])]
    )
    merged = iso_c(vectors_of(deltas))["w"]
    torch.testing.assert_close(merged, torch.diag(torch.tensor([3.0, -3.0, 3.0])))


def test_iso_cts_by_hand() -> None:
    # r = 3, f = 1/3: the sum's strongest direction is e1 (8); what is left of the tasks is e2 (5)
    # and e3 (2). The mean is 5.
    rows = [8.0, 5.0, 1.0], [0.0, -4.0, 2.0]
    deltas = torch.stack([torch.diag(torch.tensor(row)) for row in rows]).double()
    deltas[1, 1, 1], deltas[0, 2, 2] = 0.0, 0.0
    merged = iso_cts(vectors_of(deltas), common_fraction=1 / 3)["w"]
    torch.testing.assert_close(merged, torch.diag(torch.tensor([5.0, 5.0, 5.0]).double()))


def test_sizes() -> None:
    assert sizes(768, 8, 0.8) == (616, 19)
    assert sizes(768, 14, 0.8) == (614, 11)
    assert sizes(10, 4, 0.8) == (10, 0)  # half of a direction each: rounded to even
    assert sizes(6, 4, 0.0) == (2, 1)  # 1.5 rounds to 2, of which there are not enough
    assert sizes(1, 1, 0.8) == (0, 1)
    assert sizes(5, 2, 1.0) == (5, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_tasks_own_directions_it_is_iso_c(dtype: torch.dtype) -> None:
    several = vectors_of(drawn(3, 9, 14, dtype=dtype))
    one = vectors_of(drawn(1, 9, 14, dtype=dtype))
    for vectors, fraction in ((several, 1.0), (one, 0.8), (one, 0.0)):
        found = iso_cts(vectors, common_fraction=fraction)["w"]
        torch.testing.assert_close(found, iso_c(vectors)["w"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_that_are_not_there_stay_zero(dtype: torch.dtype) -> None:
    low = drawn(10, 3, dtype=dtype) @ drawn(3, 10, dtype=dtype, seed=1)
    u, s, v = torch.linalg.svd(low.double())
    wanted = s[:3].sum() / 10 * u[:, :3] @ v[:3]
    for copies in (1, 2):  # the sum of two is twice as long
        vectors = vectors_of(low.expand(copies, 10, 10))
        torch.testing.assert_close(
            iso_c(vectors)["w"], (copies * wanted).to(dtype), rtol=1e-4, atol=1e-4
        )
    merged = iso_cts(vectors_of(low.expand(2, 10, 10)))["w"]  # nothing is left of the tasks
    torch.testing.assert_close(merged, (2 * wanted).to(dtype), rtol=1e-4, atol=1e-4)


def test_tasks_that_cancel_give_the_base() -> None:
    delta = drawn(6, 6)
    assert_same_bits(
        iso_c(vectors_of(torch.stack([delta, -delta]))), {"w": torch.zeros(6, 6).double()}
    )


@pytest.mark.parametrize("rule", [iso_c, iso_cts])
def test_vectors_are_averaged_and_single_rows_are_matrices(rule: Any) -> None:
    vectors = toy("mixed")
    merged = rule(vectors, scale=0.5)
    for name in ("block.0.bias", "block.0.weight", "logit_scale"):
        wanted = vectors.base[name].double() + 0.5 * vectors.deltas[name].double().mean(0)
        torch.testing.assert_close(merged[name], wanted.to(merged[name].dtype))
    row = drawn(3, 1, 5)
    torch.testing.assert_close(iso_c(vectors_of(row))["w"], row.sum(0))


@pytest.mark.parametrize("rule", [iso_c, iso_cts])
def test_experts_that_are_the_base(rule: Any) -> None:
    base = state_dict("mixed", 0)
    assert_same_bits(
        rule(TaskVectors.from_state_dicts(base, {task: copied(base) for task in TASKS})), base
    )
    one = TaskVectors.from_state_dicts(base, {"a": state_dict("mixed", 1), "b": copied(base)})
    for tensor in rule(one).values():
        assert bool(tensor.isfinite().all())
