"""Shards in a row: the schedule, runs that cross, and gradients against transformers' own model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.artifacts.coding_file import dump_coding
from actors.artifacts.gate_file import Manifest, dump
from actors.artifacts.recipe import Recipe
from actors.experts.local import LocalExperts
from actors.experts.prediction.predict import model_weights
from actors.shards.pipeline import LocalLink, Pipeline, one_forward_one_backward
from actors.shards.requests import Backward, Finish, Forward, ShardRequest, Survey
from actors.shards.shard import Batch, Shard, Weights
from fusion.errors import InputError
from fusion.methods.learned.adamerging import Coefficients
from fusion.methods.learned.gate import Gate
from fusion.methods.learned.steps import Gradient, MicroBatch, TrainingPlan, learn_step
from fusion.task_vectors.sparsify import Trim
from tests.actors.conftest import Tiny
from tests.actors.laws.cases import KINDS
from tests.actors.laws.parts import EXTRACTOR, WIDTH
from tests.actors.shards.world import CLASSES, EXACT, Oracle, World, make_world

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLES = {"t0": [3, 0], "t1": [1, 5, 2, 2], "t2": [4, 6, 0]}


@pytest.fixture(scope="module")
def world(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tiny, tmp_path_factory.mktemp("pipeline"), projected=True)


@pytest.fixture(scope="module")
def local(world: World) -> LocalExperts:
    return world.experts(None)


@pytest.fixture(scope="module")
def exact(world: World) -> LocalExperts:
    return world.experts(None, dtype=torch.float64)


# ---------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize("stages", range(1, 6))
@pytest.mark.parametrize("items", range(10))
def test_schedules_are_valid(stages: int, items: int) -> None:
    last, done = stages - 1, set()
    waiting = dict.fromkeys(range(stages), 0)
    most = dict.fromkeys(range(stages), 0)
    for step in one_forward_one_backward(stages, items):
        at = (step.stage, step.backward, step.item)
        assert at not in done
        if step.stage == last:
            assert step.backward  # which is its forward too
        if step.stage and not (step.backward and step.stage != last):
            assert (step.stage - 1, False, step.item) in done  # its input
        if step.backward and step.stage < last:
            assert (step.stage + 1, True, step.item) in done  # its output's gradient
            assert (step.stage, False, step.item) in done
        done.add(at)
        if step.stage != last:
            waiting[step.stage] += -1 if step.backward else 1
            most[step.stage] = max(most[step.stage], waiting[step.stage])
    assert len(done) == items * (2 * stages - 1)
    for stage in range(last):
        assert most[stage] == min(stages - stage, items)
    assert not any(waiting.values())


@pytest.mark.parametrize("stages", range(2, 6))
@pytest.mark.parametrize("items", range(1, 10))
def test_each_stage_warms_up_and_then_takes_turns(stages: int, items: int) -> None:
    steps = list(one_forward_one_backward(stages, items))
    for stage in range(stages):
        own = [(step.backward, step.item) for step in steps if step.stage == stage]
        for backward in (False, True):
            in_order = [item for kind, item in own if kind == backward]
            assert in_order == (list(range(items)) if backward or stage < stages - 1 else [])
        if stage < stages - 1:
            ahead = min(stages - stage, items)
            turns = "F" * ahead + "BF" * (items - ahead) + "B" * ahead
            assert "".join("FB"[kind] for kind, _ in own) == turns


# ------------------------------------------------------------------------------------------- runs


def gate_file(world: World, grouping: str, weight: float = 0.1) -> tuple[Gate, bytes]:
    """A gate whose codings differ from sample to sample, unless `weight` is 0: then step 0."""
    names = world.vectors.groups if grouping == "layer" else ()
    gate = Gate(WIDTH, len(CLASSES), len(names) or 1, seed=1)
    gate[-1].weight.data.normal_(0, 1, generator=torch.Generator().manual_seed(2)).mul_(weight)
    manifest = Manifest(
        "dawe", "made-up", EXTRACTOR, "none", WIDTH, tuple(CLASSES), grouping, names,
        2, 0.3, False, False, 1,
    )  # fmt: skip
    return gate, dump(gate, manifest)


def recipes(world: World) -> dict[str, Recipe]:
    tasks, groups = world.pool.tasks, world.vectors.groups
    coding = dump_coding(world.coding("layer mean", 1), tasks, groups)
    by_task = dump_coding(world.coding("task mean", 1, seed=1), tasks, groups)
    return {
        "pretrained": Recipe("pretrained"),
        "experts": Recipe("experts"),
        "task_arithmetic": Recipe("task_arithmetic", {"scale": 0.4}),
        "ties": Recipe("ties", {"density": 0.3}),
        "ties, a majority": Recipe("ties", {"density": 0.5, "compat": "fusionbench"}),
        "adamerging": Recipe("adamerging", {}, coding),
        "adamerging, by task": Recipe("adamerging", {"grouping": "task"}, by_task),
        "adamerging++": Recipe("adamerging", {"density": 0.3}, coding),
        "dawe": Recipe("dawe", {"grouping": "layer"}, gate_file(world, "layer")[1]),
        "dawe, trimmed": Recipe(
            "dawe", {"density": 0.5, "delta_dtype": "float16"}, gate_file(world, "task")[1]
        ),
    }


def micro_batches(world: World, kind: str) -> list[MicroBatch]:
    """A task each, and one with all tasks through one coding (all of a batch's, if by sample)."""
    found = [
        MicroBatch({task: torch.tensor(rows)}, world.coding(kind, len(rows), seed=at).float())
        for at, (task, rows) in enumerate(SAMPLES.items())
    ]
    rows = {task: torch.tensor(at) for task, at in SAMPLES.items()}
    size = sum(map(len, SAMPLES.values()))
    return [*found, MicroBatch(rows, world.coding(kind, size, seed=7).float())]


def assert_same_gradients(found: list[Gradient], wanted: list[Gradient]) -> None:
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.losses == theirs.losses
        assert torch.equal(ours.coding, theirs.coding)
        assert bool(ours.coding.any())


@pytest.mark.parametrize("kind", KINDS)
def test_each_micro_batch_is_as_alone(kind: str, world: World, local: LocalExperts) -> None:
    given = micro_batches(world, kind)
    for experts in (local, world.experts((0, 1), (1, 3), (3, 4))):
        together = experts.gradients(given, "report", Trim())
        alone = [experts.gradients([micro_batch], "report", Trim())[0] for micro_batch in given]
        assert_same_gradients(together, alone)
    assert local.gradients([], "report", Trim()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_tasks_are_each_alone(kind: str, world: World, exact: LocalExperts) -> None:
    rows = {task: torch.tensor(at[:2]) for task, at in SAMPLES.items()}
    alone = [
        MicroBatch({task: at}, world.coding(kind, 2, seed=seed))
        for seed, (task, at) in enumerate(rows.items())
    ]
    wanted = exact.gradients(alone, "report", Trim())
    stacked = MicroBatch(rows, torch.cat([each.coding for each in alone]))
    cut = world.experts((0, 1), (1, 3), (3, 4), dtype=torch.float64)
    for experts in (exact, cut):
        [found] = experts.gradients([stacked], "report", Trim())
        assert found.losses == pytest.approx(
            {task: loss for each in wanted for task, loss in each.losses.items()}, rel=1e-12
        )
        coding = torch.cat([each.coding for each in wanted])
        torch.testing.assert_close(found.coding, coding, rtol=1e-9, atol=1e-12)
        assert bool(coding.any())


def test_shards_keep_no_more_than_the_schedule_has(world: World) -> None:
    experts = world.experts((0, 1), (1, 2), (2, 3), (3, 4))
    most = dict.fromkeys(range(4), 0)

    class Counting(LocalLink):
        def call(self, shard: Shard, request: ShardRequest, *given: Any) -> Any:
            found = super().call(shard, request, *given)
            at = shards.index(shard)
            most[at] = max(most[at], len(shard.contexts))
            return found

    shards = experts.runner.pipeline.shards
    experts.runner.pipeline.link = Counting()
    given = micro_batches(world, "task mean") * 3
    for shard in shards:
        shard.capacity = 100
    experts.gradients(given, "report", Trim())
    assert most == {0: 4, 1: 3, 2: 2, 3: 0}
    assert not any(shard.contexts for shard in shards)


class Intruding(LocalLink):
    """Before one call of a run, another run goes from its start to its end."""

    def __init__(self, before: int, other: Callable[[], None]) -> None:
        self.before, self.other, self.calls = before, other, 0

    def call(self, shard: Shard, request: ShardRequest, *given: Any) -> Any:
        if isinstance(request, Forward | Backward | Finish):
            self.calls += 1
            if self.calls == self.before:
                self.other()
        return super().call(shard, request, *given)


@pytest.mark.parametrize("contexts", [None, 0, 1])
def test_runs_that_cross_do_not_disturb_each_other(
    contexts: int | None, world: World, local: LocalExperts
) -> None:
    ours, theirs = micro_batches(world, "layer sample"), micro_batches(world, "task mean")[::-1]
    wanted = local.gradients(ours, "report", Trim(0.4))
    crossing = local.gradients(theirs, "fit", Trim())
    experts = world.experts((0, 1), (1, 3), (3, 4))
    if contexts is not None:
        for shard in experts.runner.pipeline.shards:
            shard.capacity = contexts
    calls = len(ours) * 5
    for before in range(1, calls + 1, 3):
        ran: list[list[Gradient]] = []

        def other(ran: list[list[Gradient]] = ran) -> None:
            outer, experts.runner.pipeline.link = experts.runner.pipeline.link, LocalLink()
            ran.append(experts.gradients(theirs, "fit", Trim()))
            evaluated = experts.runner.pipeline.weights("task_arithmetic", {"scale": 0.2})
            list(experts.runner.pipeline.embed(evaluated, [world.batch(t0=[0])]))
            experts.runner.pipeline.link = outer

        link = Intruding(before, other)
        experts.runner.pipeline.link = link
        assert_same_gradients(experts.gradients(ours, "report", Trim(0.4)), wanted)
        assert link.calls >= before
        assert_same_gradients(ran[0], crossing)


def test_a_few_batches_are_in_flight(world: World) -> None:
    experts = world.experts((0, 2), (2, 4))
    asked = []

    def endless() -> Iterator[Batch]:
        for row in itertools.cycle(range(7)):
            asked.append(row)
            yield world.batch(t0=[row])

    weights = experts.runner.pipeline.weights(coding=torch.zeros(1, 3, 1))
    stream = experts.runner.pipeline.embed(weights, endless())
    found = [next(stream) for _ in range(5)]
    assert len(asked) <= 5 + len(experts.runner.pipeline.shards)
    for row, embedded in enumerate(found):
        (alone,) = experts.runner.pipeline.embed(weights, [world.batch(t0=[row])])
        assert torch.equal(embedded, alone)


def test_only_what_must_be_surveyed_is(world: World) -> None:
    class Never(LocalLink):
        def call(self, shard: Shard, request: ShardRequest, *given: Any) -> Any:
            assert not isinstance(request, Survey)
            return super().call(shard, request, *given)

    pipeline = world.experts((0, 2), (2, 4)).runner.pipeline
    pipeline.link = Never()
    keys = {
        pipeline.weights("task_arithmetic", {"scale": 0.2}).key,
        pipeline.weights(coding=torch.zeros(1, 3, 1)).key,
        pipeline.weights(coding=torch.zeros(1, 3, 1)).key,
        pipeline.weights(trim=Trim(0.3, dtype="float16")).key,
    }
    assert len(keys) == 4
    for surveyed in (
        lambda: pipeline.weights("ties"),
        lambda: pipeline.weights(trim=Trim(0.3, elect=True)),
    ):
        with pytest.raises(AssertionError):
            surveyed()


class Surveyed(LocalLink):
    """Counts surveys by their first question."""

    def __init__(self) -> None:
        self.started = 0

    def call(self, shard: Shard, request: ShardRequest, *given: Any) -> Any:
        if isinstance(request, Survey):
            self.started += not request.answers
        return super().call(shard, request, *given)


GRIDS: dict[str, tuple[dict[str, list[Any]], int]] = {
    "ties": ({"density": [0.1, 0.2, 0.3], "scale": [n / 10 for n in range(1, 11)]}, 3),
    "ties ": ({"granularity": ["model", "tensor"], "merge": ["mean", "sum"], "scale": [1, 2]}, 2),
    "dare": ({"merge": ["ties"], "trim_density": [0.2, 0.4], "scale": [0.3, 0.5, 1]}, 2),
    "emr": ({"compat": ["paper", "released"], "again": [0, 1]}, 2),
    "uniform_soup": ({"ingredients": [["t0"], ["t0", "t1"], ["t0", "t1", "t2"]]}, 1),
}
"""Method -> (its grid of parameters, how many surveys it needs)."""


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_surveys_once_for_what_a_survey_depends_on(name: str, world: World) -> None:
    pipeline = world.experts((0, 4)).runner.pipeline
    link = pipeline.link = Surveyed()
    axes, wanted = GRIDS[name]
    kept = []
    for point in itertools.product(*axes.values()):
        params = dict(zip(axes, point, strict=True))
        params.pop("again", None)
        kept.append(pipeline.weights(name.strip(), params))
    assert link.started == wanted
    for each in kept[1::10]:
        assert pipeline.survey(each) == each.survey


def test_a_trim_is_surveyed_once_for_all_its_dtypes(world: World) -> None:
    pipeline = world.experts((0, 4)).runner.pipeline
    link = pipeline.link = Surveyed()
    for elected in (Trim(0.3, elect=True), Trim(0.3, elect=True, dtype="float16")):
        pipeline.weights(trim=elected)
    assert link.started == 1


def test_surveys_are_forgotten_in_the_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.shards.pipeline.SURVEYS", 2)
    pipeline = world.experts((0, 4)).runner.pipeline
    link = pipeline.link = Surveyed()
    for density in (0.1, 0.2, 0.1, 0.3, 0.1, 0.2):
        pipeline.weights("ties", {"density": density})
    assert link.started == 4
    assert len(pipeline.surveys) == 2


def test_columns_are_in_the_order_of_the_whole_model(world: World) -> None:
    """Blocks list their tensors in an order of their own."""
    groups = world.vectors.groups

    class Told:
        def __init__(self, *names: str) -> None:
            self.own = names

        def finish(self, carry: Any, weights: Weights, batch: Batch) -> Any:
            return ({"t0": 1.0}, 0.0), self.columns(), {}

        def forward(self, key: str, carry: Any, weights: Weights) -> Any:
            return carry

        def backward(self, key: str, carry: Any, weights: Weights, gradient: Any) -> Any:
            return self.columns(), {}

        def columns(self) -> Tensor:
            return torch.tensor([float(groups.index(n)) for n in self.own]).expand(1, 3, -1)

    dealt = [Told(*groups[::-2]), Told(*groups[-2::-2][::-1])]
    assert sorted([*dealt[0].own, *dealt[1].own]) == sorted(groups)
    pipeline = Pipeline(dealt, [told.own for told in dealt], groups, LocalLink())
    codings = [torch.zeros(1, 3, size) for size in (1, len(groups))]
    given = [(world.batch(t0=[0]), Weights("", coding=coding)) for coding in codings]
    summed, each = pipeline.gradients(given)
    assert torch.equal(each.coding, torch.arange(len(groups)).float().expand(1, 3, -1))
    assert torch.equal(summed.coding, torch.full((1, 3, 1), sum(range(len(groups))) * 1.0))


# ------------------------------------------------------------ mathematics, through LocalExperts


@pytest.mark.parametrize("kind", KINDS)
def test_local_experts_are_transformers(kind: str, world: World, exact: LocalExperts) -> None:
    oracle = Oracle(world)
    for micro_batch in micro_batches(world, kind):
        batch = exact.runner.batch_of(micro_batch, "report")
        leaf = micro_batch.coding.double().requires_grad_()
        embedded = oracle.embed(oracle.merged(leaf), world.pixels(batch))
        losses = oracle.losses(embedded, batch)
        (wanted,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), leaf)
        given = MicroBatch(micro_batch.rows, micro_batch.coding.double())
        (found,) = exact.gradients([given], "report", Trim())
        torch.testing.assert_close(found.coding, wanted, **EXACT)
        for task, loss in losses.items():
            assert found.losses[task] == pytest.approx(loss.item(), rel=1e-10)
        weights = Weights("", coding=leaf.detach())
        (values,) = exact.runner.pipeline.embed_coded([(batch, weights)])
        torch.testing.assert_close(values, embedded.detach(), **EXACT)


@pytest.mark.parametrize("grouping", ["task", "layer"])
def test_all_tasks_in_one_pass_are_the_sum_over_tasks(
    grouping: str, world: World, exact: LocalExperts
) -> None:
    coding = world.coding(f"{grouping} mean", 1)
    rows = {task: torch.tensor(at) for task, at in SAMPLES.items()}
    (together,) = exact.gradients([MicroBatch(rows, coding)], "report", Trim())
    each = exact.gradients(
        [MicroBatch({task: rows[task]}, coding) for task in rows], "report", Trim()
    )
    total = torch.stack([gradient.coding for gradient in each]).sum(0)
    torch.testing.assert_close(together.coding, total, **EXACT)
    for gradient in each:
        for task, loss in gradient.losses.items():
            assert together.losses[task] == pytest.approx(loss, rel=1e-10)


def training_plan(router: torch.nn.Module, **changes: Any) -> TrainingPlan:
    return TrainingPlan(router, 0.1, 1, 4, "report", 1, **changes)


@pytest.mark.parametrize("grouping", ["task", "layer"])
@pytest.mark.parametrize("batch_mean", [True, False])
def test_a_gates_step_is_that_of_the_summed_loss(
    grouping: str, batch_mean: bool, world: World, exact: LocalExperts
) -> None:
    """The gate's gradient, from one backward pass a task, is autograd's through all of it."""
    gate = gate_file(world, grouping)[0].double()
    learning = training_plan(gate, extractor=EXTRACTOR, batch_mean=batch_mean)
    oracle, given, losses = Oracle(world), [], []
    for task, rows in SAMPLES.items():
        features = exact.runner.features(task, "report", EXTRACTOR)[rows]
        coding = gate(features).mean(0, keepdim=True) if batch_mean else gate(features)
        given.append(MicroBatch({task: torch.tensor(rows)}, coding))
        batch = world.batch(**{task: rows})
        embedded = oracle.embed(oracle.merged(coding), world.pixels(batch))
        losses.append(oracle.losses(embedded, batch)[task])
    total = torch.stack(losses).sum()
    wanted = torch.autograd.grad(total, list(gate.parameters()), retain_graph=True)
    before = [p.detach().clone() for p in gate.parameters()]
    found = learn_step(
        learning,
        torch.optim.SGD(gate.parameters(), lr=1.0),
        given,
        lambda micro_batches: exact.gradients(micro_batches, "report", Trim()),
        0,
    )
    for p, old, gradient in zip(gate.parameters(), before, wanted, strict=True):
        torch.testing.assert_close(old - p.detach(), gradient, **EXACT)
        assert bool(gradient.any())
    assert list(found.values()) == pytest.approx([loss.item() for loss in losses], rel=1e-10)


@pytest.mark.parametrize("clamp", [False, True])
def test_adamerging_goes_down(clamp: bool, world: World, local: LocalExperts) -> None:
    router = Coefficients(3, len(world.vectors.groups), 0.3, clamp)
    learning, rows = training_plan(router), {t: torch.tensor(at) for t, at in SAMPLES.items()}
    optimizer = torch.optim.Adam(router.parameters(), lr=1e-2)
    losses = []
    for step in range(4):
        found = learn_step(
            learning,
            optimizer,
            [MicroBatch(rows, router(None))],
            lambda micro_batches: local.gradients(micro_batches, "report", learning.trim),
            step,
        )
        losses.append(sum(found.values()))
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))


