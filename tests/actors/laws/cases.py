"""What a method gives, kind by kind: all of it whose bits may not depend on how it is computed.

A case observes a method through a `Caller`: it asks experts, which may be one process, shards or a
fleet, and which may be broken off and begun anew where the method can be resumed.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from actors.artifacts.coding_file import dump_coding
from actors.artifacts.errors import ATTEMPTS, Forgotten
from actors.artifacts.in_model_state_file import learned_of
from actors.artifacts.recipe import Recipe
from actors.experts.in_model_training import plan_of
from actors.experts.local import LocalExperts
from actors.experts.protocol import Experts
from actors.experts.recipe import of_task
from fusion.merged_layers.functional import Form
from fusion.methods.learned.gate import Gate
from fusion.methods.learned.steps import MicroBatch, Shape, learn_step, micro_batches, temperature
from fusion.registry import METHODS
from fusion.task_vectors.sparsify import Trim
from tests.actors.laws.parts import WIDTH, Parts, gate_file, random_gate
from tests.fusion import laws

Found: TypeAlias = dict[str, Any]
T = TypeVar("T")

STEPS, SEED = 4, 5
OTHER = Recipe("task_arithmetic", {"scale": 0.9})


class Caller:
    """Asks experts, as a trial does: a call that a shard forgot is made again."""

    def __init__(self, start: Callable[[], Experts], breaks: Sequence[int] = ()) -> None:
        """`start`: makes the experts; `breaks`: steps after which learning is broken off and gone
        on with by experts that are made anew."""
        self.start, self.breaks, self.experts = start, breaks, start()

    def call(self, what: Callable[[Experts], T]) -> T:
        """The result of a call, repeated where a shard died that had kept something for it."""
        for _ in range(ATTEMPTS - 1):
            try:
                return what(self.experts)
            except Forgotten:
                pass
        return what(self.experts)

    def spans(self, steps: int = STEPS) -> Iterator[tuple[int, int]]:
        """[first, last) of each piece of a training."""
        for first, last in itertools.pairwise((0, *self.breaks, steps)):
            yield first, last
            self.pause()

    def pause(self) -> None:
        """Between two pieces: other experts go on. The piece left no trace in those before: they
        evaluate another model as the new ones do."""
        if self.breaks:
            before = self.experts.logits(OTHER, "report")
            self.experts = self.start()
            laws.assert_same_bits(self.experts.logits(OTHER, "report"), before)


Observe: TypeAlias = Callable[[Parts, Caller], Found]


@dataclass(frozen=True)
class Case:
    """A kind of method, one method of it with hyper-parameters, and what is observed of it."""

    kind: str
    name: str
    observe: Observe
    typical: bool = False
    """Whether it stands for its kind where not every method is tried."""

    @property
    def passes(self) -> bool:
        """Whether it is made of passes through the shards, forward or backward, of its own."""
        return self.kind in {"gradients", "learned", "in-model", "one model a sample", "statistics"}

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


def assert_same(found: Found, wanted: Found) -> None:
    """The same names, and the same bits of each."""
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        if isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values()):
            laws.assert_same_bits(found[name], value)
        elif isinstance(value, Tensor):
            laws.assert_same_bits({name: found[name]}, {name: value})
        else:
            assert found[name] == value, name


# ------------------------------------------------------------------------- models without learning


def evaluated(recipe: Recipe, caller: Caller) -> Found:
    """Logits; where calls are broken off, once more with what is cached."""
    found = caller.call(lambda experts: experts.logits(recipe, "report"))
    if caller.breaks:
        caller.pause()
        again = caller.call(lambda experts: experts.logits(recipe, "report"))
        laws.assert_same_bits(again, found)
    return {"logits": found}


def merged(recipe: Recipe, parts: Parts, caller: Caller) -> Found:
    """The merged models: one, or one a task."""
    method = METHODS.get(recipe.method)
    if method is not None and method.output == "model_per_task":
        each = {f"merged for {task}": of_task(recipe, task) for task in parts.pool.tasks}
    else:
        each = {"merged": recipe}
    return {
        name: caller.call(lambda experts, one=one: experts.merge(one)) for name, one in each.items()
    }


def model(method: str, **params: Any) -> Observe:
    """A method whose recipe is all there is: merged weights, and their evaluation."""

    def observe(parts: Parts, caller: Caller) -> Found:
        recipe = Recipe(method, named(params, parts))
        return {**merged(recipe, parts, caller), **evaluated(recipe, caller)}

    return observe


def named(params: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    """Hyper-parameters that name experts, with those of this pool."""
    known = dict(zip(laws.TASKS, parts.pool.tasks, strict=True))

    def own(value: Any) -> Any:
        if isinstance(value, list):
            return [own(each) for each in value]
        if isinstance(value, Mapping):
            return {own(key): each for key, each in value.items()}
        return known.get(value, value) if isinstance(value, str) else value

    return {key: own(value) for key, value in params.items()}


def without_model(method: str, **params: Any) -> Observe:
    """A method that has no single model: logits."""

    def observe(parts: Parts, caller: Caller) -> Found:
        return evaluated(Recipe(method, named(params, parts)), caller)

    return observe


def by_coding(method: str, grouping: str, **params: Any) -> Observe:
    """A method that mixes task vectors by a given coding, trimmed as its hyper-parameters say."""

    def observe(parts: Parts, caller: Caller) -> Found:
        tasks, groups = parts.pool.tasks, parts.pool.groups
        draw = torch.Generator().manual_seed(len(grouping))
        size = len(groups) if grouping == "layer" else 1
        coding = torch.rand(1, len(tasks), size, generator=draw)
        coding[:, 1, ::2] = 0  # an expert that only some tensors read
        given = {"grouping": grouping, **params} if method == "adamerging" else params
        recipe = Recipe(method, given, dump_coding(coding, tasks, groups))
        return {**merged(recipe, parts, caller), **evaluated(recipe, caller)}

    return observe


# ---------------------------------------------------------------------------- statistics of data


def by_statistics(method: str, **params: Any) -> Observe:
    """Statistics of the experts' own images, and the model that is merged by them."""
    recipe = Recipe(method, params)

    def observe(parts: Parts, caller: Caller) -> Found:
        keys = caller.call(lambda experts: experts.statistics(recipe))
        caller.pause()
        return {"keys": keys, **merged(recipe, parts, caller), **evaluated(recipe, caller)}

    return observe


