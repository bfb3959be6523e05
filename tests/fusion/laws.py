"""Laws that every method keeps, written against a `merge` or `fuse` callable.

A law takes the callable and the name of a row of `METHODS`. The callable may be the row's own
method, in this process, or a fleet that merges elsewhere: the laws are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.kinds import MergeInputs
from fusion.registry import (
    METHODS,
    Adaptive,
    Fitted,
    Informed,
    LogitSpace,
    Resident,
    Routed,
    Selected,
    Static,
)
from fusion.task_vectors.sharded_reduce import run_surveys
from fusion.task_vectors.task_vectors import StateDict, TaskVectors

Merge = Callable[[str, TaskVectors, dict[str, Any]], StateDict]
Fuse = Callable[[str, Tensor, Tensor, dict[str, Any]], Tensor]

TASKS = ("mnist", "svhn", "dtd")

SCHEMAS: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {
    "float32": {
        "embed.weight": (torch.float32, (7, 5)),
        "block.0.weight": (torch.float32, (3, 4, 2)),
        "block.0.bias": (torch.float32, (3,)),
        "block.1.weight": (torch.float32, (16, 9)),
        "logit_scale": (torch.float32, ()),
    },
    "mixed": {
        "embed.weight": (torch.float16, (7, 5)),
        "ids": (torch.int64, (4,)),
        "block.0.weight": (torch.bfloat16, (3, 4, 2)),
        "block.0.bias": (torch.float32, (3,)),
        "block.1.weight": (torch.float64, (16, 9)),
        "mask": (torch.bool, (2, 2)),
        "empty": (torch.float32, (0, 3)),
        "logit_scale": (torch.float32, ()),
    },
}
"""Toy models: one as most are, one with every dtype and shape that is allowed."""


def toy_statistics(
    vectors: Mapping[str, Tensor], tasks: Sequence[str], kind: str
) -> dict[str, Tensor]:
    """Statistics of toy task vectors; an expert's depend on its name only."""
    found = {}
    for name, deltas in vectors.items():
        shape = deltas.shape[1:]
        if kind != "fisher" and len(shape) != 2:
            continue
        rows = []
        for task in tasks:
            generator = torch.Generator().manual_seed(sum(map(ord, task + name)))
            if kind == "fisher":
                rows.append(torch.rand(shape, generator=generator))
                continue
            x = torch.randn(3 * shape[1], shape[1], generator=generator)
            rows.append(x.T @ x / len(x))
        found[name] = torch.stack(rows)
    return found


def by_name(task: str, tensor: str) -> float:
    """Some weight that depends on the two names only, whatever their order."""
    return 0.5 + sum(map(ord, task + tensor)) % 11 / 10


