"""Inputs at the edge, over the whole table: one task, a zero task vector, tensors that no expert
moved, half precision, little data, the ends of densities. Each has a defined result."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion.errors import InputError
from fusion.kinds import StatisticsBased
from fusion.logits.head import CosineHead
from fusion.methods.classifiers.interface import TaskEmbeddings
from fusion.methods.learned.steps import Shape
from fusion.methods.routed.dawin import ExpertLogits
from fusion.methods.statistics.regmean import regmean
from fusion.registry import METHODS, Gated
from fusion.task_vectors.sharded_reduce import run_surveys
from fusion.task_vectors.sparse import pruned
from fusion.task_vectors.sparsify import Trim, trim_survey, trimmed
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion import laws
from tests.fusion.laws import (
    FITTED,
    IN_MODEL,
    LEARNING,
    LOGIT,
    ROUTED,
    STATIC,
    TASKS,
    assert_same_bits,
    examples,
    state_dict,
    toy,
)
from tests.fusion.logit_world import World

BLENDED = [name for name in IN_MODEL if METHODS[name].blend is not None]


def experts_of(vectors: TaskVectors) -> dict[str, dict[str, torch.Tensor]]:
    """The state dict of each expert."""
    return {
        task: {
            name: base + vectors.deltas[name][t] if name in vectors.deltas else base
            for name, base in vectors.base.items()
        }
        for t, task in enumerate(vectors.tasks)
    }


def logits_of(vectors: TaskVectors) -> dict[str, torch.Tensor]:
    """A mask's logits, that differ from entry to entry."""
    draw = torch.Generator().manual_seed(0)
    return {n: torch.randn(d.shape[1:], generator=draw) for n, d in vectors.deltas.items()}


def merged(name: str, vectors: TaskVectors, params: dict[str, Any]) -> Any:
    """Of a row that merges weights, with or without something learned."""
    return laws.merge(name, vectors, {**params, **({"learned": LOGITS} if name in BLENDED else {})})


LOGITS = logits_of(toy())


def tried(name: str, vectors: TaskVectors) -> list[dict[str, Any]]:
    return [{}, {"mask": "discrete"}] if name in BLENDED else examples(name, vectors)


@pytest.mark.parametrize("name", [*STATIC, *BLENDED])
def test_what_no_expert_moved_stays_the_base_s_to_the_bit(name: str) -> None:
    """Frozen while experts were fine-tuned: a matrix, a vector and a tensor of three axes."""
    base, frozen = state_dict("float32", 0), ("embed.weight", "block.0.bias", "block.0.weight")
    experts = {t: state_dict("float32", 1 + i) for i, t in enumerate(TASKS)}
    for expert in experts.values():
        expert |= {key: base[key].clone().requires_grad_(False) for key in frozen}
        expert["block.1.weight"].requires_grad_(True)  # parameters, as a live model has them
    vectors = TaskVectors.from_state_dicts(base, experts)
    for params in tried(name, vectors):
        found = merged(name, vectors, params)
        for key in frozen:
            assert torch.equal(found[key], base[key]), key
        assert not any(tensor.requires_grad for tensor in found.values())
        if params.get("density") != 0.0:
            assert not torch.equal(found["block.1.weight"], base["block.1.weight"])


KINDS = {1: torch.bfloat16, 2: torch.float16, 3: torch.bfloat16, 0: torch.float16}
"""Axes of a tensor -> what it is in; a tensor is never in both."""


@pytest.mark.parametrize("name", [*STATIC, *BLENDED])
def test_half_precision_is_the_merge_in_float32_rounded_once(name: str) -> None:
    models = {k: state_dict("float32", i) for i, k in enumerate(("base", *TASKS))}
    half = {k: {n: t.to(KINDS[t.ndim]) for n, t in m.items()} for k, m in models.items()}
    wide = {k: {n: t.float() for n, t in m.items()} for k, m in half.items()}
    (narrow, exact) = (
        TaskVectors.from_state_dicts(m["base"], {t: m[t] for t in TASKS}) for m in (half, wide)
    )
    for params in tried(name, exact):
        found, wanted = merged(name, narrow, params), merged(name, exact, params)
        assert_same_bits(found, {key: t.to(KINDS[t.ndim]) for key, t in wanted.items()})


ALL: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"scale": 1.0},
    "ties": {"density": 1.0},
    "dare": {"density": 1.0, "scale": 1.0},
    "breadcrumbs": {"density": 1.0, "gamma": 0.0, "scale": 1.0},
    "breadcrumbs_ties": {"density": 1.0, "gamma": 0.0},
    "della": {"density": 1.0, "scale": 1.0},
    "della_linear": {"density": 1.0, "scale": 1.0},
    "magmax": {"scale": 1.0},
    "slerp": {"t": 1.0},
    "nuslerp": {"t": 1.0},
    "nearswap": {"t": 100.0},
    "consensus": {"least": 1, "scale": 1.0},
    "trust_region": {"scale": 1.0},
    "knots": {"of": {"ties": {"density": 1.0}}},
    "svc": {"of": {"task_arithmetic": {"scale": 1.0}}},
    "emr": {"task": "mnist"},
    "tall_mask": {"task": "mnist"},
    "wise_ft": {"alpha": 1.0},
    "concrete_task_arithmetic": {"mask": "expected", "initial_logits": 0.0, "scale": 1.0},
    "concrete_adamerging": {"mask": "expected", "scale": 1.0},
}
"""With these a method keeps all of its task vectors, or all of one."""

