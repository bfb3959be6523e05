"""The law suite: what every fusion method must keep, for methods of this package and of others.

One line tests the methods of a module:

    from fusion.testing import check_methods
    import my_module

    def test_laws() -> None:
        check_methods(my_module.METHODS)

A law takes a `merge` or `fuse` callable and the name of a row of `METHODS`. The callable may be the
row's own method, in this process, or a fleet that merges elsewhere: the laws are the same. A law
that is broken raises AssertionError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations, product
from typing import Any, cast

import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.kinds import Adaptive, LogitSpace, MergeInputs, Method, Routed, Static, StatisticsBased
from fusion.methods.learned.steps import Shape, micro_batches, temperature
from fusion.methods.routed.dawin import ExpertLogits
from fusion.registry import METHODS, add_methods
from fusion.task_vectors.elementwise import flat_rows
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
        if kind != "fisher" and len(shape) != 2 and not (kind == "norm_gram" and len(shape) == 1):
            continue
        rows = []
        for task in tasks:
            generator = torch.Generator().manual_seed(sum(map(ord, task + name)))
            if kind == "fisher" or len(shape) == 1:
                rows.append(torch.rand(shape, generator=generator))
                continue
            x = torch.randn(3 * shape[1], shape[1], generator=generator)
            rows.append(x.T @ x / len(x))
        found[name] = torch.stack(rows)
    return found


EXAMPLES: dict[str, Callable[[Sequence[str], Sequence[str]], list[dict[str, Any]]]] = {}
"""method -> (tasks, groups) -> parameters to try; a method that is absent is tried with its
defaults. A method whose parameters have no usable defaults needs an entry."""


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
        f"{name}: parameters {required} have no default: give examples (EXAMPLES in {__name__})"
    )
    return [statistics(name, vectors)]


def statistics(name: str, vectors: TaskVectors) -> dict[str, Any]:
    """The statistics that a method needs, where it needs some."""
    method = METHODS[name]
    if "statistics" not in method.reads:
        return {}
    kind = cast(StatisticsBased, method).statistics_request({}).kind
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


def tied(schema: str = "float32", tasks: Sequence[str] = TASKS) -> TaskVectors:
    """Task vectors of few values, as of 16-bit checkpoints: −2, −1, 0, 1 and 2.

    Every fourth entry of each expert is a quarter of its rounding unit instead, so that the order
    of the experts decides rounded sums. An expert's entries depend on its name only.
    """
    vectors = toy(schema, tasks)
    experts = {task: state_dict(schema, 1 + TASKS.index(task)) for task in tasks}
    deltas = {}
    for name, delta in vectors.deltas.items():
        rows = flat_rows(torch.stack([experts[task][name].to(delta) for task in tasks]))
        rows = rows.round().clamp_(-2, 2)
        for row, task in zip(rows, tasks, strict=True):
            row[TASKS.index(task) :: 4] *= torch.finfo(delta.dtype).eps / 4
        deltas[name] = rows.view_as(delta)
    return replace(vectors, deltas=deltas)


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


def refuses(message: str, call: Callable[[], object]) -> None:
    """A call raises an InputError with this text in it."""
    try:
        call()
    except InputError as error:
        said = str(error)
    else:
        said = "nothing was refused"
    assert message in said, said


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
    same_in_order(merge, name, toy(), toy(tasks=TASKS[::-1]))


def equal_values_have_no_order(merge: Merge, name: str) -> None:
    """Nor does it decide where entries are equal, or where a sum of entries is zero."""
    for schema in SCHEMAS:
        for tasks in permutations(TASKS):
            same_in_order(merge, name, tied(schema), tied(schema, tasks))


def same_in_order(merge: Merge, name: str, first: TaskVectors, second: TaskVectors) -> None:
    """Merges of the same experts in two orders differ by rounding at most."""
    pairs = zip(examples(name, first), examples(name, second), strict=True)
    for params, others in pairs:
        wanted, found = merge(name, first, params), merge(name, second, others)
        for key, tensor in wanted.items():
            if tensor.is_floating_point():
                rough = max(1e-5, torch.finfo(tensor.dtype).eps)
                torch.testing.assert_close(found[key], tensor, rtol=rough, atol=1e-6)


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
    method = cast(Static, METHODS[name])
    for schema, make in product(SCHEMAS, (toy, tied)):
        vectors = make(schema)
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
    refuses(hint, lambda: merge(name, toy(), {wrong: 1.0}))


LAWS: list[Callable[[Merge, str], None]] = [
    inputs_untouched,
    names_shapes_dtypes_kept,
    zero_task_vectors_give_the_base,
    task_order_is_irrelevant,
    equal_values_have_no_order,
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


def fuse(name: str, embeddings: Tensor, head: Tensor, params: Mapping[str, Any]) -> Tensor:
    """A fusion of logits by a row of the table, in this process."""
    return cast(LogitSpace, METHODS[name]).fuse(embeddings, head, **params)


SHAPE = Shape(("a", "b", "c"), ("x", "y"), width=6)
"""A toy pool of methods that learn."""


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, drawn in their own dtype."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def toy_features(name: str) -> Tensor | None:
    """Features [4, D] of a method whose router reads some."""
    return drawn(4, SHAPE.width) if METHODS[name].learned == "gate" else None


def every_parameter_of_the_router_learns(name: str) -> None:
    """Each parameter of a router has a gradient after two steps."""
    row = cast(Adaptive, METHODS[name])
    finest = {"granularity": "tensor"} if row.labelled else {"grouping": "layer"}
    learning = row.plan(SHAPE, **{k: v for k, v in finest.items() if k in row.parameters})
    optimizer = torch.optim.SGD(learning.router.parameters(), lr=0.1)
    features = toy_features(name)
    for step in range(2):  # a gate's first layer moves once its last one has
        optimizer.zero_grad()
        loss = (learning.router(features) * drawn(3, 2, seed=step)).sum()
        beta = temperature(learning.router)
        (loss if beta is None else loss + beta).backward()
        optimizer.step()
    assert all(p.grad is not None and bool(p.grad.any()) for p in learning.router.parameters())


def same_parameters_give_the_same_router_and_rows(name: str) -> None:
    """Two plans of the same parameters have the same router, and draw the same rows."""
    row = cast(Adaptive, METHODS[name])
    first, second = (row.plan(SHAPE) for _ in range(2))
    assert_same_bits(first.router.state_dict(), second.router.state_dict())
    features = {task: drawn(9, SHAPE.width) for task in SHAPE.tasks}
    sizes = dict.fromkeys(SHAPE.tasks, 9)
    pairs = zip(
        micro_batches(first, sizes, features, 3, 7),
        micro_batches(second, sizes, features, 3, 7),
        strict=True,
    )
    for ours, theirs in pairs:
        assert all(torch.equal(ours.rows[task], theirs.rows[task]) for task in ours.rows)


LEARNING_LAWS: list[Callable[[str], None]] = [
    every_parameter_of_the_router_learns,
    same_parameters_give_the_same_router_and_rows,
]
"""For methods that learn a coding or a gate."""


def a_routing_gives_every_row_a_model(name: str) -> None:
    """A routing has finite codings [N, T, 1], one for each row, and writes to nothing."""
    expert_logits = ExpertLogits(SHAPE.tasks, drawn(3, 8, 5), drawn(8, 5, seed=1))
    before = expert_logits.experts.clone()
    row = cast(Routed, METHODS[name])
    granularity = row.parameters.get("granularity")
    kinds = ["domain", "cluster", "sample"] if granularity else [None]
    for kind in kinds:
        routing = row.route(expert_logits, **({} if kind is None else {"granularity": kind}))
        assert routing.codings.shape[1:] == (3, 1)
        assert routing.assign.shape == (8,)
        assert int(routing.assign.max()) < len(routing.codings)
        assert bool(routing.codings.isfinite().all())
    assert torch.equal(expert_logits.experts, before)


ROUTED_LAWS: list[Callable[[str], None]] = [a_routing_gives_every_row_a_model]
"""For methods that compute codings from the experts' logits."""


