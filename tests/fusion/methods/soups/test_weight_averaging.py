"""Averages of a run are float32 means of weights only; batch norm is measured again exactly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fusion.errors import InputError
from fusion.methods.soups.weight_averaging import (
    ema,
    ema_decay,
    freeze_batchnorm,
    has_batchnorm,
    is_batch_statistic,
    reestimate_batchnorm,
    result,
    started,
    swa,
)


def run(steps: int, dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(50, generator=generator, dtype=torch.float64)
    return [
        {
            "w": (start + 0.01 * torch.randn(50, generator=generator, dtype=torch.float64)).to(
                dtype
            ),
            "bn.running_mean": torch.full((2,), float(step)),
            "bn.num_batches_tracked": torch.tensor(step),
        }
        for step in range(steps)
    ]


def test_swa_is_the_mean_of_the_weights() -> None:
    models = run(7)
    average = started(models[0])
    for model in models[1:]:
        average = swa(average, model)
    assert average.updates == 6
    found = result(average, models[0])
    exact = torch.stack([model["w"].double() for model in models]).mean(0)
    torch.testing.assert_close(found["w"].double(), exact, rtol=1e-6, atol=1e-7)
    # Statistics are the last model's, not averaged; integers stay integers.
    assert found["bn.running_mean"].tolist() == [6.0, 6.0]
    assert found["bn.num_batches_tracked"].dtype == torch.int64
    assert int(found["bn.num_batches_tracked"]) == 6
    assert list(found) == list(models[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_averaged_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    models = run(72, dtype)
    average = started(models[0])
    for model in models[1:]:
        average = swa(average, model)
    assert average.shadow["w"].dtype == torch.float32
    exact = torch.stack([model["w"].double() for model in models]).mean(0)
    torch.testing.assert_close(average.shadow["w"].double(), exact, rtol=1e-5, atol=1e-6)
    found = result(average, models[0])["w"]
    assert found.dtype == dtype
    assert bool((found == exact.to(dtype)).double().mean() > 0.9)


def test_ema_by_hand_and_against_the_recurrence() -> None:
    average = started({"w": torch.tensor([0.0])})
    average = ema(average, {"w": torch.tensor([1.0])}, decay=0.75, warm_up=False)
    assert average.shadow["w"].tolist() == [0.25]
    average = ema(average, {"w": torch.tensor([1.0])}, decay=0.75, warm_up=False)
    assert average.shadow["w"].tolist() == [0.4375]
    models = run(30)
    average, exact = started(models[0]), models[0]["w"].double()
    for t, model in enumerate(models[1:]):
        average = ema(average, model, decay=0.9)
        d = min(0.9, (1 + t) / (10 + t))
        exact = d * exact + (1 - d) * model["w"].double()
    torch.testing.assert_close(average.shadow["w"].double(), exact, rtol=1e-5, atol=1e-6)


def test_ema_warm_up() -> None:
    assert [ema_decay(t, 0.5) for t in (0, 2, 8, 100)] == [0.1, 0.25, 0.5, 0.5]
    assert ema_decay(0, 0.0) == 0.0
    with pytest.raises(InputError, match=r"decay: 1\.0; float in \[0, 1\)"):
        ema_decay(0, 1.0)


def test_a_constant_run_stays_and_the_model_is_not_touched() -> None:
    weights = {"w": torch.randn(100)}
    kept = weights["w"].clone()
    average = started(weights)
    for _ in range(20):
        average = ema(swa(average, weights), weights)
    assert torch.equal(average.shadow["w"], kept)
    assert torch.equal(weights["w"], kept)
    found = result(average, weights)["w"]
    found += 1
    assert torch.equal(average.shadow["w"], kept)


def test_weights_of_another_model_change_nothing() -> None:
    average = started({"a": torch.ones(2), "w": torch.ones(2)})
    with pytest.raises(InputError, match="tensor 'v': not in both"):
        swa(average, {"a": torch.zeros(2), "v": torch.ones(2)})
    with pytest.raises(InputError, match=r"tensor 'w': shape \[3\]; the average has \[2\]"):
        swa(average, {"a": torch.zeros(2), "w": torch.ones(3)})
    assert average.shadow["a"].tolist() == [1.0, 1.0]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.Dropout(0.5)
    )


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 2 + 1


def norm(net: nn.Sequential) -> nn.BatchNorm2d:
    layer = net[1]
    assert isinstance(layer, nn.BatchNorm2d)
    return layer


def statistics(layer: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var


def test_one_batch_gives_the_statistics_of_the_whole_set() -> None:
    net, data = network(), images(64)
    mean, var = statistics(norm(net))
    mean.fill_(100.0)  # what is stale must not shine through
    assert reestimate_batchnorm(net, [data]) == 64
    with torch.no_grad():
        activations = net[0](data).double()
    torch.testing.assert_close(mean.double(), activations.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var.double(), activations.var((0, 2, 3)), rtol=1e-5, atol=1e-6)
    # In eval mode the layer's output then has mean 0 and variance 1.
    with torch.no_grad():
        out = net.eval()[:2](data)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.var((0, 2, 3)), torch.ones(4), rtol=0, atol=1e-3)


def test_a_short_last_batch_counts_for_its_size() -> None:
    net, data = network(), images(35)
    parts = [data[:16], data[16:32], data[32:]]
    assert reestimate_batchnorm(net, iter(parts)) == 35
    with torch.no_grad():
        outputs = [net[0](part).double() for part in parts]
    wanted = sum(len(z) * z.mean((0, 2, 3)) for z in outputs) / 35
    spread = sum(len(z) * z.var((0, 2, 3)) for z in outputs) / 35
    mean, var = statistics(norm(net))
    torch.testing.assert_close(mean.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var.double(), spread, rtol=1e-5, atol=1e-6)
    equal = torch.stack([z.mean((0, 2, 3)) for z in outputs]).mean(0)
    assert not torch.allclose(mean.double(), equal, rtol=1e-3)  # torch's `momentum=None`


def test_averaging_statistics_is_wrong_and_measuring_mends_it() -> None:
    # Two networks with opposite filters: their mean's activations have far less variance.
    data = images(128)
    one, two, soup = network(), network(), network()
    with torch.no_grad():
        two[0].weight.copy_(-0.6 * one[0].weight)  # type: ignore[operator, union-attr]
        for net in (one, two):
            reestimate_batchnorm(net, [data])
        states = one.state_dict(), two.state_dict()
        soup.load_state_dict({name: (states[0][name] + states[1][name]) / 2 for name in states[0]})
        naive = soup.eval()[:2](data).var((0, 2, 3)).mean()
        reestimate_batchnorm(soup, [data])
        mended = soup.eval()[:2](data).var((0, 2, 3)).mean()
    assert float(naive) < 0.2
    assert float(mended) == pytest.approx(1, abs=0.01)


class Watch(nn.Module):
    """Notes the mode it runs in."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        return x


