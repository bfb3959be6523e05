"""Task vectors kept as factors against the same multiplied out: every method of the table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fusion.kinds import MergeInputs
from fusion.merged_layers.functional import (
    merged_conv2d,
    merged_embedding,
    merged_norm,
    merged_table,
)
from fusion.methods.learned.steps import Shape
from fusion.registry import METHODS, Static
from fusion.task_vectors.coding import mix, one_hot
from fusion.task_vectors.gram import gram
from fusion.task_vectors.lazy import LowRankTaskVectors, for_backward, for_mixing
from fusion.task_vectors.low_rank import LowRank, Zeros, product
from fusion.task_vectors.sharded_reduce import run_surveys
from fusion.task_vectors.sparse import pruned
from fusion.task_vectors.sparsify import Trim, trim_survey, trimmed
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion import laws
from tests.fusion.laws import TASKS, assert_same_bits

Q, V, CONV, BIAS, NORM = (
    "block.0.q.weight",
    "block.0.v.weight",
    "embed.conv.weight",
    "block.0.q.bias",
    "block.1.norm.weight",
)

SHAPES: dict[str, tuple[torch.dtype, tuple[int, ...], tuple[int, ...] | None]] = {
    CONV: (torch.float32, (4, 3, 2, 2), (1, 2, 0)),
    "embed.table.weight": (torch.float32, (6, 8), (2, 2, 2)),
    "ids": (torch.int64, (4,), ()),
    Q: (torch.float32, (12, 8), (2, 1, 3)),
    BIAS: (torch.float32, (12,), None),
    V: (torch.float16, (8, 9), (0, 2, 2)),
    "block.1.fc.weight": (torch.float32, (10, 6), ()),
    NORM: (torch.float32, (6,), ()),
    "block.1.out.weight": (torch.float64, (5, 6), (1, 1, 1)),
    "logit_scale": (torch.float32, (), ()),
}
"""name -> dtype of the base, shape, rank of each expert; (): zero, None: brought whole."""

STATIC = sorted(name for name, row in METHODS.items() if isinstance(row, Static))


def world() -> tuple[TaskVectors, TaskVectors]:
    """The same task vectors as factors, and multiplied out one by one."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    base: dict[str, Tensor] = {}
    held: dict[str, LowRank | Zeros | Tensor] = {}
    dense: dict[str, Tensor] = {}
    for name, (dtype, shape, ranks) in SHAPES.items():
        if not dtype.is_floating_point:
            base[name] = torch.ones(shape, dtype=dtype)
            continue
        kind = torch.promote_types(dtype, torch.float32)
        base[name] = normal(*shape, dtype=dtype)
        whole = torch.Size((len(TASKS), *shape))
        if ranks is None:
            held[name] = dense[name] = normal(*whole, dtype=kind)
        elif not ranks:
            held[name] = Zeros(whole, kind, base[name].device)
            dense[name] = torch.zeros(whole, dtype=kind)
        else:
            width = base[name][0].numel()
            pairs = [(normal(r, width, dtype=kind), normal(shape[0], r, dtype=kind)) for r in ranks]
            held[name] = LowRank.of(pairs, shape if len(shape) > 2 else ())
            dense[name] = torch.stack([product(*pair) for pair in pairs]).view(whole)
    return TaskVectors(TASKS, base, LowRankTaskVectors(held)), TaskVectors(TASKS, base, dense)


def held_of(vectors: TaskVectors) -> LowRankTaskVectors:
    assert isinstance(vectors.deltas, LowRankTaskVectors)
    return vectors.deltas


def test_reading_multiplies_out_to_the_bit() -> None:
    low, dense = world()
    assert low.groups == dense.groups
    assert_same_bits(dict(low.deltas.items()), dense.deltas)
    for name, delta in dense.deltas.items():
        outline = held_of(low).outlined(name)
        assert (outline.shape, outline.dtype, outline.device.type) == (
            delta.shape,
            delta.dtype,
            "meta",
        )
    part = held_of(low).parted(Q, [True, False, True])
    assert torch.equal(part[::2], dense.deltas[Q][::2])
    assert not part[1].any()
    assert low.deltas[Q] is not low.deltas[Q]


def test_held_are_factors_what_is_whole_and_nothing_else() -> None:
    low, dense = world()
    deltas = held_of(low)
    sizes = {
        CONV: 3 * (4 + 12), "embed.table.weight": 6 * (6 + 8), Q: 6 * (12 + 8), BIAS: 3 * 12,
        V: 4 * (8 + 9), "block.1.out.weight": 2 * 3 * (5 + 6),
    }  # fmt: skip
    assert deltas.nbytes == 4 * sum(sizes.values())
    found = deltas.factors(Q)
    assert found is for_backward(deltas, Q) is for_mixing(deltas, Q, [1.0, 0.0, 0.0])
    assert isinstance(found, LowRank)
    assert deltas.factors(BIAS) is None
    assert for_backward(deltas, BIAS) is deltas[BIAS]
    assert isinstance(for_backward(deltas, NORM), Zeros)
    part = low.restrict([V, NORM, "ids"])
    assert list(part.deltas) == [V, NORM]
    assert held_of(part).factors(V) is deltas.factors(V)
    assert part.groups == dense.groups