@pytest.mark.parametrize("grouping", ["task", "layer"])
def test_step_0_of_dawe_is_task_arithmetic(
    grouping: str, world: World, local: LocalExperts
) -> None:
    gate = Recipe("dawe", {"grouping": grouping}, gate_file(world, grouping, weight=0.0)[1])
    static = Recipe("task_arithmetic", {"scale": 0.3})
    moved = Recipe("dawe", {"grouping": grouping}, gate_file(world, grouping)[1])
    for task in CLASSES:
        wanted, found, other = (
            local.logits(each, "report")[task] for each in (static, gate, moved)
        )
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        assert float((other - wanted).abs().max()) > 1e-2


def test_adamerging_is_evaluated_as_it_was_learned(world: World, local: LocalExperts) -> None:
    """The resident model of a coding file gives the losses that its micro-batches gave."""
    recipe = recipes(world)["adamerging++"]
    weights = model_weights(local.runner, recipe)
    assert weights.trim == Trim(0.3, elect=True)
    assert weights.coding is not None
    rows = {task: torch.arange(7) for task in CLASSES}
    (found,) = local.gradients([MicroBatch(rows, weights.coding)], "report", weights.trim)
    for task in CLASSES:
        z = local.logits(recipe, "report")[task][:7]
        loss = torch.distributions.Categorical(logits=z).entropy().mean().item()
        assert found.losses[task] == pytest.approx(loss, rel=1e-4)


