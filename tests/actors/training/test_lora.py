"""LoRA in training: the layer by hand, what is drawn, and what is trained."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from actors.training.lora import Lora, LoraFactors, add_lora

WIDTH = 6
PLAIN = Lora(rank=2, alpha=5.0, dropout=0.0)


class Net(nn.Module):
    """Two blocks of linear layers q, k and v, the last with a bias."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH, bias=name == "v") for name in "qkv"})
            for _ in range(2)
        )
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            for name in "qkv":
                x = block[name](x)
        return x


def rows(seed: int = 1) -> torch.Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(seed))


def moved(factors: LoraFactors) -> LoraFactors:
    """The factors, B drawn."""
    draw = torch.Generator().manual_seed(2)
    for up in factors.up:
        up.data = torch.randn(up.shape, generator=draw)
    return factors


def test_factors_are_of_the_target_layers_and_change_nothing_at_first() -> None:
    plain, net = Net(), Net()
    factors = add_lora(net, Lora(rank=2, alpha=5.0, dropout=0.5), 0)
    assert factors.names == ("blocks.0.q", "blocks.0.v", "blocks.1.q", "blocks.1.v")
    assert {tuple(down.shape) for down in factors.down} == {(2, WIDTH)}
    assert {tuple(up.shape) for up in factors.up} == {(WIDTH, 2)}
    assert not any(up.any() for up in factors.up)
    assert torch.equal(net(rows()), plain(rows()))


def test_a_layer_is_that_of_its_weight_plus_the_scaled_product() -> None:
    """y = (W₀ + (α/r)·B·A)x + b, against float64."""
    plain, net = Net(), Net()
    factors = moved(add_lora(net, PLAIN, 0))
    tensors = factors.tensors()
    x = rows().double()
    for at, block in enumerate(plain.blocks):
        for name in "qkv":
            weight = block[name].weight.detach().double()
            if name in "qv":
                down = tensors[f"blocks.{at}.{name}.lora_A.weight"].detach().double()
                up = tensors[f"blocks.{at}.{name}.lora_B.weight"].detach().double()
                weight = weight + 5.0 / 2 * up @ down
            x = x @ weight.T + (0.0 if name != "v" else block[name].bias.detach().double())
    torch.testing.assert_close(net(rows()).double(), x, rtol=1e-4, atol=1e-4)


def test_the_scale_is_alpha_over_the_rank() -> None:
    weight = []
    for alpha in (4.0, 8.0):
        net = Net()
        moved(add_lora(net, Lora(rank=4, alpha=alpha, dropout=0.0), 0))
        layer = net.blocks[0]["q"]
        weight.append(layer(torch.eye(WIDTH)) - layer.base_layer(torch.eye(WIDTH)))
    torch.testing.assert_close(weight[1], 2 * weight[0])


def test_the_first_factors_depend_on_the_seed_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (add_lora(Net(), PLAIN, seed) for seed in (1, 1, 2))
    down = [each.down[0].detach() for each in (first, again, other)]
    assert torch.equal(down[0], down[1])
    assert not torch.equal(down[0], down[2])
    assert not any(torch.equal(one, two) for one, two in pairwise(first.down))
    largest = max(float(each.detach().abs().max()) for each in first.down)
    assert 0.7 / math.sqrt(WIDTH) < largest <= 1 / math.sqrt(WIDTH)
    assert float(down[0].min()) < 0 < float(down[0].max())
    net = Net()
    torch.set_rng_state(before)
    add_lora(net, PLAIN, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_factors_alone_have_gradients_and_the_rest_stays() -> None:
    net = Net()
    frozen = {name: value.clone() for name, value in net.state_dict().items()}
    factors = add_lora(net, PLAIN, 0)
    optimiser = torch.optim.AdamW(factors.parameters(), lr=0.1)
    for _ in range(3):
        net(rows()).square().mean().backward()
        ours = {id(parameter) for parameter in factors.parameters()}
        for parameter in net.parameters():
            assert (parameter.grad is not None) == (id(parameter) in ours)
        optimiser.step()
        optimiser.zero_grad()
    assert all(up.any() for up in factors.up)
    now = {name.replace(".base_layer", ""): value for name, value in net.state_dict().items()}
    assert all(torch.equal(now[name], value) for name, value in frozen.items())


def test_the_state_holds_the_factors_alone_and_loading_it_changes_the_model() -> None:
    net, other = Net(), Net()
    factors, theirs = moved(add_lora(net, PLAIN, 0)), add_lora(other, PLAIN, 1)
    state = factors.state_dict()
    assert sum(value.numel() for value in state.values()) == 4 * 2 * 2 * WIDTH
    theirs.load_state_dict(state)
    assert torch.equal(net(rows()), other(rows()))


def test_dropout_acts_in_training_only() -> None:
    net = Net()
    moved(add_lora(net, Lora(rank=2, alpha=5.0, dropout=0.5), 0))
    net.eval()
    assert torch.equal(net(rows()), net(rows()))
    net.train()
    assert not torch.equal(net(rows()), net(rows()))


def test_a_name_that_no_layer_has_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing"):
        add_lora(Net(), Lora(targets=("nothing",)), 0)
