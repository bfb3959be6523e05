"""Sparse task vectors: what is kept, by hand and against torch's quantile."""

import pytest
import torch

from fusion.task_vectors.sparse import largest, pruned
from tests.fusion.draws import drawn
from tests.fusion.laws import toy


@pytest.mark.parametrize(("count", "quantile", "kept"), [
    (1000, 0.9, 100), (32, 0.9, 4), (32, 1.0, 0), (32, 0.0, 31), (11, 0.5, 5), (1, 0.9, 0),
])  # fmt: skip
def test_how_many_are_left(count, quantile, kept):
    found = largest(drawn(2, count), quantile)
    assert [len(values) for values in found.values] == [kept, kept]


@pytest.mark.parametrize("quantile", [0.0, 0.13, 0.5, 0.71, 0.9, 0.95, 1.0])
def test_what_is_kept_is_above_the_interpolated_quantile(quantile):
    deltas = drawn(3, 7, 13).double()
    deltas[0, :3] = deltas[0, 3:6]  # ties
    found = largest(deltas, quantile).dense()
    for got, row in zip(found, deltas, strict=True):
        cut = torch.quantile(row.abs().flatten(), quantile)
        assert torch.equal(got, torch.where(row.abs() > cut, row, torch.zeros_like(row)))


def test_each_task_has_a_cut_of_its_own_and_little_is_kept():
    deltas = torch.stack([drawn(4000), 100 * drawn(4000)])
    found = largest(deltas, 0.9)
    assert [len(values) for values in found.values] == [400, 400]
    assert found.nbytes * 5 == deltas.nbytes
    assert found.dense().shape == deltas.shape


def test_pruned_task_vectors_are_made_when_they_are_read():
    vectors = toy()
    names = ["block.1.weight", "block.0.bias"]
    found = pruned(vectors, names, 0.5)
    assert list(found.deltas) == names
    assert found.base is vectors.base
    wanted = largest(vectors.deltas[names[0]], 0.5).dense()
    assert torch.equal(found.deltas[names[0]], wanted)
    assert found.deltas[names[0]] is not found.deltas[names[0]]
    assert found.deltas.outline(names[0]).shape == wanted.shape