def test_only_batch_norm_is_in_train_mode_and_all_is_put_back() -> None:
    watch = Watch()
    net = nn.Sequential(*network(), watch)
    net.train()
    net[2].eval()
    reestimate_batchnorm(net, [images(8)])
    assert watch.modes == [False]
    assert [part.training for part in net] == [True, True, False, True, True]
    assert norm(net).momentum == 0.3
    assert all(p.grad is None for p in net.parameters())


def test_a_failure_puts_everything_back() -> None:
    net = network().eval()
    mean, var = statistics(norm(net))
    mean.fill_(7.0)

    good = images(8)
    for bad, error in (
        ([good, torch.zeros(2, 5, 6, 6)], RuntimeError),
        (failing(good), OSError),
        ([], InputError),
        ([good[:0]], InputError),
        ([good, torch.full((2, 3, 6, 6), float("nan"))], InputError),
    ):
        with pytest.raises(error):
            reestimate_batchnorm(net, bad)
        assert norm(net).momentum == 0.3
        assert not norm(net).training
        assert mean.tolist() == [7.0] * 4
        assert var.tolist() == [1.0] * 4


def failing(first: Tensor) -> Iterator[Tensor]:
    yield first
    raise OSError("the disk is gone")


def test_messages() -> None:
    net = network()
    with pytest.raises(InputError, match="batch norm: no batches"):
        reestimate_batchnorm(net, [])
    nan = torch.full((2, 3, 6, 6), float("nan"))
    with pytest.raises(InputError, match="batch norm '1': the statistics of the data are NaN"):
        reestimate_batchnorm(net, [nan])


def test_batches_of_any_kind() -> None:
    net, data = network(), images(8)
    batch = {"pixels": data}
    seen = reestimate_batchnorm(
        net, [batch], forward=lambda b: net(b["pixels"]), size=lambda b: len(b["pixels"])
    )
    assert seen == 8


def test_frozen_batch_norm_keeps_its_statistics_and_learns() -> None:
    net = network().train()
    before = [tensor.clone() for tensor in statistics(norm(net))]
    assert freeze_batchnorm(net) == 1
    net(images(8)).sum().backward()
    for old, new in zip(before, statistics(norm(net)), strict=True):
        assert torch.equal(old, new)
    assert norm(net).weight.grad is not None
    assert net.training


def test_has_batchnorm() -> None:
    assert has_batchnorm(network())
    assert not has_batchnorm(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    assert not has_batchnorm(nn.BatchNorm1d(3, track_running_stats=False))
    assert is_batch_statistic("layer1.0.bn1.running_var")
    assert not is_batch_statistic("running_mean.weight")
