"""LOT merging: least squares by hand and in float64, ranks, and norms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fusion.errors import InputError
from fusion.kinds import MergeInputs
from fusion.methods.static.average import simple_average
from fusion.methods.statistics.collect import Grams
from fusion.methods.statistics.lot import lot
from fusion.methods.statistics.regmean import regmean
from fusion.registry import METHODS
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.laws import TASKS, toy, toy_statistics


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vectors_of(base: Tensor, *experts: Tensor, name: str = "l.weight") -> TaskVectors:
    return TaskVectors.from_state_dicts(
        {name: base}, {f"t{i}": {name: expert} for i, expert in enumerate(experts)}
    )


def grams_of(inputs: Tensor) -> Tensor:
    return inputs.mT @ inputs / inputs.shape[1]


@pytest.mark.parametrize("rows", [50, 2])
def test_no_matrix_drifts_less(rows: int) -> None:
    """The least squares of Σ_t ‖X_t T − X_t τ_t‖²; with too few rows, the shortest of them."""
    weights, inputs = drawn(4, 5, 7), drawn(3, rows, 7, seed=1)
    vectors = vectors_of(*weights)
    found = lot(vectors, statistics={"l.weight": grams_of(inputs)}, rtol=1e-12)["l.weight"]
    moved = [x @ (w - weights[0]).T for x, w in zip(inputs, weights[1:], strict=True)]
    wanted = torch.linalg.lstsq(
        torch.cat(list(inputs)), torch.cat(moved), driver="gelsd"
    ).solution  # [in, out], of least norm
    torch.testing.assert_close(found, weights[0] + wanted.T)


def test_directions_that_no_input_has_stay_at_the_base() -> None:
    """By hand: the first entry is seen by both, twice as often by a, the second by nobody."""
    vectors = vectors_of(torch.ones(1, 2), torch.tensor([[2.0, 5.0]]), torch.tensor([[5.0, 7.0]]))
    grams = torch.tensor([[[2.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
    found = lot(vectors, statistics={"l.weight": grams})["l.weight"]
    assert found.flatten().tolist() == pytest.approx([1 + (2 * 1 + 1 * 4) / 3, 1.0])


def test_rtol_cuts_weak_directions() -> None:
    grams = torch.diag(torch.tensor([1.0, 1e-3])).expand(2, 2, 2)
    vectors = vectors_of(torch.zeros(1, 2), torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 5.0]]))
    whole, cut = (
        lot(vectors, statistics={"l.weight": grams}, rtol=rtol)["l.weight"] for rtol in (None, 0.01)
    )
    assert whole.flatten().tolist() == pytest.approx([2.0, 3.0])
    assert cut.flatten().tolist() == pytest.approx([2.0, 0.0])


def test_with_enough_rows_it_is_regmean_without_its_extras() -> None:
    vectors = vectors_of(*drawn(4, 5, 7))
    given = {"l.weight": grams_of(drawn(3, 40, 7, seed=2))}
    found = lot(vectors, statistics=given)["l.weight"]
    other = regmean(vectors, statistics=given, non_diagonal=1.0, ridge=0.0)["l.weight"]
    torch.testing.assert_close(found, other)


def test_against_explicit_pseudo_inverses_in_float64() -> None:
    vectors = toy()
    given = toy_statistics(vectors.deltas, TASKS, "norm_gram")
    found = METHODS["lot"].merge(vectors, MergeInputs(statistics=given))
    mean, ndims = simple_average(vectors), set()
    for name, deltas in vectors.deltas.items():
        if name not in given:
            torch.testing.assert_close(found[name], mean[name])
            continue
        weights, base = given[name].double(), vectors.base[name].double()
        ndims.add(base.ndim)
        if base.ndim == 1:
            wanted = base + (weights * deltas).sum(0) / weights.sum(0)
        else:
            right = sum(g @ d.double().T for g, d in zip(weights, deltas, strict=True))
            wanted = base + (torch.linalg.pinv(weights.sum(0), hermitian=True) @ right).T
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-5, atol=1e-5)
    assert ndims == {1, 2}


def test_norms_by_hand() -> None:
    vectors = vectors_of(torch.ones(3), torch.tensor([2.0, 3, 4]), torch.tensor([5.0, 1, 9]))
    energy = torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    found = lot(vectors, statistics={"l.weight": energy})["l.weight"]
    assert found.tolist() == pytest.approx([1 + (2 * 1 + 1 * 4) / 3, 1 + (2 + 0) / 2, 1.0])


class Net(nn.Module):
    """A norm, a linear layer, and a norm of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.ln, self.fc, self.bn = nn.LayerNorm(6), nn.Linear(6, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.fc(self.ln(x)).mT)


def net(seed: int) -> Net:
    torch.manual_seed(seed)
    found = Net().double().eval()
    with torch.no_grad():
        for name, value in (*found.named_parameters(), *found.named_buffers()):
            if value.is_floating_point():
                value.copy_(
                    torch.rand(value.shape) + 0.5 if "var" in name else torch.randn(value.shape)
                )
    return found.double()


def test_statistics_of_norms_are_the_squares_of_normalised_inputs() -> None:
    model, inputs = net(0), drawn(5, 3, 6, seed=4)
    names = {name: f"m.{name}" for name, _ in model.named_parameters()}
    grams = Grams([(model, names)], set(names.values()), norms=True)
    grams.on = True
    with torch.inference_mode():
        outputs = model(inputs)
        model(inputs[:2])
    grams.close()
    torch.testing.assert_close(outputs, model(inputs))  # the model itself computes as before
    found = grams.means()
    assert set(found) == {"m.ln.weight", "m.fc.weight", "m.bn.weight"}
    both = torch.cat([inputs, inputs[:2]])
    unit = nn.functional.layer_norm(both, (6,)).reshape(-1, 6)
    torch.testing.assert_close(
        found["m.ln.weight"].double(), unit.square().mean(0), rtol=1e-5, atol=0
    )
    before = model.fc(model.ln(both)).reshape(-1, 4)
    unit = (before - model.bn.running_mean) / (model.bn.running_var + model.bn.eps).sqrt()
    torch.testing.assert_close(
        found["m.bn.weight"].double(), unit.square().mean(0), rtol=1e-5, atol=0
    )
    off = Grams([(model, names)], set(names.values()))
    off.on = True
    model(inputs)
    assert set(off.means()) == {"m.fc.weight"}


def test_a_norm_s_weight_drifts_least() -> None:
    """Against least squares on the layer's outputs, entry by entry."""
    inputs, weights = drawn(2, 30, 6, seed=5), drawn(3, 6, seed=6)
    unit = nn.functional.layer_norm(inputs * torch.tensor([0.1, 3.0])[:, None, None] ** 2, (6,))
    found = lot(
        vectors_of(*weights, name="ln.weight"), statistics={"ln.weight": unit.square().mean(1)}
    )["ln.weight"]
    for entry in range(6):
        x = torch.cat(list(unit[:, :, entry]))[:, None]
        y = torch.cat([unit[t, :, entry] * weights[1 + t, entry] for t in (0, 1)])[:, None]
        assert found[entry].item() == pytest.approx(torch.linalg.lstsq(x, y).solution.item())


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 2)])
def test_statistics_that_are_not_finite_are_refused(shape: tuple[int, ...]) -> None:
    vectors = vectors_of(*torch.ones(3, *shape[1:]))
    broken = torch.full(shape, torch.nan)
    with pytest.raises(InputError, match=r"lot: statistics: .*: NaN or Inf"):
        lot(vectors, statistics={"l.weight": broken})