def test_rows_of_a_role_are_those_of_its_split(world: World, local: LocalExperts) -> None:
    """`fit` is a part of a pixel file: its row 0 need not be the file's."""
    indices = world.data["t1"].rows["fit"].indices
    assert indices is not None
    assert indices.tolist() != list(range(len(indices)))
    micro_batch = MicroBatch({"t1": torch.tensor([3, 0])}, torch.full((1, 3, 1), 0.3))
    (part,) = local.runner.batch_of(micro_batch, "fit").parts
    assert part[2].tolist() == [indices[3], indices[0]]
    everything = replace(world.data["t1"].rows["fit"], indices=None)
    task = replace(world.data["t1"], rows={"fit": everything})
    other = replace(world, data={**world.data, "t1": task})
    moved = MicroBatch(
        {"t1": torch.from_numpy(np.array([indices[3], indices[0]]))}, micro_batch.coding
    )
    wanted = other.experts(None).gradients([moved], "fit", Trim())
    assert_same_gradients(local.gradients([micro_batch], "fit", Trim()), wanted)


def test_a_recipe_without_what_was_learned_is_refused(local: LocalExperts) -> None:
    for name in ("adamerging", "dawe"):
        with pytest.raises(InputError, match=rf"^{name}: nothing learned"):
            local.evaluate(Recipe(name), "report")
    with pytest.raises(InputError, match="one model a sample"):
        local.merge(Recipe("dawe"))