EXAMPLES: Mapping[str, Callable[[Sequence[str], Sequence[str]], list[dict[str, Any]]]] = {
    "fisher": lambda tasks, groups: [{}, {"normalize": False, "floor": 0.0}],
    "regmean": lambda tasks, groups: [{}, {"non_diagonal": 0.5, "ridge": 0.1}],
    "weighted_average": lambda tasks, groups: [
        {},
        {"weights": {task: by_name(task, "") for task in tasks}},
        {"weights": {task: {"block.*": by_name(task, "b"), "*": 1.0} for task in tasks}},
        {"weights": [[by_name(task, name) for name in groups] for task in tasks]},
    ],
    "task_arithmetic": lambda tasks, groups: [{}, {"scale": -0.5}],
    "ties": lambda tasks, groups: [
        {},
        {"density": 0.6, "granularity": "tensor", "merge": "sum"},
        {"density": 0.5, "scale": 0.3, "merge": "sum", "compat": "fusionbench"},
        {"density": 1.0, "merge": "max"},
    ],
    "magmax": lambda tasks, groups: [{}, {"scale": -0.5}],
    "breadcrumbs": lambda tasks, groups: [
        {},
        {"density": 0.5, "gamma": 0.1, "scale": 1.0},
        {"density": 0.5, "gamma": 0.2, "granularity": "row"},
        {"density": 0.0},
        {"density": 1.0, "gamma": 0.0},
    ],
    "slerp": lambda tasks, groups: [
        {"experts": sorted(tasks)[:2], "t": 0.3},
        {"experts": sorted(tasks)[-1:], "t": 0.7, "compat": "fusionbench"},
    ],
    "dare": lambda tasks, groups: [
        {},
        {"density": 0.3, "merge": "average", "seed": 3},
        {"density": 0.7, "merge": "ties", "trim_density": 0.5},
        {"density": 0.0},
        {"density": 1.0},
        {"only_matrices": True, "rescale": False},
    ],
    "tsv_m": lambda tasks, groups: [{}, {"scale": 0.5}, {"compat": "fusionbench"}],
    "iso_c": lambda tasks, groups: [{}, {"scale": 1.5}],
    "iso_cts": lambda tasks, groups: [{}, {"common_fraction": 0.5}],
    "wudi": lambda tasks, groups: [{"steps": 20}, {"steps": 3, "learning_rate": 1e-3}],
    "consensus": lambda tasks, groups: [{}, {"threshold": 0.0, "least": 1, "scale": 1.0}],
    "emr": lambda tasks, groups: [
        {"task": sorted(tasks)[0]},
        {"task": sorted(tasks)[-1], "compat": "fusionbench"},
    ],
    "tall_mask": lambda tasks, groups: [{"task": sorted(tasks)[-1], "threshold": 0.6}],
    "wise_ft": lambda tasks, groups: [{"expert": sorted(tasks)[-1], "alpha": 0.3}],
}
"""method -> (tasks, groups) -> parameters to try; a method that is absent is tried with its
defaults. A row whose parameters have no usable defaults needs an entry."""


def examples(name: str, vectors: TaskVectors) -> list[dict[str, Any]]:
    """The parameters to try a method with.

    A row without an entry, whose signature has a required parameter, fails here.
    """
    if name in EXAMPLES:
        return [
            {**params, **statistics(name, vectors)}
            for params in EXAMPLES[name](vectors.tasks, vectors.groups)
        ]
    required = [key for key, value in METHODS[name].parameters.items() if value.required]
    assert not required, (
        f"{name}: parameters {required} have no default: add it to EXAMPLES in {__name__}"
    )
    return [statistics(name, vectors)]


def statistics(name: str, vectors: TaskVectors) -> dict[str, Any]:
    """The statistics that a method needs, where it needs some."""
    method = METHODS[name]
    if not isinstance(method, Informed):
        return {}
    kind = method.statistics_request({}).kind
    return {"statistics": toy_statistics(vectors.deltas, vectors.tasks, kind)}


def split(params: Mapping[str, Any]) -> tuple[MergeInputs, dict[str, Any]]:
    """Examples hold everything a merge is given by name: its inputs, and its hyper-parameters."""
    given = {key: params[key] for key in ("statistics", "task", "learned") if key in params}
    return MergeInputs(**given), {k: v for k, v in params.items() if k not in given}


def merge(name: str, vectors: TaskVectors, params: Mapping[str, Any]) -> dict[str, Tensor]:
    """A merge by a row of the table, in this process."""
    inputs, rest = split(params)
    return METHODS[name].merge(vectors, inputs, **rest)


def state_dict(schema: str, seed: int) -> dict[str, Tensor]:
    """Random tensors of a toy model; integer and bool buffers are the same for every seed."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator).to(dtype)
        if dtype.is_floating_point
        else torch.ones(shape, dtype=dtype)
        for name, (dtype, shape) in SCHEMAS[schema].items()
    }


def toy(schema: str = "float32", tasks: Sequence[str] = TASKS) -> TaskVectors:
    """Base and experts of a toy model; an expert's weights depend on its name only."""
    experts = {task: state_dict(schema, 1 + TASKS.index(task)) for task in tasks}
    return TaskVectors.from_state_dicts(state_dict(schema, 0), experts)


