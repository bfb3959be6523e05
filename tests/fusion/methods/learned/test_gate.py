"""DAWE's gate: its start, its sizes, its softmax, its speed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.methods.learned.gate import Gate, hidden_norm, regroup, shapes
from fusion.task_vectors.coding import mix
from fusion.task_vectors.task_vectors import TaskVectors

D, T, G = 6, 3, 4


def features(rows: int = 5, width: int = D, seed: int = 1) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def moved(*, seed: int = 2, tasks: int = T, groups: int = G, **options: Any) -> Gate:
    """A gate away from its start, as training leaves it."""
    gate = Gate(D, tasks, groups, **options)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in gate.parameters():
            tensor.add_(torch.randn(tensor.shape, generator=draw))
    return gate


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("groups", [1, G])
@pytest.mark.parametrize("scale", [0.3, -0.7])
def test_starts_at_lambda(depth: int, groups: int, scale: float) -> None:
    codes = Gate(D, T, groups, depth=depth, scale=scale)(features())
    assert codes.shape == (5, T, groups)
    assert torch.equal(codes, torch.full((5, T, groups), scale))


def test_start_is_task_arithmetic() -> None:
    base = {"w": torch.tensor([1.0, -2.0]), "b": torch.tensor([0.5])}
    experts = {f"t{i}": {k: v + i + 1 for k, v in base.items()} for i in range(T)}
    vectors = TaskVectors.from_state_dicts(base, experts)
    for groups in (1, 2):
        merged = mix(vectors, Gate(D, T, groups, scale=0.25)(features(1)).detach())
        for name, tensor in base.items():
            torch.testing.assert_close(merged[name], tensor + 0.25 * (1 + 2 + 3))


def test_original_formula_task_major() -> None:
    gate = moved()
    state = gate.state_dict()
    x = features()
    hidden = (x @ state["0.weight"].T + state["0.bias"]).clamp(min=0)
    flat = hidden @ state["2.weight"].T + state["2.bias"]
    codes = gate(x)
    for i in range(T):
        for group in range(G):
            torch.testing.assert_close(codes[:, i, group], flat[:, i * G + group])


def test_depth_one_and_zero_formulas() -> None:
    one, none, x = moved(depth=1), moved(depth=0), features()
    state = one.state_dict()
    flat = x @ state["0.weight"].T + state["0.bias"]
    torch.testing.assert_close(one(x), flat.view(5, T, G))
    constant = none.state_dict()["0.bias"].view(1, T, G).expand(5, -1, -1)
    assert torch.equal(none(x), constant)
    assert torch.equal(none(x), none(features(seed=9)))
    none(x).sum().backward()
    grad = none.get_parameter("0.bias").grad
    assert grad is not None
    assert torch.equal(grad, torch.full((T * G,), 5.0))


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_no_rows(depth: int) -> None:
    assert Gate(D, T, G, depth=depth)(features(0)).shape == (0, T, G)


def test_first_step_moves_the_last_layer_only() -> None:
    gate, weight = Gate(D, T, G), features(5, T * G, seed=3).view(5, T, G)

    def gradients() -> dict[str, Tensor]:
        gate.zero_grad()
        (gate(features()) * weight).sum().backward()
        return {name: p.grad for name, p in gate.named_parameters() if p.grad is not None}

    first = gradients()
    assert not first["0.weight"].any()
    assert not first["0.bias"].any()
    assert first["2.weight"].any()
    assert first["2.bias"].any()
    torch.optim.Adam(gate.parameters(), lr=0.1).step()
    assert gradients()["0.weight"].any()


@pytest.mark.parametrize(
    ("width", "groups", "count"),
    [
        (512, 1, 266_760),
        (2048, 1, 4_212_744),
        (512, 158, 911_088),
        (2048, 158, 6_786_288),
        (512, 302, 1_502_064),
        (2048, 302, 9_146_736),
    ],
)
def test_published_sizes(width: int, groups: int, count: int) -> None:
    gate = Gate(width, 8, groups)
    assert sum(tensor.numel() for tensor in gate.parameters()) == count
    assert list(gate.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert gate.state_dict()["2.weight"].shape == (8 * groups, width)


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("base_weight", [False, True])
def test_shapes_are_those_of_the_gate(depth: int, base_weight: bool) -> None:
    gate = Gate(D, T, G, depth=depth, softmax=True, base_weight=base_weight)
    found = {name: tuple(tensor.shape) for name, tensor in gate.state_dict().items()}
    assert list(found.items()) == list(shapes(D, (T + base_weight) * G, depth).items())


def test_seeds() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one, same, other = Gate(D, T, G, seed=3), Gate(D, T, G, seed=3), Gate(D, T, G, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    later = Gate(D, T, G, seed=3)
    for name in ("0.weight", "0.bias"):
        assert torch.equal(one.get_parameter(name), same.get_parameter(name))
        assert torch.equal(one.get_parameter(name), later.get_parameter(name))
        assert not torch.equal(one.get_parameter(name), other.get_parameter(name))


def test_first_layer_is_uniform() -> None:
    gate = Gate(400, T, G)
    for name in ("0.weight", "0.bias"):
        values = gate.get_parameter(name).detach() * math.sqrt(400)
        assert values.abs().max() <= 1
        assert values.max() > 0.97
        assert values.min() < -0.97
        assert abs(float(values.std()) - 3**-0.5) < 0.04  # of U(-1, 1)
    assert abs(float(gate.get_parameter("0.weight").detach().mean())) < 1e-3


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("groups", [1, G])
def test_softmax(depth: int, groups: int) -> None:
    gate = Gate(D, T, groups, depth=depth, scale=0.9, softmax=True)
    assert not gate.last_bias.any()
    torch.testing.assert_close(gate(features()), torch.full((5, T, groups), 1 / T))
    codes = moved(groups=groups, depth=depth, softmax=True)(features())
    assert (codes > 0).all()
    torch.testing.assert_close(codes.sum(1), torch.ones(5, groups))
    assert codes.std(dim=1).min() > 1e-3  # of different experts, different
    if groups > 1:
        assert not torch.allclose(codes[..., 0], codes[..., 1])


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_softmax_with_the_base(depth: int) -> None:
    start = Gate(D, T, G, depth=depth, softmax=True, base_weight=True)(features())
    torch.testing.assert_close(start, torch.full((5, T, G), 1 / (T + 1)))
    gate = moved(depth=depth, softmax=True, base_weight=True)
    plain = Gate(D, T + 1, G, depth=depth)
    plain.load_state_dict(gate.state_dict())
    weights = plain(features()).softmax(dim=1)  # base first
    torch.testing.assert_close(gate(features()), weights[:, 1:])
    torch.testing.assert_close(1 - gate(features()).sum(1), weights[:, 0])


def test_softmax_mixes_models() -> None:
    """w₀θ₀ + Σ w_t θ_t = θ₀ + Σ w_t τ_t."""
    gate = moved(groups=1, softmax=True, base_weight=True)
    draw = torch.Generator().manual_seed(5)
    base = {"w": torch.randn(7, generator=draw)}
    experts = {f"t{i}": {"w": torch.randn(7, generator=draw)} for i in range(T)}
    coding = gate(features(1)).detach()
    merged = mix(TaskVectors.from_state_dicts(base, experts), coding)["w"]
    weights = coding.flatten().tolist()
    expected = (1 - sum(weights)) * base["w"]
    for weight, expert in zip(weights, experts.values(), strict=True):
        expected = expected + weight * expert["w"]
    torch.testing.assert_close(merged, expected)


@pytest.mark.parametrize(
    "options",
    [{}, {"depth": 1}, {"depth": 0}, {"softmax": True}, {"softmax": True, "base_weight": True}],
)
def test_regroup(options: dict[str, Any]) -> None:
    gate, columns = moved(**options), [3, 0, 0]
    before = {name: tensor.clone() for name, tensor in gate.state_dict().items()}
    new = regroup(gate, columns)
    assert (new.groups, new.options) == (3, gate.options)
    torch.testing.assert_close(new(features()), gate(features())[:, :, columns])
    with torch.no_grad():
        for tensor in new.parameters():
            tensor.zero_()
    assert all(torch.equal(gate.state_dict()[name], tensor) for name, tensor in before.items())


def test_regroup_keeps_the_dtype() -> None:
    new = regroup(moved().double(), [1])
    assert {tensor.dtype for tensor in new.parameters()} == {torch.float64}


def test_half_features() -> None:
    gate, half = moved(), features().half()
    assert torch.equal(gate(half), gate(half.float()))
    assert gate.double()(half).dtype == torch.float64


def test_hidden_norm() -> None:
    two, one, none, x = moved(), moved(depth=1), moved(depth=0), features()
    state = two.state_dict()
    hidden = (x @ state["0.weight"].T + state["0.bias"]).clamp(min=0)
    assert hidden_norm(two, x) == pytest.approx(float(hidden.sum()) / 5)
    assert hidden_norm(one, x) == pytest.approx(float(x.abs().sum()) / 5)
    assert hidden_norm(none, x) == 1.0
    assert all(tensor.grad is None for tensor in two.parameters())


@pytest.mark.parametrize("depth", [1, 2])
def test_hidden_norm_is_the_speed_of_adam(depth: int) -> None:
    gate, x, rate = Gate(D, T, G, depth=depth), features(1).abs(), 1e-3
    norm = hidden_norm(gate, x)
    before = gate(x).detach()
    gate(x).sum().backward()
    torch.optim.Adam(gate.parameters(), lr=rate).step()
    change = before - gate(x).detach()
    torch.testing.assert_close(
        change, torch.full_like(change, rate * (norm + 1)), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "gate: width: 0; 1 or more needed"),
        ({"tasks": 0}, "gate: tasks: 0; 1 or more needed"),
        ({"groups": 0}, "gate: groups: 0; 1 or more needed"),
        ({"depth": 3}, "gate: depth: 3; 0, 1 or 2 allowed"),
        ({"scale": math.nan}, "gate: scale: nan; a finite number needed"),
        (
            {"base_weight": True},
            "gate: base_weight: True; only with softmax (else θ₀'s coefficient is fixed at 1)",
        ),
    ],
)
def test_refused_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Gate(**{"width": D, "tasks": T, "groups": G, **options})
    assert str(caught.value) == message


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_refused_features(depth: int) -> None:
    gate = Gate(D, T, G, depth=depth)
    for wrong in (features(5, D + 1), features()[0]):
        with pytest.raises(InputError) as caught:
            gate(wrong)
        assert str(caught.value) == f"features: shape {list(wrong.shape)}; [B, {D}] needed"
    with pytest.raises(InputError, match=r"^features: no rows; 1 or more needed$"):
        hidden_norm(gate, features(0))
