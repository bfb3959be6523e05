"""Model Stock by hand, against its formula, and FusionBench's angles."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from fusion.methods.static.model_stock import model_stock, stock_ratios
from fusion.task_vectors.gram import gram, model_stock_ratio
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.draws import vectors_of
from tests.fusion.laws import assert_same_bits, toy

over_ones = partial(vectors_of, base=1.0)


def at_angle(degrees: float, length: float = 1.0) -> TaskVectors:
    angle = math.radians(degrees)
    return over_ones(
        [length, 0.0], [length * math.cos(angle), length * math.sin(angle)], dtype=torch.float64
    )


def ratio(vectors: TaskVectors, compat: str = "paper") -> float:
    return float(stock_ratios(gram(vectors).total, compat))  # type: ignore[arg-type]


def test_two_experts_by_hand() -> None:
    # r = 2c/(1 + c): the foot of the perpendicular from the experts' line.
    for degrees, wanted in ((0, 1.0), (60, 2 / 3), (90, 0.0)):
        assert ratio(at_angle(degrees)) == pytest.approx(wanted, abs=1e-12)
    merged = model_stock(over_ones([2.0, 0.0], [1.0, math.sqrt(3)]))["w"].tolist()
    assert merged == pytest.approx([1 + 2 / 3 * 1.5, 1 + 2 / 3 * math.sqrt(3) / 2])


def test_three_experts_by_hand() -> None:
    # Cosines 0, 0.6, 0.8: c = 1.4/3, r = 3c/(1 + 2c).
    vectors = over_ones([1.0, 0.0], [0.0, 5.0], [1.2, 1.6])
    mean = 1.4 / 3
    assert ratio(vectors) == pytest.approx(3 * mean / (1 + 2 * mean))
    assert ratio(vectors) == pytest.approx(model_stock_ratio(gram(vectors).total)[1])


def test_obtuse_angles_give_the_base() -> None:
    for degrees in (91, 120, 180):
        assert_same_bits(model_stock(at_angle(degrees)), at_angle(degrees).base)
    # Three at 120 degrees: the paper's denominator is zero.
    rows = [[math.cos(a), math.sin(a)] for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    merged = model_stock(over_ones(*rows))["w"]
    assert merged.tolist() == [1, 1]


def test_zero_task_vectors_are_orthogonal_to_all() -> None:
    vectors = over_ones([1.0, 0.0], [1.0, 0.0], [0.0, 0.0])
    assert ratio(vectors) == pytest.approx(3 / 3 / (1 + 2 / 3))  # c = 1/3
    assert_same_bits(model_stock(over_ones([0.0], [0.0])), {"w": torch.ones(1)})


def test_one_expert_is_itself() -> None:
    assert ratio(over_ones([0.3, 0.4])) == 1.0
    assert model_stock(over_ones([0.3, 0.4]))["w"].tolist() == pytest.approx([1.3, 1.4])
    assert_same_bits(model_stock(over_ones([0.0, 0.0])), {"w": torch.ones(2)})


def test_the_authors_notebook_by_hand() -> None:
    # Equal vectors of norm 1e-4: cos = 1e-8/(1e-8 + 1e-8) = 0.5 where float32 does not round.
    short = at_angle(0, 1e-4)
    assert ratio(short) == pytest.approx(1.0)
    mean = 0.5
    assert ratio(short, "released") == pytest.approx(2 * mean / (mean + 1), rel=1e-6)
    # The mean angle: of 0, 90, 90 degrees it is 60, whose cosine is 1/2 and not 1/3.
    three = over_ones([1.0, 0.0], [1.0, 0.0], [0.0, 1.0])
    assert ratio(three) == pytest.approx(1 / (1 + 2 / 3))
    assert ratio(three, "fusionbench") == pytest.approx(1.5 / 2, abs=1e-4)
    assert ratio(at_angle(120), "released") == pytest.approx(-2, rel=1e-6)


def test_mergekit_by_hand() -> None:
    # The mean cosine, as in the paper, without the clamp; products of norms of at least 1e-6.
    three = over_ones([1.0, 0.0], [1.0, 0.0], [0.0, 1.0])
    assert ratio(three, "mergekit") == pytest.approx(1 / (1 + 2 / 3))
    assert ratio(at_angle(120), "mergekit") == pytest.approx(-2, rel=1e-6)
    mean = 1e-8 / 1e-6
    assert ratio(at_angle(0, 1e-4), "mergekit") == pytest.approx(2 * mean / (1 + mean), rel=1e-6)
    moved = model_stock(at_angle(120), compat="mergekit")["w"] - 1
    assert moved.tolist() == pytest.approx([-2 * 0.25, -2 * math.sqrt(3) / 4])


def rows_of(*experts: list[list[float]]) -> TaskVectors:
    found = {f"m{t}": {"w": torch.tensor(rows)} for t, rows in enumerate(experts)}
    return TaskVectors.from_state_dicts({"w": torch.zeros_like(found["m0"]["w"])}, found)


def test_rows_by_hand() -> None:
    # 60, 90 and 180 degrees: r = 2/3, 0 and 0; the whole tensors are at another angle.
    half = math.sqrt(3)
    vectors = rows_of([[2, 0], [1, 0], [1, 0.0]], [[1, half], [0, 1], [-1, 0]])
    found = model_stock(vectors, filter_wise=True)["w"]
    assert found[0].tolist() == pytest.approx([1, half / 3])
    assert found[1:].tolist() == [[0, 0], [0, 0]]
    assert not torch.allclose(found, model_stock(vectors)["w"], atol=0.01)


@pytest.mark.parametrize("compat", ["paper", "released", "mergekit"])
@pytest.mark.parametrize("shape", [(5,), (4, 6), (4, 3, 2, 2), (3, 0), ()])
def test_rows_are_tensors_of_their_own(shape: tuple[int, ...], compat: str) -> None:
    """Of each output filter the ratio is that of a tensor which has no other entries."""
    draw = torch.Generator().manual_seed(len(shape))
    base, *models = (torch.randn(shape, generator=draw) for _ in range(4))
    for name, model in enumerate(models):
        model.mul_(0.1 if name else 1.0).add_(base)

    def merged(part: slice, by_row: bool) -> torch.Tensor:
        cut = [x[part].clone() if x.ndim > 1 else x for x in (base, *models)]
        experts = {f"m{t}": {"w": x} for t, x in enumerate(cut[1:])}
        vectors = TaskVectors.from_state_dicts({"w": cut[0]}, experts)
        return model_stock(vectors, filter_wise=by_row, compat=compat)["w"]  # type: ignore[arg-type]

    found = merged(slice(None), True)
    assert found.shape == base.shape
    if len(shape) < 2:
        torch.testing.assert_close(found, merged(slice(None), False))
        return
    for row in range(shape[0]):
        torch.testing.assert_close(found[row : row + 1], merged(slice(row, row + 1), False))


@pytest.mark.parametrize("schema", ["float32", "mixed"])
def test_against_the_formula(schema: str) -> None:
    vectors = toy(schema)
    merged = model_stock(vectors)
    for name, deltas in vectors.deltas.items():
        rows = deltas.double().reshape(3, -1)
        pairs = [(0, 1), (0, 2), (1, 2)]
        cosines = [
            float(torch.nn.functional.cosine_similarity(rows[i], rows[j], dim=0)) for i, j in pairs
        ]
        mean = sum(cosines) / 3
        r = max(0.0, 3 * mean / (1 + 2 * mean)) if rows.numel() and mean > 0 else 0.0
        wanted = vectors.base[name].double() + r * deltas.double().mean(0)
        torch.testing.assert_close(merged[name], wanted.to(merged[name].dtype), msg=name)
