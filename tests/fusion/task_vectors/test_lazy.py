"""Task vectors that are made when they are read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.merged_layers.functional import merged_embedding, merged_linear, merged_table
from fusion.methods.static.task_arithmetic import task_arithmetic
from fusion.task_vectors.lazy import LazyTensors, Recomputed, TensorStream, for_backward, for_mixing
from tests.fusion.laws import assert_same_bits, toy


def test_nothing_is_made_but_what_is_read() -> None:
    made: list[str] = []

    def make(name: str) -> Tensor:
        made.append(name)
        return torch.zeros(1)

    lazy = LazyTensors(["a", "b"], make)
    assert list(lazy) == ["a", "b"]
    assert len(lazy) == 2
    assert "a" in lazy
    assert list(lazy.some(["b", "c"])) == ["b"]
    assert made == []
    lazy["a"], lazy["a"]
    assert made == ["a", "a"]
    with pytest.raises(KeyError):
        lazy["c"]


def test_altered_task_vectors_are_rules_of_changed_ones() -> None:
    vectors = toy()
    doubled = vectors.altered(lambda name, deltas: 2 * deltas)
    assert_same_bits(task_arithmetic(doubled, scale=0.5), task_arithmetic(vectors, scale=1.0))
    part = doubled.restrict(["embed.weight"])
    assert isinstance(part.deltas, LazyTensors)
    assert list(part.deltas) == ["embed.weight"]
    assert part.groups == vectors.groups


def test_groups_are_all_at_once_or_one_at_a_time() -> None:
    stacks = {"a": torch.ones(2, 3), "b": torch.ones(2, 4).double()}
    lazy = LazyTensors(stacks, lambda name: stacks[name])
    assert [len(group) for group in TensorStream(stacks)] == [2]
    for _ in range(2):  # as often as is asked
        assert [[stack.shape[1] for stack in group] for group in TensorStream(lazy)] == [[3], [4]]
    assert [(each.shape[1], each.dtype) for each in TensorStream(stacks).outlines()] == [
        (3, torch.float32),
        (4, torch.float64),
    ]
    for deltas in (lazy, LazyTensors(stacks, lazy.make, lambda name: stacks[name].to("meta"))):
        found = list(TensorStream(deltas).outlines())
        assert [(each.shape, each.dtype) for each in found] == [
            (each.shape, each.dtype) for each in stacks.values()
        ]
        assert {each.device.type for each in found} == {"meta"}


def test_what_has_no_part_in_a_sum_is_not_made() -> None:
    stacks = {"w": torch.tensor([[1.0], [2.0], [3.0]])}
    asked: list[list[bool]] = []

    def part(name: str, used: list[bool]) -> Tensor:
        asked.append(list(used))
        return stacks[name] * torch.tensor(used)[:, None]

    lazy = LazyTensors(stacks, stacks.__getitem__, part=part)  # type: ignore[arg-type]
    assert for_mixing(lazy.some(["w"]), "w", [0.0, -1.0, 0.5]).tolist() == [[0], [2], [3]]
    assert asked == [[False, True, True]]
    assert for_mixing(stacks, "w", [0.0]) is stacks["w"]
    assert for_mixing(LazyTensors(stacks, stacks.__getitem__), "w", [0.0, 1.0, 1.0]) is stacks["w"]


def test_what_is_made_again_gives_the_same_gradients() -> None:
    draw = torch.Generator().manual_seed(0)
    base, deltas = torch.randn(6, 4, generator=draw), torch.randn(3, 6, 4, generator=draw)
    x, ids = torch.randn(2, 5, 4, generator=draw), torch.tensor([[0, 3], [5, 5]])
    made: list[int] = []

    def make() -> Tensor:
        made.append(1)
        return deltas.clone()

    again = Recomputed(make)
    flat = again.flatten(1).make()
    assert torch.equal(flat, deltas.flatten(1))
    rules = {
        "table": lambda c, d: merged_table(c, base, d),
        "embedding": lambda c, d: merged_embedding(ids, c, base, d),
        "A": lambda c, d: merged_linear(x, c, base, d, form="A"),
        "B": lambda c, d: merged_linear(x, c, base, d, form="B"),
    }
    for models in (1, 2):
        for name, rule in rules.items():
            found = []
            for given in (deltas, again):
                made.clear()
                c = torch.randn(models, 3, generator=torch.Generator().manual_seed(1))
                c.requires_grad_()
                out = rule(c, given)
                out.square().sum().backward()
                found.append((out.detach(), c.grad))
            assert len(made) == 2, name  # forward and backward
            assert torch.equal(found[0][0], found[1][0]), name
            assert torch.equal(found[0][1], found[1][1]), name
    with pytest.raises(InputError, match="merged layer: task vectors"):
        merged_linear(x, torch.ones(1, 2), base, again)
    lazy = LazyTensors(["w"], lambda name: deltas)
    assert isinstance(for_backward(lazy, "w"), Recomputed)
    assert for_backward({"w": deltas}, "w") is deltas
