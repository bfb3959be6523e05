"""Gram matrices: one pass, any cut into shards, and what is read off them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.task_vectors import gram as module
from fusion.task_vectors.gram import (
    angles,
    cosines,
    distances,
    gram,
    layer_of,
    least_norm,
    merged_grams,
    model_stock_ratio,
    norms,
    regrouped,
    zero_tasks,
)
from fusion.task_vectors.task_vectors import TaskVectors

SHAPES = {
    "embeddings.weight": (7, 5),
    "encoder.layers.0.fc.weight": (6, 4),
    "encoder.layers.0.fc.bias": (6,),
    "encoder.layers.1.fc.weight": (6, 4),
    "head.weight": (3, 5),
    "logit_scale": (),
    "empty": (0, 2),
}


def models(tasks: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn((tasks, *shape), generator=generator) for name, shape in SHAPES.items()
    }


def flat(deltas: dict[str, Tensor]) -> Tensor:
    return torch.cat(
        [delta.double().reshape(4, delta[0].numel()) for delta in deltas.values()], dim=1
    )


def test_equals_the_direct_products(monkeypatch: pytest.MonkeyPatch) -> None:
    deltas = models()
    direct = flat(deltas) @ flat(deltas).T
    whole = gram(deltas.items())
    torch.testing.assert_close(whole.total, direct, rtol=1e-14, atol=1e-12)
    assert whole.tasks == ("0", "1", "2", "3")
    assert whole.total.dtype == torch.float64
    monkeypatch.setattr(module, "BLOCK", 7)  # many blocks, the last one short
    torch.testing.assert_close(gram(deltas.items()).total, direct, rtol=1e-14, atol=1e-12)


def test_angles_are_the_direct_angles() -> None:
    deltas = models()
    rows = flat(deltas)
    unit = rows / rows.norm(dim=1, keepdim=True)
    found = angles(gram(deltas.items()).total)
    for i in range(4):
        for j in range(4):
            if i != j:
                direct = math.degrees(math.acos(float(unit[i] @ unit[j])))
                assert float(found[i, j]) == pytest.approx(direct, abs=1e-9)
    assert found.diagonal().tolist() == [0.0] * 4


def test_sums_are_made_in_float64() -> None:
    # 1e4² + 1e-2² in float32 is 1e8, and in bfloat16 even 256 + 1 is 256.
    delta = torch.tensor([[1e4, 1e-2]])
    assert float(gram([("w", delta)]).total) == pytest.approx(1e8 + 1e-4, rel=1e-13)
    ones = torch.ones(1, 70000, dtype=torch.bfloat16)
    assert float(gram([("w", ones)]).total) == 70000


def test_of_task_vectors_and_of_a_slice_that_is_not_contiguous() -> None:
    base = {"w": torch.zeros(2, 3), "ids": torch.arange(3)}
    experts = {name: {"w": torch.randn(2, 3), "ids": torch.arange(3)} for name in ("a", "b")}
    vectors = TaskVectors.from_state_dicts(base, experts)
    found = gram(vectors)
    assert found.tasks == ("a", "b")
    assert list(found.by_group) == ["w"]
    wide = torch.randn(2, 3, 8)[:, :, ::2]
    torch.testing.assert_close(
        gram([("w", wide)]).total, wide.flatten(1).double() @ wide.flatten(1).double().T
    )


def test_shards_add_up_to_the_same_bits() -> None:
    deltas = models()
    whole = gram(deltas.items())
    names = list(deltas)
    for cut in range(1, len(names)):
        parts = [
            gram([(name, deltas[name]) for name in some]) for some in (names[cut:], names[:cut])
        ]
        together = merged_grams(parts)
        assert torch.equal(together.total, whole.total)
        assert list(together.by_group) == list(whole.by_group)
    # A group that lies in two shards is added.
    one, two = (gram([(name, deltas[name])], group=lambda name: "all") for name in names[:2])
    both = merged_grams([one, two])
    torch.testing.assert_close(both.by_group["all"], one.total + two.total)


def test_groups() -> None:
    deltas = models()
    whole = gram(deltas.items())
    blocks = regrouped(whole, layer_of)
    assert sorted(blocks.by_group) == [
        "embeddings",
        "empty",
        "encoder.layers.0",
        "encoder.layers.1",
        "head",
        "logit_scale",
    ]
    layer = {name: deltas[name] for name in deltas if "layers.0" in name}
    rows = flat(layer)
    torch.testing.assert_close(blocks.by_group["encoder.layers.0"], rows @ rows.T)
    direct = gram(deltas.items(), group=layer_of)
    torch.testing.assert_close(direct.total, whole.total)
    assert list(direct.by_group) == list(blocks.by_group)


def test_batch_statistics_and_integers_are_no_weights() -> None:
    weights = ("bn.weight", torch.ones(2, 3))
    found = gram(
        [
            weights,
            ("bn.running_mean", torch.full((2, 3), 1e6)),
            ("bn.running_var", torch.full((2, 3), 1e6)),
            ("bn.num_batches_tracked", torch.tensor([5, 6])),
            ("ids", torch.ones(2, 3, dtype=torch.int64)),
        ]
    )
    assert list(found.by_group) == ["bn.weight"]
    assert found.total.tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_a_zero_task_vector_is_named_and_has_no_angle() -> None:
    found = gram([("w", torch.tensor([[3.0, 4.0], [0.0, 0.0], [3.0, 4.0]]))], tasks="abc")
    assert zero_tasks(found) == ["b"]
    assert norms(found.total).tolist() == [5.0, 0.0, 5.0]
    between = angles(found.total)
    assert between[1].isnan().all()
    assert between[:, 1].isnan().all()
    assert float(between[0, 2]) == 0.0
    assert distances(found.total)[0].tolist() == [0.0, 5.0, 0.0]


def test_cosines_stay_in_range() -> None:
    row = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    rows = torch.stack([row, row * 3, -row])
    found = cosines(gram([("w", rows)]).total)
    assert bool((found.abs() <= 1).all())
    torch.testing.assert_close(found[0], torch.tensor([1.0, 1.0, -1.0]).double())
    assert angles(gram([("w", rows)]).total)[0].isfinite().all()


def test_model_stock_by_hand() -> None:
    # Two task vectors at 60°: t = 2·½ / (1 + ½) = 2/3; orthogonal ones: nothing to trust, 0.
    sixty = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(3) / 2]]).double()
    assert model_stock_ratio(sixty @ sixty.T) == (pytest.approx(0.5), pytest.approx(2 / 3))
    assert model_stock_ratio(torch.eye(3).double()) == (0.0, 0.0)
    assert model_stock_ratio(torch.ones(2, 2).double()) == (1.0, 1.0)
    with pytest.raises(InputError, match="1 task vectors; at least 2"):
        model_stock_ratio(torch.ones(1, 1))


def test_least_norm() -> None:
    # Orthogonal vectors: a_t ∝ 1/‖τ_t‖².
    products = torch.diag(torch.tensor([1.0, 4.0, 2.0])).double()
    wanted = torch.tensor([4.0, 1.0, 2.0]).double() / 7
    for convex in (True, False):
        torch.testing.assert_close(least_norm(products, convex=convex), wanted)
    # (1, 0) and (2, 1): the nearest point to the origin of their line is outside of the segment.
    rows = torch.tensor([[1.0, 0.0], [2.0, 1.0]]).double()
    products = rows @ rows.T
    torch.testing.assert_close(least_norm(products), torch.tensor([1.0, 0.0]).double())
    torch.testing.assert_close(
        least_norm(products, convex=False), torch.tensor([1.5, -0.5]).double()
    )


def test_least_norm_is_the_least_of_many_and_takes_duplicates() -> None:
    rows = flat(models())
    products = rows @ rows.T
    best = least_norm(products)
    value = float(best @ products @ best)
    generator = torch.Generator().manual_seed(1)
    for _ in range(500):
        a = torch.rand(4, generator=generator, dtype=torch.float64)
        a /= a.sum()
        assert float(a @ products @ a) >= value - 1e-9
    assert float(best.sum()) == pytest.approx(1)
    double = products[[0, 0, 1]][:, [0, 0, 1]]  # singular
    found = least_norm(double, convex=False)
    assert float(found[0]) == pytest.approx(float(found[1]))
    assert bool(least_norm(torch.zeros(2, 2)).isfinite().all())


def test_wrong_input() -> None:
    with pytest.raises(InputError, match="no floating-point tensor"):
        gram([])
    with pytest.raises(InputError, match="tensor 'w': 3 task vectors; 2 needed"):
        gram([("w", torch.ones(3, 2))], tasks=("a", "b"))
    bad = torch.tensor([[1.0], [math.nan]])
    with pytest.raises(InputError, match="task 'b': tensor 'w': NaN or Inf"):
        gram([("w", bad)], tasks=("a", "b"))
    one = gram([("w", torch.ones(2, 2))], tasks=("a", "b"))
    with pytest.raises(InputError, match="task 'c': not one of a, b"):
        one.of("c")
    with pytest.raises(InputError, match="not shards of one model"):
        merged_grams([one, gram([("v", torch.ones(2, 2))], tasks=("a", "c"))])
    with pytest.raises(InputError, match="at least one"):
        merged_grams([])