ISOTROPIC = ("iso_c", "iso_cts")

NORMALISED = ("doge_ta",)
"""Methods that divide task vectors by their norms."""

SELECTIVE = ("arcee_fusion",)
"""Methods that never keep all entries."""


@pytest.mark.parametrize(
    "name", [n for n in [*STATIC, *BLENDED] if n not in (*ISOTROPIC, *NORMALISED, *SELECTIVE)]
)
def test_one_task_of_which_all_is_kept_is_the_expert(name: str, monkeypatch: Any) -> None:
    vectors = toy(tasks=TASKS[:1])
    monkeypatch.setitem(globals(), "LOGITS", {n: torch.zeros_like(t) for n, t in LOGITS.items()})
    found = merged(name, vectors, {**ALL.get(name, {}), **laws.statistics(name, vectors)})
    for key, tensor in experts_of(vectors)[TASKS[0]].items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ISOTROPIC)
def test_one_task_made_isotropic_has_equal_singular_values(name: str) -> None:
    vectors = toy(tasks=TASKS[:1])
    moved = METHODS[name].merge(vectors)["block.1.weight"] - vectors.base["block.1.weight"]
    values = torch.linalg.svdvals(vectors.deltas["block.1.weight"][0].double())
    wanted = values.mean().expand(len(values))
    torch.testing.assert_close(torch.linalg.svdvals(moved.double()), wanted, rtol=1e-5, atol=1e-5)


SUMS = ("task_arithmetic", "ties", "dare", "breadcrumbs", "magmax", "consensus", "tall_mask", "emr")
"""Methods to which an expert that is the base adds nothing."""


def params_without(task: str, params: dict[str, Any]) -> dict[str, Any]:
    """The same parameters for one task less, which has no scale any more.

    LiNeS' default α is one over the number of tasks, so it is given.
    """
    scale = params.get("scale")
    if isinstance(scale, dict) and "preset" in scale:
        return {**params, "scale": {"alpha": 1 / 3, **scale}}
    if isinstance(scale, dict) and task in scale:
        return {**params, "scale": {key: each for key, each in scale.items() if key != task}}
    return params


@pytest.mark.parametrize("name", STATIC)
def test_an_expert_that_is_the_base(name: str) -> None:
    base = state_dict("mixed", 0)
    others = {task: state_dict("mixed", 1 + i) for i, task in enumerate(TASKS[:2])}
    with_it = TaskVectors.from_state_dicts(base, {**others, TASKS[2]: base})
    without = TaskVectors.from_state_dicts(base, others)
    for params in examples(name, with_it):
        if "experts" in params or params.get("weights"):
            continue  # of named experts
        found = laws.merge(name, with_it, params)
        assert all(bool(tensor.isfinite().all()) for tensor in found.values())
        if params.get("task") == TASKS[2]:
            if name == "emr":
                assert_same_bits(found, base)
            continue
        if name in SUMS and params.get("merge") != "average":
            wanted = laws.merge(name, without, params_without(TASKS[2], params))
            for key, tensor in wanted.items():
                torch.testing.assert_close(found[key], tensor, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ["regmean", "regmean_plusplus", "lot"])
def test_statistics_of_a_model_with_other_names_are_refused(name: str) -> None:
    grams = laws.statistics(name, toy())["statistics"]
    said = rf"^{name}: statistics: tensor 'layer.7': not in this model: they are of other weights$"
    with pytest.raises(InputError, match=said):
        laws.merge(name, toy(), {"statistics": {**grams, "layer.7": torch.ones(3, 2, 2)}})


@pytest.mark.parametrize("name", [n for n in STATIC if isinstance(METHODS[n], StatisticsBased)])
def test_statistics_may_come_in_half_precision(name: str) -> None:
    vectors = toy()
    found = laws.statistics(name, vectors)["statistics"]
    half = {key: tensor.to(torch.bfloat16) for key, tensor in found.items()}
    single = {key: tensor.float() for key, tensor in half.items()}
    wanted = laws.merge(name, vectors, {"statistics": single})
    for key, tensor in laws.merge(name, vectors, {"statistics": half}).items():
        torch.testing.assert_close(tensor, wanted[key], rtol=1e-4, atol=1e-4)