def gram(parts: Parts, caller: Caller) -> Found:
    """Inner products of the task vectors."""
    return {"total": caller.call(lambda experts: experts.gram()).total}


# ------------------------------------------------------------------------------------- learning


STACKED = 6
"""Rows in one pass of several tasks' models: two of the three tasks of a step."""

KINDS = ("task mean", "layer mean", "task sample", "layer sample")


def micro_batches_of(parts: Parts, kind: str, role: str = "select") -> list[MicroBatch]:
    """A micro-batch a task, with the codings of a gate: "task mean", …, "layer sample"; one of all
    tasks with a model each; and one of all tasks through one coding, with an inverse temperature of
    the logits."""
    grouping, models = kind.split()
    gate, features = random_gate(parts.pool, grouping), parts.features(role)
    found = []
    for at, task in enumerate(features):
        rows = torch.arange(3 + at) % len(features[task])
        with torch.no_grad():
            coding = gate(features[task][rows])
        coding = coding if models == "sample" else coding.mean(0, keepdim=True)
        found.append(MicroBatch({task: rows}, coding))
    rows = {task: torch.arange(2) for task in features}
    each = torch.cat([one.coding for one in found])
    stacked = MicroBatch(rows, each[: len(rows)])  # a model a task, in one pass
    shared = each[: 2 * len(rows)] if models == "sample" else each[:1]
    more = [MicroBatch(rows, shared), MicroBatch(rows, shared, torch.tensor(1.5))]
    return [*found, stacked, *more]


TRIMS = (Trim(), Trim(0.4, dtype="bfloat16"), Trim(0.3, elect=True, dtype="float16"))


def gradients(kind: str, trims: Sequence[Trim] = TRIMS, form: Form | None = None) -> Observe:
    """Losses, and gradients by coding and by temperature; `form`: how merged layers compute, where
    their sizes do not say."""

    def observe(parts: Parts, caller: Caller) -> Found:
        given = micro_batches_of(parts, kind)
        if form is not None:
            assert isinstance(caller.experts, LocalExperts)
            for shard in caller.experts.runner.pipeline.shards:
                shard.mixer.form = form
        found: Found = {}
        for trim in trims:
            each = caller.call(lambda experts, trim=trim: experts.gradients(given, "select", trim))
            caller.pause()
            for at, (one, asked) in enumerate(zip(each, given, strict=True)):
                assert one.coding.shape == asked.coding.shape
                assert list(one.losses) == list(asked.rows)
                assert bool(one.coding.any())
                found[f"{trim} {at} losses"] = one.losses
                found[f"{trim} {at} beta"] = one.beta
                found[f"{trim} {at} coding"] = one.coding
            assert found[f"{trim} {len(given) - 1} beta"] != 0
        return found

    return observe


