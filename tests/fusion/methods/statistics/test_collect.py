"""Gram matrices of the inputs of linear layers, while a model runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fusion.methods.statistics.collect import Grams, Statistics, add_upper, mirrored


class Attention(nn.Module):
    """Two layers with one input, and one with another."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.q(x) * self.k(x))


def test_sums_are_of_all_rows_and_shared_where_the_input_is() -> None:
    module, names = Attention(), {f"{n}.weight": f"layer.{n}.weight" for n in ("q", "k", "out")}
    grams = Grams([(module, names)], {"layer.q.weight", "layer.k.weight"})
    batches = [torch.randn(2, 4, 3), torch.randn(1, 4, 3)]
    module(torch.randn(9, 3))  # it is not looking yet
    grams.on = True
    for batch in batches:
        module(batch)
    rows = torch.cat([batch.reshape(-1, 3) for batch in batches])
    found = grams.means()
    assert list(found) == ["layer.q.weight"]
    torch.testing.assert_close(found["layer.q.weight"], rows.T @ rows / 12)
    assert grams.keys == {"layer.q.weight": "layer.q.weight", "layer.k.weight": "layer.q.weight"}
    grams.close()
    module(batches[0])
    assert torch.equal(grams.means()["layer.q.weight"], found["layer.q.weight"])


@pytest.mark.parametrize("width", [1, 3, 64, 65, 160, 300])
def test_a_triangle_gives_the_whole_gram_matrix(width: int) -> None:
    total = torch.zeros(width, width)
    batches = [torch.randn(7, width), torch.randn(40, width)]
    for rows in batches:
        add_upper(total, rows)
    found = mirrored(total)
    wanted = sum((rows.T.double() @ rows.double() for rows in batches), torch.zeros(()).double())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(found, found.T)


def test_statistics_by_name() -> None:
    found = Statistics({"q": torch.ones(1)}, {"q": "q", "k": "q"})
    assert list(found) == ["q", "k"]
    assert found["k"] is found["q"]
    assert "out" not in found
    assert (len(found), found.key("k")) == (2, "q")
