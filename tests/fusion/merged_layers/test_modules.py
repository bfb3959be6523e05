"""Replaced layers against the library's own, run with explicitly merged weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fusion.errors import InputError
from fusion.merged_layers.modules import BareParameter, Mixer, merge_layers
from fusion.task_vectors.coding import check_coding, leaves
from fusion.task_vectors.task_vectors import TaskVectors

TASKS = ("a", "b", "c")


class Net(nn.Module):
    """One layer of each kind that can be merged."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
        self.token = BareParameter(4)
        self.positions = nn.Embedding(5, 4)
        self.inner = nn.Sequential(nn.LayerNorm(4, eps=0.1), nn.Linear(4, 6), nn.GELU())
        self.out = nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv(x).flatten(2).transpose(1, 2)  # [B, 4, 4]
        token = self.token().unsqueeze(1).expand(len(x), -1, -1)
        hidden = torch.cat([token, patches], dim=1) + self.positions(torch.arange(5)[None])
        return self.out(self.inner(hidden))


def net(build: Callable[[], nn.Module] = Net) -> nn.Module:
    with torch.device("meta"):
        return build().eval().requires_grad_(False)


def vectors_for(module: nn.Module) -> TaskVectors:
    """Random base and task vectors under names of their own."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shapes = {f"global.{key}": tuple(p.shape) for key, p in module.named_parameters()}
    base = {key: drawn(*shape) for key, shape in shapes.items()}
    return TaskVectors(TASKS, base, {key: drawn(3, *shape) for key, shape in shapes.items()})


def names_of(module: nn.Module) -> dict[str, str]:
    return {key: f"global.{key}" for key, _ in module.named_parameters()}


def setting(models: int, groups: int) -> tuple[TaskVectors, Tensor, Tensor]:
    """Task vectors, a coding [M, T, G] and a batch of four images."""
    vectors = vectors_for(net())
    generator = torch.Generator().manual_seed(1)
    size = len(vectors.groups) if groups > 1 else 1
    coding = torch.randn(models, 3, size, generator=generator, dtype=torch.float64)
    return vectors, coding, torch.randn(4, 2, 4, 4, generator=generator, dtype=torch.float64)


def explicit(vectors: TaskVectors, coding: Tensor, x: Tensor) -> Tensor:
    """Each image through the plain network with its own merged parameters."""
    module, outputs = net(), []
    columns = coding.repeat_interleave(len(x) // len(coding), 0)
    columns = columns.expand(-1, -1, len(vectors.groups))
    for image, own in zip(x, columns, strict=True):
        weights = {
            key.removeprefix("global."): base
            + sum(own[t, at] * vectors.deltas[key][t] for t in range(3))
            for at, (key, base) in enumerate(vectors.base.items())
        }
        outputs.append(functional_call(module, weights, (image[None],)))
    return torch.cat(outputs)


@pytest.mark.parametrize("form", ["auto", "A", "B"])
@pytest.mark.parametrize("models", [1, 2, 4])
@pytest.mark.parametrize("groups", [1, 2])
def test_equals_the_plain_network_with_merged_weights(form: Any, models: int, groups: int) -> None:
    vectors, coding, x = setting(models, groups)
    mixer = Mixer(vectors, form)
    merged = merge_layers(net(), mixer, names_of(net()))
    assert not list(merged.parameters())  # every weight is read from the mixer
    columns = leaves(vectors.groups, vectors.groups, coding)
    with mixer.with_columns(columns, len(x)):
        found = merged(x)
    leaf = coding.clone().requires_grad_()
    wanted = explicit(vectors, leaf, x)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    upstream = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)
    found.backward(upstream)
    wanted.backward(upstream)
    gradients = torch.stack([column.grad for column in columns.values()], dim=2)  # type: ignore[misc]
    assert leaf.grad is not None
    if coding.shape[2] == 1:
        gradients = gradients.sum(2, keepdim=True)
    torch.testing.assert_close(gradients, leaf.grad, rtol=1e-10, atol=1e-10)


def test_layers_without_task_vectors_are_left_alone() -> None:
    vectors = vectors_for(net())
    names = [name for name in vectors.base if not name.startswith(("global.out", "global.token"))]
    module = net()
    out, token, conv = module.out, module.token, module.conv
    merge_layers(module, Mixer(vectors.restrict(names)), names_of(module))
    assert module.out is out
    assert module.token is token
    assert module.conv is not conv
    assert {key for key, _ in module.named_parameters()} == {"out.weight", "token.value"}
    # … also where the module has parameters that nobody has named.
    module = net()
    merge_layers(module, Mixer(vectors), {"out.weight": "global.out.weight"})
    assert isinstance(module.conv, nn.Conv2d)
    assert not isinstance(module.out, nn.Linear)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (lambda: nn.BatchNorm1d(4), "BatchNorm1d"),
        (lambda: nn.GroupNorm(2, 4), "GroupNorm"),
        (lambda: nn.Conv1d(4, 4, 1), "Conv1d"),
        (lambda: nn.Conv2d(4, 4, 1, groups=2), "Conv2d"),
        (lambda: nn.Conv2d(4, 4, 3, padding="same"), "Conv2d"),
        (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "Conv2d"),
        (lambda: nn.LayerNorm(4, bias=False), "LayerNorm"),
        (lambda: nn.MultiheadAttention(4, 2), "MultiheadAttention"),
    ],
)
def test_unknown_layers_are_refused(layer: Callable[[], nn.Module], kind: str) -> None:
    module = net(lambda: nn.Sequential(nn.Linear(4, 4), layer()))
    with pytest.raises(
        InputError, match=rf"^global\.1\.\w+: {kind}: a layer that cannot be merged"
    ):
        merge_layers(module, Mixer(vectors_for(module)), names_of(module))


def test_half_a_layer_is_refused() -> None:
    module = net(lambda: nn.Sequential(nn.Linear(4, 4)))
    vectors = vectors_for(module).restrict(["global.0.weight"])
    with pytest.raises(InputError, match=r"^global\.0\.weight: Linear: a layer that cannot"):
        merge_layers(module, Mixer(vectors), names_of(module))


def test_a_layer_by_itself_is_refused() -> None:
    module = net(lambda: nn.Linear(4, 4))
    with pytest.raises(InputError, match=r"^global\.weight: Linear: "):
        merge_layers(module, Mixer(vectors_for(module)), names_of(module))


def test_columns_are_let_go_of_even_after_a_failure() -> None:
    mixer = Mixer(vectors_for(net()))

    def fail() -> None:
        with mixer.with_columns({"x": torch.ones(1, 3)}):
            assert set(mixer.columns) == {"x"}
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail()
    assert mixer.columns == {}
    assert mixer.table(None) is None


def test_leaves_are_columns_by_name() -> None:
    coding = torch.arange(24.0).view(2, 3, 4)
    found = leaves(("d", "b"), ("a", "b", "c", "d"), coding)
    assert list(found) == ["d", "b"]
    assert torch.equal(found["d"], coding[:, :, 3])
    assert torch.equal(found["b"], coding[:, :, 1])
    shared = leaves(("d", "b"), ("a", "b", "c", "d"), coding[:, :, :1])
    assert torch.equal(shared["d"], coding[:, :, 0])
    assert torch.equal(shared["b"], coding[:, :, 0])
    for columns in (found, shared):
        assert all(column.is_leaf and column.requires_grad for column in columns.values())
        owners = {column.untyped_storage().data_ptr() for column in columns.values()}
        assert coding.untyped_storage().data_ptr() not in owners


@pytest.mark.parametrize("shape", [(1, 3, 1), (6, 3, 1), (1, 3, 7), (6, 3, 7), (2, 3, 1)])
def test_codings_that_fit(shape: tuple[int, ...]) -> None:
    check_coding(torch.ones(shape), tasks=3, groups=7, batch=6)


@pytest.mark.parametrize(
    "shape", [(3, 1), (2, 3, 1), (10, 3, 1), (0, 3, 1), (1, 2, 1), (1, 3, 6), (5, 3, 7, 1)]
)
def test_codings_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as caught:
        check_coding(torch.ones(shape), tasks=3, groups=7, batch=5)
    said = f"coding: shape {list(shape)}; [a divisor of 5, 3, 1 or 7] needed"
    assert str(caught.value) == said