def stepped(method: str, **params: Any) -> Observe:
    """A coding or gate that is learned: losses of all steps, its tensors and Adam's moments, and
    the evaluation of its file."""

    def observe(parts: Parts, caller: Caller) -> Found:
        pool, row = parts.pool, METHODS[method]
        given = {"learning_rate": 0.02, "batch_size": 3, "adapt_on": "select", **params}
        given = {key: value for key, value in given.items() if key in row.parameters}
        sizes, features = parts.sizes("select"), parts.features("select")
        state, losses = b"", []
        for first, last in caller.spans():
            learning = row.plan(Shape(pool.tasks, pool.groups, WIDTH), **given)
            router = learning.router
            optimizer = learning.optimizer(router, learning.learning_rate)
            if state:
                kept = torch.load(io.BytesIO(state))
                router.load_state_dict(kept["router"])
                optimizer.load_state_dict(kept["adam"])
            for step in range(first, last):
                asked = micro_batches(learning, sizes, features, step, SEED, STACKED)

                def computed(micro_batches: Any, trim: Trim = learning.trim) -> Any:
                    return caller.call(lambda who: who.gradients(micro_batches, "select", trim))

                losses.append(learn_step(learning, optimizer, asked, computed, step))
            file = io.BytesIO()
            torch.save({"router": router.state_dict(), "adam": optimizer.state_dict()}, file)
            state = file.getvalue()
        moments = optimizer.state_dict()["state"]
        adam = {f"{at} {name}": m for at, each in moments.items() for name, m in each.items()}
        if isinstance(router, Gate):
            learned = gate_file(pool, router, params["grouping"])
        else:
            beta = temperature(router)
            with torch.no_grad():
                coding = router(None)
            learned = dump_coding(
                coding, pool.tasks, pool.groups, 1.0 if beta is None else float(beta.detach())
            )
        recipe = Recipe(method, given, learned)
        found = {"losses": losses, "router": dict(router.state_dict()), "adam": adam}
        found |= {} if isinstance(router, Gate) else merged(recipe, parts, caller)
        return {**found, **evaluated(recipe, caller)}

    return observe


def in_model(method: str, **params: Any) -> Observe:
    """Parameters in the shards: the state's bytes, losses, and the evaluation of what is kept."""

    def observe(parts: Parts, caller: Caller) -> Found:
        recipe = Recipe(
            method, {"batch_size": 3, "learning_rate": 0.02, "adapt_on": "select", **params}
        )
        state: bytes | None = None
        losses: list[dict[str, float]] = []
        for first, last in caller.spans():
            before = state
            state, found = caller.call(
                lambda who, given=(before, first, last): who.train(recipe, *given, SEED)
            )
            losses += found
        assert state is not None
        tasks, groups = parts.pool.tasks, parts.pool.groups
        options = plan_of(recipe, tasks, groups).options
        learned = learned_of(state, method, tasks, getattr(options, "mask_steps", 0))
        kept = replace(recipe, learned=learned)
        models = merged(kept, parts, caller) if METHODS[method].output == "one_model" else {}
        return {"state": state, "losses": losses, **models, **evaluated(kept, caller)}

    return observe


def fitted(method: str) -> Observe:
    """A classifier of the experts' outputs: its file, what was chosen, and its evaluation."""

    def observe(parts: Parts, caller: Caller) -> Found:
        given = {"epochs": 3, "steps": 5}
        quick = {k: value for k, value in given.items() if k in METHODS[method].parameters}
        learned, chosen = caller.call(lambda experts: experts.fit(Recipe(method, quick)))
        kept = Recipe(method, quick, learned)
        return {"file": learned, "chosen": chosen, **evaluated(kept, caller)}

    return observe


# --------------------------------------------------------------------------------------- the table