def a_row_says_where_it_comes_from(name: str) -> None:
    """A row names its paper, the origin of its defaults and what it needs; the function's
    docstring has a line `Source:`."""
    row = METHODS[name]
    for field in ("paper", "defaults", "needs"):
        assert getattr(row, field), f"{name}: {field}: empty"
    assert "Source:" in row.doc, f"{name}: no line `Source:` in its docstring"


def check_methods(
    methods: Mapping[str, Method],
    examples: Mapping[str, list[dict[str, Any]]] | None = None,
) -> None:
    """Run every law of its kind on each method of a module outside this package.

    Args:
        methods: the module's `METHODS`; they are added to the table, if they are not there.
        examples: method -> hyper-parameters to try; default: once, with defaults.

    Raises:
        AssertionError: a broken law, with method and law.
        InputError: a row or a name that `fusion.registry.add_methods` refuses.
    """
    add_methods(methods, "the tested module")
    for name, tried in (examples or {}).items():
        EXAMPLES[name] = lambda tasks, groups, tried=tried: tried  # type: ignore[misc]
    for name, row in methods.items():
        for law in laws_of(row):
            try:
                law(name)
            except AssertionError as error:
                raise AssertionError(f"{name}: {law.__name__}: {error}") from error


def laws_of(row: Method) -> list[Callable[[str], None]]:
    """The laws of a row's kind; each takes the method's name."""
    found: list[Callable[[str], None]] = [a_row_says_where_it_comes_from]
    for kind, laws, how in (
        (Static, LAWS, merge),
        (LogitSpace, LOGIT_LAWS, fuse),
        (Adaptive, LEARNING_LAWS, None),
        (Routed, ROUTED_LAWS, None),
    ):
        if isinstance(row, kind):
            found += [bound(law, how) for law in laws]
    return found


def bound(law: Callable[..., None], how: Callable[..., Any] | None) -> Callable[[str], None]:
    """A law of a method's name, under the law's name; `how`: its callable, if it takes one."""
    found: Any = law if how is None else partial(law, how)
    found.__name__ = law.__name__
    return cast(Callable[[str], None], found)