def test_one_example_an_expert_is_reproduced_and_all_else_averaged() -> None:
    """Gram matrices of rank one: the ridge decides what no image says."""
    draw = torch.Generator().manual_seed(4)
    inputs, weights = (torch.randn(2, *shape, generator=draw) for shape in ((1, 6), (3, 6)))
    vectors = TaskVectors.from_state_dicts(
        {"w": torch.zeros(3, 6)}, {"a": {"w": weights[0]}, "b": {"w": weights[1]}}
    )
    grams = inputs.transpose(1, 2) @ inputs
    found = regmean(vectors, statistics={"w": grams}, non_diagonal=1.0, ridge=1e-4)["w"]
    for x, w in zip(inputs, weights, strict=True):
        torch.testing.assert_close(x @ found.T, x @ w.T, rtol=1e-2, atol=1e-2)
    unseen = torch.linalg.svd(inputs[:, 0]).Vh[2:]  # orthogonal to both images
    shares = grams.diagonal(dim1=1, dim2=2).mean(1)
    mean = (shares[:, None, None] * weights).sum(0) / shares.sum()
    torch.testing.assert_close(unseen @ found.T, unseen @ mean.T, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("name", ["fisher", "regmean", "regmean_plusplus", "lot"])
def test_no_examples_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}: examples: 0; int >= 1 allowed"):
        METHODS[name].statistics_request({"examples": 0})


def test_ends_of_a_trim_before_learning() -> None:
    """1 keeps all that agrees; the smallest fraction keeps nothing, or one entry of a row."""
    vectors = toy(tasks=TASKS[:1])
    for trim in (Trim(1.0), Trim(1.0, elect=True)):
        cut = run_surveys([trim_survey(vectors, trim)])
        assert_same_bits(trimmed(vectors, trim, cut).deltas, vectors.deltas)
    least = Trim(1e-9, elect=True)
    assert not any(
        d.any()
        for d in trimmed(vectors, least, run_surveys([trim_survey(vectors, least)])).deltas.values()
    )
    rows = trimmed(vectors, Trim(1e-9), None).deltas["block.1.weight"]
    assert (rows != 0).sum(-1).unique().tolist() == [1]


def test_ends_of_ewemoe_s_pruning() -> None:
    vectors = toy()
    nothing = pruned(vectors, ["block.1.weight"], 1.0).deltas["block.1.weight"]
    kept = pruned(vectors, ["block.1.weight"], 0.0).deltas["block.1.weight"]
    assert not nothing.any()
    smallest = vectors.deltas["block.1.weight"].abs().flatten(1).argmin(1)
    assert (kept == 0).flatten(1).int().argmax(1).tolist() == smallest.tolist()
    assert int((kept == 0).sum()) == 3


ONE = Shape(("a",), ("x", "y"), width=6)


@pytest.mark.parametrize("name", LEARNING)
def test_one_task_can_be_learned_of(name: str) -> None:
    method = METHODS[name]
    features = torch.randn(4, ONE.width) if isinstance(method, Gated) else None
    for density in (1.0, 0.1) if "density" in method.parameters else (None,):
        params = {} if density is None else {"density": density}
        coding = method.plan(ONE, **params).router(features)
        assert coding.shape[1] == 1
        assert bool(coding.isfinite().all())
    if "density" in method.parameters:
        with pytest.raises(InputError, match=rf"^{name}: density: 0; float in \(0, 1\] allowed"):
            method.plan(ONE, density=0)


@pytest.mark.parametrize("name", IN_MODEL)
def test_one_task_has_a_course(name: str) -> None:
    assert METHODS[name].plan(ONE).steps > 0


@pytest.mark.parametrize("granularity", ["domain", "cluster", "sample"])
@pytest.mark.parametrize("name", ROUTED)
def test_one_expert_is_routed_against_the_base(name: str, granularity: str) -> None:
    draw = torch.Generator().manual_seed(1)
    experts, base = torch.randn(1, 8, 5, generator=draw), torch.randn(8, 5, generator=draw)
    expert_logits = ExpertLogits(("a",), experts, base)
    found = METHODS[name].route(expert_logits, granularity=granularity).codings
    assert found.shape[1:] == (1, 1)
    assert bool(((found > 0) & (found < 1)).all())
    half = METHODS[name].route(
        ExpertLogits(("a",), experts.half(), base.half()), granularity=granularity
    )
    torch.testing.assert_close(half.codings, found, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", [*FITTED, *LOGIT])
def test_one_expert_and_half_precision_in_the_logit_plane(name: str) -> None:
    world, row = World(), METHODS[name]
    alone, head = world.z["a", "report"].half(), world.head.half()
    if name in LOGIT:
        z = row.fuse(alone[None], head)
    else:
        whole = world.data
        of = CosineHead(head)
        plane = TaskEmbeddings(
            ("a",), of, whole.labels, lambda *at: whole.embedded(*at).half(), "a"
        )
        kept = row.fit(plane).kept
        z = row.logits(lambda s: world.z[s, "report"].half(), of, kept, ("a",))
    assert z.dtype in (torch.float32, torch.float64)
    assert bool(z.isfinite().all())
    assert world.accuracy(z, "report") >= world.zero_shot("report") - 0.1