def static_cases() -> Iterator[Case]:
    """Every static method; one that surveys all shards first, with every example of its
    hyper-parameters (of each method in one process: `tests/fusion/testing/test_laws.py`)."""
    toy = laws.toy()
    for name, method in METHODS.items():
        if method.kind != "static" or "statistics" in method.reads:
            continue
        kind = "one model a task" if method.output == "model_per_task" else "static"
        examples = laws.examples(name, toy)
        for at, params in enumerate(examples if method.surveyed else examples[:1]):
            given = {key: value for key, value in params.items() if key != "task"}
            if by_tensor(given):
                continue
            typical = not at and name in ("task_arithmetic", "ties", "emr")
            yield Case(kind, f"{name} {at}", model(name, **given), typical)


def by_tensor(params: Mapping[str, Any]) -> bool:
    """Whether hyper-parameters name tensors, those of the toy models."""
    weights = params.get("weights")
    return isinstance(weights, list) or (
        isinstance(weights, Mapping) and any(isinstance(v, Mapping) for v in weights.values())
    )


FORMS: tuple[Form, ...] = ("A", "B")
FEW = {"examples": 4, "seed": 3}

CASES = [
    Case("static", "pretrained", model("pretrained"), True),
    *static_cases(),
    Case("given coding", "by task", by_coding("adamerging", "task")),
    Case("given coding", "by layer", by_coding("adamerging", "layer"), True),
    Case("given coding", "trimmed, elected", by_coding("adamerging", "layer", density=0.3)),
    Case("given coding", "soup", by_coding("greedy_soup", "task")),
    Case("statistics", "fisher, sampled", by_statistics("fisher", **FEW), True),
    *(
        Case("statistics", f"fisher, {estimate}", by_statistics("fisher", **FEW, estimate=estimate,
             batch_size=2))
        for estimate in ("exact", "batch")
    ),
    Case("statistics", "regmean", by_statistics("regmean", **FEW), True),
    Case("statistics", "regmean_plusplus", by_statistics("regmean_plusplus", **FEW), True),
    Case("statistics", "lot", by_statistics("lot", **FEW), True),
    Case("statistics", "inner products", gram),
    *(Case("gradients", kind, gradients(kind), kind == "layer sample") for kind in KINDS),
    *(
        Case("gradients by a form", f"{form}, {kind}", gradients(kind, TRIMS[::2], form))
        for form in FORMS
        for kind in ("layer mean", "layer sample")
    ),
    Case("learned", "adamerging, by task", stepped("adamerging", grouping="task")),
    Case("learned", "adamerging, by layer", stepped("adamerging", grouping="layer"), True),
    Case("learned", "adamerging, trimmed", stepped("adamerging", density=0.3)),
    Case("learned", "learned_soup", stepped("learned_soup"), True),
    Case("learned", "frank_wolfe", stepped("frank_wolfe", granularity="tensor", step_size=0.5)),
    Case("learned", "dawe, by task", stepped("dawe", grouping="task", density=0.5,
         delta_dtype="float16")),
    Case("learned", "dawe, a model a sample", stepped("dawe", grouping="layer",
         batch_mean=False), True),
    Case("in-model", "wemoe", in_model("wemoe"), True),
    Case("in-model", "wemoe, a model a sample", in_model("wemoe", depth=1, batch_mean=False)),
    Case("in-model", "ewemoe, pruned", in_model("ewemoe", prune=0.6)),
    Case("in-model", "ewemoe, a router each", in_model("ewemoe", shared=False, depth=0)),
    Case("in-model", "concrete_task_arithmetic", in_model("concrete_task_arithmetic")),
    Case("in-model", "concrete_task_arithmetic, discrete", in_model("concrete_task_arithmetic",
         tasks_at_once=2, mask="discrete")),
    Case("in-model", "concrete_adamerging", in_model("concrete_adamerging", steps=2,
         coefficient_steps=2), True),
    Case("in-model", "concrete_adamerging, by task", in_model("concrete_adamerging", steps=2,
         coefficient_steps=2, grouping="task", clamp=True)),
    Case("one model a sample", "dawin, domains", without_model("dawin", granularity="domain")),
    Case("one model a sample", "dawin, clusters", without_model("dawin", granularity="cluster",
         expert="svhn")),
    Case("one model a sample", "dawin", without_model("dawin", granularity="sample"), True),
    Case("ensemble", "experts", without_model("experts")),
    Case("ensemble", "of logits", without_model("ensemble"), True),
    Case("ensemble", "of features", without_model("ensemble", average="features")),
    *(Case("classifier", name, fitted(name), name == "tip_adapter") for name in laws.FITTED),
]  # fmt: skip

TYPICAL = [case for case in CASES if case.typical]