@pytest.mark.parametrize("name", STATIC)
def test_static_methods_have_the_bits_of_dense_ones(name: str) -> None:
    low, dense = world()
    before = {key: each.clone() for key, each in low.deltas.items()}
    method = METHODS[name]
    assert isinstance(method, Static)
    halves = [list(low.base)[:5], list(low.base)[5:]]
    for params in laws.examples(name, dense):
        inputs, rest = laws.split(params)
        wanted = method.merge(dense, inputs, **rest)
        assert_same_bits(method.merge(low, inputs, **rest), wanted)
        shards = [low.restrict(half) for half in halves]
        parts = laws.merge_shards(method, shards, inputs, **rest)
        assert_same_bits({key: part[key] for part in parts for key in part}, wanted)
    assert_same_bits(dict(low.deltas.items()), before)


def test_dare_drops_entries_of_adapters() -> None:
    """A tool that subtracts what requires gradients finds nothing in merged adapters."""
    low, _ = world()
    merged = METHODS["dare"].merge(low, density=0.5, seed=1)  # type: ignore[union-attr]
    assert not torch.equal(merged[Q], low.base[Q])
    assert torch.equal(merged["block.1.fc.weight"], low.base["block.1.fc.weight"])


@pytest.mark.parametrize("name", [n for n in laws.IN_MODEL if METHODS[n].blend is not None])  # type: ignore[union-attr]
def test_masks_have_the_bits_of_dense_ones(name: str) -> None:
    found = world()
    learned = {key: delta.mean(0) for key, delta in found[1].deltas.items()}
    method: Any = METHODS[name]
    low, dense = (method.merge(v, MergeInputs(learned=learned)) for v in found)
    assert_same_bits(low, dense)
    plan = method.plan(Shape(TASKS, found[0].groups))
    assert plan.steps


@pytest.mark.parametrize(
    "trim", [Trim(0.3, elect=True), Trim(0.4), Trim(0.5, dtype="float16")], ids=str
)
def test_trims_sparse_ones_and_inner_products_have_the_bits_of_dense_ones(trim: Trim) -> None:
    low, dense = world()
    cuts = [run_surveys([trim_survey(v, trim)]) if trim.elect else None for v in (low, dense)]
    mine, its = (trimmed(v, trim, cut) for v, cut in zip((low, dense), cuts, strict=True))
    assert_same_bits(dict(mine.deltas.items()), dict(its.deltas.items()))
    names = [Q, NORM]
    mine, its = (pruned(v, names, 0.5) for v in (low, dense))
    assert_same_bits(dict(mine.deltas.items()), dict(its.deltas.items()))
    assert torch.equal(gram(low).total, gram(dense).total)


@pytest.mark.parametrize("groups", [1, len(SHAPES) - 1])
def test_a_coding_mixes_to_rounding(groups: int) -> None:
    low, dense = world()
    draw = torch.Generator().manual_seed(1)
    coding = torch.randn(1, 3, groups, generator=draw)
    coding[0, 1] = 0.0
    mine, its = mix(low, coding), mix(dense, coding)
    for name in its:
        torch.testing.assert_close(mine[name], its[name], rtol=2e-6, atol=2e-6)
    assert torch.equal(mine[NORM], low.base[NORM])


def test_an_expert_alone_has_the_bits_of_dense_ones() -> None:
    low, dense = world()
    for task in TASKS:
        assert_same_bits(mix(low, one_hot(TASKS, task)), mix(dense, one_hot(TASKS, task)))


def double(vectors: TaskVectors, name: str) -> Any:
    """What is held of a tensor, in float64."""
    held: Any = for_backward(vectors.deltas, name)
    if isinstance(held, LowRank):
        return LowRank(held.down.double(), held.up.double(), held.ranks, held.dims)
    return replace(held, dtype=torch.float64) if isinstance(held, Zeros) else held.double()


@pytest.mark.parametrize("models", [1, 5])
@pytest.mark.parametrize("name", ["embed.table.weight", CONV, "block.1.fc.weight", NORM, BIAS])
def test_tables_convolutions_and_embeddings(name: str, models: int) -> None:
    low, _ = world()
    base, held = low.base[name].double(), double(low, name)
    dense = held if isinstance(held, Tensor) else held.dense()
    draw = torch.Generator().manual_seed(2)
    c = torch.randn(models, 3, generator=draw, dtype=torch.float64).requires_grad_()
    merged = base + torch.einsum("mt,t...->m...", c, dense)
    pairs = [(merged_table(c, base, held).expand(models, *base.shape), merged)]
    if base.ndim == 2:
        ids = torch.tensor([[0, 3, 3, 1]])
        found = merged_embedding(ids, c, base, held)
        pairs.append((found.expand(models, -1, -1), merged[:, ids[0]]))
    if base.ndim == 4:
        x = torch.randn(5, 3, 6, 6, generator=draw, dtype=torch.float64)
        each = [F.conv2d(x[m : m + 1], merged[m % models], stride=2) for m in range(5)]
        pairs.append((merged_conv2d(x, c, base, held, stride=(2, 2)), torch.cat(each)))
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        dy = torch.randn(wanted.shape, generator=draw, dtype=torch.float64)
        mine, its = (
            torch.autograd.grad(each, c, dy, retain_graph=True)[0] for each in (found, wanted)
        )
        torch.testing.assert_close(mine, its, rtol=1e-11, atol=1e-11)


def test_a_norm_of_which_only_the_bias_is_changed() -> None:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(4, 3, 6, generator=draw)
    weight, bias = torch.randn(1, 6, generator=draw), torch.randn(4, 6, generator=draw)
    each = [F.layer_norm(x[m], (6,), weight[0], bias[m], 1e-5) for m in range(4)]
    found = merged_norm(x, weight, bias, 1e-5)
    torch.testing.assert_close(found, torch.stack(each))