def bits(tensor: Tensor) -> Tensor:
    """The tensor's memory, byte by byte."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def assert_same_bits(got: StateDict, wanted: StateDict) -> None:
    """Same names in the same order, shapes, dtypes and bits."""
    assert list(got) == list(wanted)
    for name in wanted:
        assert got[name].dtype == wanted[name].dtype, name
        assert got[name].shape == wanted[name].shape, name
        assert torch.equal(bits(got[name]), bits(wanted[name])), name


def copied(tensors: StateDict) -> dict[str, Tensor]:
    """A deep copy."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def inputs_untouched(merge: Merge, name: str) -> None:
    """A merge writes to nothing it was given, and hands out memory of its own."""
    for schema in SCHEMAS:
        vectors = toy(schema)
        base, deltas = copied(vectors.base), copied(vectors.deltas)
        for params in examples(name, vectors):
            for tensor in merge(name, vectors, params).values():
                tensor.zero_()
            assert_same_bits(vectors.base, base)
            assert_same_bits(vectors.deltas, deltas)


def names_shapes_dtypes_kept(merge: Merge, name: str) -> None:
    """A merge has the base's names, shapes and dtypes, and its integer and bool buffers."""
    for schema in SCHEMAS:
        vectors = toy(schema)
        for params in examples(name, vectors):
            merged = merge(name, vectors, params)
            assert list(merged) == list(vectors.base)
            for key, tensor in vectors.base.items():
                assert merged[key].shape == tensor.shape, key
                assert merged[key].dtype == tensor.dtype, key
                assert bool(merged[key].isfinite().all()), key
                if not tensor.is_floating_point():
                    assert torch.equal(merged[key], tensor), key


def zero_task_vectors_give_the_base(merge: Merge, name: str) -> None:
    """Experts equal to the base merge to the base, to the bit."""
    for schema in SCHEMAS:
        base = state_dict(schema, 0)
        vectors = TaskVectors.from_state_dicts(base, {task: copied(base) for task in TASKS})
        for params in examples(name, vectors):
            assert_same_bits(merge(name, vectors, params), base)


def task_order_is_irrelevant(merge: Merge, name: str) -> None:
    """The order of the experts changes rounding only."""
    forward, backward = toy(), toy(tasks=TASKS[::-1])
    pairs = zip(examples(name, forward), examples(name, backward), strict=True)
    for params, reversed_params in pairs:
        first = merge(name, forward, params)
        second = merge(name, backward, reversed_params)
        for key in first:
            torch.testing.assert_close(first[key], second[key], rtol=1e-5, atol=1e-6)


def merge_shards(
    method: Static, shards: Sequence[TaskVectors], inputs: MergeInputs, **params: Any
) -> list[dict[str, Tensor]]:
    """The merged state dict of each shard of one model: one survey of all, then shard by shard."""
    if method.surveyed:
        surveys = [method.start_survey(shard, inputs, **params) for shard in shards]
        inputs = replace(inputs, survey=run_surveys(surveys))
    return [method.merge(shard, inputs, **params) for shard in shards]


def shards_equal_the_whole(merge: Merge, name: str) -> None:
    """Merging shard by shard gives the bits of the whole, however the tensors are dealt."""
    method = METHODS[name]
    assert isinstance(method, Static)
    for schema in SCHEMAS:
        vectors = toy(schema)
        names = list(vectors.base)
        for deal in ([names[:3], names[3:]], [names[::2], names[1::2]], [[n] for n in names]):
            shards = [vectors.restrict(part) for part in deal]
            for params in examples(name, vectors):
                inputs, rest = split(params)
                parts = merge_shards(method, shards, inputs, **rest)
                found = {key: part[key] for part in parts for key in part}
                whole = merge(name, vectors, params)
                assert_same_bits({key: found[key] for key in names}, whole)


def arena_equals_fresh(merge: Merge, name: str) -> None:
    """Merging into lent tensors gives the bits of a fresh merge, whatever was in them."""
    for schema in SCHEMAS:
        vectors = toy(schema)
        arena = {key: torch.ones_like(tensor) for key, tensor in vectors.base.items()}
        for params in examples(name, vectors):
            fresh = merge(name, vectors, params)
            assert_same_bits(merge(name, vectors.into(arena), params), fresh)


def one_task_is_enough(merge: Merge, name: str) -> None:
    """A single expert can be merged."""
    for schema in SCHEMAS:
        vectors = toy(schema, TASKS[:1])
        for params in examples(name, vectors):
            merged = merge(name, vectors, params)
            assert list(merged) == list(vectors.base)


def repeated_merges_are_equal(merge: Merge, name: str) -> None:
    """Same vectors, same parameters, same bits."""
    for params in examples(name, toy()):
        assert_same_bits(merge(name, toy(), params), merge(name, toy(), params))


def unknown_parameter_names_the_nearest(merge: Merge, name: str) -> None:
    """A misspelt parameter is refused before anything runs, with the nearest valid name."""
    valid = list(METHODS[name].parameters)
    wrong = (valid[0][:-1] or f"{valid[0]}s") if valid else "scal"
    hint = f"did you mean {valid[0]!r}" if valid else "valid: none"
    with pytest.raises(InputError, match=re.escape(hint)):
        merge(name, toy(), {wrong: 1.0})


LAWS: list[Callable[[Merge, str], None]] = [
    inputs_untouched,
    names_shapes_dtypes_kept,
    zero_task_vectors_give_the_base,
    task_order_is_irrelevant,
    shards_equal_the_whole,
    arena_equals_fresh,
    one_task_is_enough,
    repeated_merges_are_equal,
    unknown_parameter_names_the_nearest,
]
"""For static methods."""


def toy_embeddings(experts: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Embeddings [T, 5, 8] and a head [4, 8]."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(experts, 5, 8, generator=generator, dtype=dtype)
    return embeddings, torch.randn(4, 8, generator=generator, dtype=dtype)


def fuse_keeps_inputs(fuse: Fuse, name: str) -> None:
    """Fusing writes to nothing it was given."""
    embeddings, head = toy_embeddings()
    before = embeddings.clone(), head.clone()
    fuse(name, embeddings, head, {}).zero_()
    assert torch.equal(embeddings, before[0])
    assert torch.equal(head, before[1])


def fuse_gives_logits(fuse: Fuse, name: str) -> None:
    """[T, B, D] and [C, D] give finite logits [B, C], in float32 at least."""
    for dtype in (torch.float16, torch.float32, torch.float64):
        fused = fuse(name, *toy_embeddings(dtype=dtype), {})
        assert fused.shape == (5, 4)
        assert fused.dtype == torch.promote_types(dtype, torch.float32)
        assert bool(fused.isfinite().all())


def expert_order_is_irrelevant(fuse: Fuse, name: str) -> None:
    """With default weights, the order of the experts changes rounding only."""
    embeddings, head = toy_embeddings()
    torch.testing.assert_close(
        fuse(name, embeddings.flip(0), head, {}), fuse(name, embeddings, head, {})
    )


def copies_of_an_expert_choose_as_it_does(fuse: Fuse, name: str) -> None:
    """T copies of one expert choose the classes that it chooses alone."""
    embeddings, head = toy_embeddings(1)
    alone = (embeddings[0] @ head.T).argmax(-1)
    for copies in (1, 4):
        fused = fuse(name, embeddings.repeat(copies, 1, 1), head, {})
        assert torch.equal(fused.argmax(-1), alone)


LOGIT_LAWS: list[Callable[[Fuse, str], None]] = [
    fuse_keeps_inputs,
    fuse_gives_logits,
    expert_order_is_irrelevant,
    copies_of_an_expert_choose_as_it_does,
]
"""For logit-space methods."""

STATIC = sorted(name for name, method in METHODS.items() if isinstance(method, Static))
LOGIT = sorted(name for name, method in METHODS.items() if isinstance(method, LogitSpace))
LEARNING = sorted(name for name, method in METHODS.items() if isinstance(method, Adaptive))
FITTED = sorted(name for name, method in METHODS.items() if isinstance(method, Fitted))
RESIDENT = sorted(name for name, method in METHODS.items() if isinstance(method, Resident))
SELECTED = sorted(name for name, method in METHODS.items() if isinstance(method, Selected))
ROUTED = sorted(name for name, method in METHODS.items() if isinstance(method, Routed))
