"""The kinds of method (static, per-task, learned, routed, …): signatures, inputs and outputs.

A row of `fusion.registry.METHODS` is an instance of one kind. Its facts are fields: what the method
returns (`output`), what it reads (`reads`), whether it learns (`learns`, `stepwise`), and what it
needs of a model family (`requires`). Callers ask for facts, not for kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, Literal, TypeAlias

from torch import Tensor

from fusion.errors import InputError
from fusion.logits.head import Head
from fusion.methods.classifiers.interface import Fit, Plane, wide
from fusion.methods.learned.in_model import ResidentCourse
from fusion.methods.learned.steps import Learning, Shape
from fusion.methods.routed.dawin import Evidence, Routing, is_oracle, transductive
from fusion.methods.soups.selection import Selection
from fusion.methods.statistics.collect import Asked
from fusion.parameters import Parameter, bind, parameters
from fusion.task_vectors.sharded_reduce import Survey
from fusion.task_vectors.sparsify import Trim
from fusion.task_vectors.task_vectors import TaskVectors

Output: TypeAlias = Literal["one_model", "model_per_task", "model_per_sample", "logits"]
"""What a method returns: `one_model` merged weights for all tasks; `model_per_task` merged weights
for each task, so the task of a sample must be known; `model_per_sample` merged weights for each
sample or group of samples, so there is no single model to export; `logits` a classifier that reads
the experts' outputs."""

Read: TypeAlias = Literal["weights", "inputs", "labels", "expert_logits", "statistics"]
"""What a method reads: `weights` of base and experts; `inputs` of the tasks' rows before it is
evaluated (`labels`: with their labels); `expert_logits` the experts' embeddings or logits;
`statistics` of data, computed by the experts (Fisher information, Gram matrices)."""

Requirement: TypeAlias = Literal["embeddings", "cosine_head", "mlp_blocks"]
"""What a method needs of a model family: `embeddings` an output [B, D] before the head;
`cosine_head` class weights [C, D] that are compared with normalised embeddings; `mlp_blocks` blocks
with an MLP that routers can replace."""


LearnedFile: TypeAlias = Literal["coding", "gate", "in_model", "classifier"]
"""What the learned file of a method holds: a `coding` (coefficients of task vectors), a `gate` that
computes codings from features, `in_model` parameters that live beside the weights in the shards
(routers, masks), or a `classifier` of the experts' outputs for each task."""

NO_SINGLE_MODEL: Mapping[Output, str] = {
    "logits": "fuses logits",
    "model_per_sample": "one model a sample",
    "model_per_task": "one model a task",
}
"""Output -> why there is no single merged model, for messages."""


@dataclass(frozen=True, eq=False)
class MergeInputs:
    """What a merge reads beside task vectors and hyper-parameters; each kind reads its own part."""

    survey: Any = None
    """Result of the method's survey over all shards; None: computed from the given vectors."""
    statistics: Mapping[str, Tensor] | None = None
    """Tensor name -> statistics of data [T, …], of a method that reads statistics."""
    task: str | None = None
    """The expert whose model is wanted, of a method that returns one model for each task."""
    learned: Mapping[str, Tensor] | None = None
    """Name -> tensor that was learned in the shards, of a method that learns there."""


NOTHING = MergeInputs()


@dataclass(frozen=True)
class Row:
    """One row of the table of methods: the rule, its source, and facts about it."""

    rule: Callable[..., Any]
    paper: str
    defaults: str
    """Where the default hyper-parameters come from."""
    requires: frozenset[Requirement] = field(default=frozenset(), kw_only=True)
    """What a model family must offer for this method."""

    @property
    def output(self) -> Output:
        """What the method returns."""
        return "one_model"

    @property
    def reads(self) -> frozenset[Read]:
        """What the method reads."""
        return frozenset({"weights"})

    @property
    def learned(self) -> LearnedFile | None:
        """What the file holds that a trial learns first; None: the method does not learn."""
        return None

    @property
    def learns(self) -> bool:
        """Whether a trial produces a learned file first."""
        return self.learned is not None

    @property
    def stepwise(self) -> bool:
        """Whether it learns in gradient steps, which can be scheduled, stopped and resumed."""
        return False

    @property
    def fits(self) -> bool:
        """Whether it always reads rows of the `fit` split."""
        return False

    @property
    def surveyed(self) -> bool:
        """Whether a merge needs sums over all shards first."""
        return False

    def whole_task(self, params: Mapping[str, Any]) -> bool:
        """Whether it reads all evaluated rows of a task together, or their labels."""
        return False

    def trim(self, shape: Shape, **params: Any) -> Trim:
        """How task vectors are trimmed before the learned coding mixes them."""
        return Trim()

    def start_survey(
        self, vectors: TaskVectors, inputs: MergeInputs = NOTHING, **params: Any
    ) -> Survey[Any]:
        """The survey of one shard, not yet started.

        Raises:
            AssertionError: the method has no survey, see `surveyed`.
        """
        raise AssertionError(f"{self.rule.__name__} has no survey")

    def merge(
        self, vectors: TaskVectors, inputs: MergeInputs = NOTHING, **params: Any
    ) -> dict[str, Tensor]:
        """The merged state dict of a model, or of one shard of it.

        Raises:
            InputError: wrong parameters or inputs; a method that merges no weights.
        """
        why = NO_SINGLE_MODEL.get(self.output, "needs its coding")
        raise InputError(f"{self.rule.__name__}: {why}; there is no single model to build")

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The hyper-parameters, as the rule's signature states them."""
        return parameters(self.rule, hidden=("survey",))

    @property
    def doc(self) -> str:
        """The rule's docstring."""
        return self.rule.__doc__ or ""

    def bound(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """All hyper-parameters of a call: `params`, checked, over the defaults.

        Raises:
            InputError: unknown, missing or wrong parameters.
        """
        return bind(self.rule.__name__, self.parameters, params)


@dataclass(frozen=True)
class Learned(Row):
    """Base of the kinds whose trials learn from data and keep the result as a file."""

    scope = "model"


@dataclass(frozen=True)
class Static(Row):
    """Weights -> weights: `rule(vectors, *, …) -> StateDict`."""

    rule: Callable[Concatenate[TaskVectors, ...], dict[str, Tensor]]
    survey: Callable[Concatenate[TaskVectors, ...], Survey[Any]] | None = None
    """Given the same parameters as the rule; its result is the rule's argument `survey`."""
    kind = "static"
    needs = "nothing but weights"

    @property
    def scope(self) -> str:
        """`tensor`: works tensor by tensor; `model`: surveys the whole model first."""
        return "model" if self.survey else "tensor"

    @property
    def surveyed(self) -> bool:
        """Whether it has a survey."""
        return self.survey is not None

    def merge(
        self, vectors: TaskVectors, inputs: MergeInputs = NOTHING, **params: Any
    ) -> dict[str, Tensor]:
        """The merged state dict of a model; of one shard, with the `survey` of all shards.

        Raises:
            InputError: unknown, missing or wrong parameters; inputs that are missing or wrong.
        """
        bound = self.bound(params)
        found = {"survey": inputs.survey} if self.surveyed else {}
        return self.rule(vectors, **self.read(vectors, inputs, bound), **found, **bound)

    def start_survey(
        self, vectors: TaskVectors, inputs: MergeInputs = NOTHING, **params: Any
    ) -> Survey[Any]:
        """The survey of one shard, not yet started."""
        assert self.survey is not None
        return self.survey(vectors, **self.bound(params))

    def read(
        self, vectors: TaskVectors, inputs: MergeInputs, bound: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The keyword arguments that the rule takes from `inputs`, checked."""
        return {}


@dataclass(frozen=True)
class PerTask(Static):
    """Weights -> one model a task: `rule(vectors, *, task, …) -> StateDict`.

    The rule's argument `task` is the expert whose model is wanted (`MergeInputs.task`); it is no
    hyper-parameter, so sweep files cannot set it.
    """

    needs = "nothing but weights, and of each image the task that it is of"

    @property
    def output(self) -> Output:
        """Merged weights for each task."""
        return "model_per_task"

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The hyper-parameters, as the rule's signature states them."""
        return parameters(self.rule, hidden=("survey", "task"))

    def read(
        self, vectors: TaskVectors, inputs: MergeInputs, bound: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The task.

        Raises:
            InputError: no task, or an unknown one.
        """
        if inputs.task not in vectors.tasks:
            allowed = f"one model a task; one of {', '.join(vectors.tasks)} allowed"
            raise InputError(f"{self.rule.__name__}: task: {inputs.task!r}: {allowed}")
        return {"task": inputs.task}


@dataclass(frozen=True)
class Informed(Static):
    """Weights and statistics of data -> weights: `rule(vectors, *, statistics, …) -> StateDict`.

    The rule's argument `statistics` maps tensor names to [T, …] (`MergeInputs.statistics`); it is
    no hyper-parameter. `asks` returns, given the hyper-parameters, which statistics are needed.
    """

    asks: Callable[..., Asked] = field(kw_only=True)
    """The rule's hyper-parameters -> the statistics it needs."""
    needs = "images of the fit split of each task"

    @property
    def reads(self) -> frozenset[Read]:
        """Weights, and statistics that the experts compute from unlabelled inputs."""
        return frozenset({"weights", "inputs", "statistics"})

    @property
    def fits(self) -> bool:
        """Statistics are those of the `fit` split."""
        return True

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The hyper-parameters, as the rule's signature states them."""
        return parameters(self.rule, hidden=("survey", "statistics"))

    def asked(self, params: Mapping[str, Any]) -> Asked:
        """The statistics that the method needs.

        Raises:
            InputError: unknown, missing or wrong parameters.
        """
        return self.asks(**self.bound(params))

    def start_survey(
        self, vectors: TaskVectors, inputs: MergeInputs = NOTHING, **params: Any
    ) -> Survey[Any]:
        """The survey of one shard, not yet started."""
        assert self.survey is not None
        bound = self.bound(params)
        return self.survey(vectors, **self.read(vectors, inputs, bound), **bound)

    def read(
        self, vectors: TaskVectors, inputs: MergeInputs, bound: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The statistics.

        Raises:
            InputError: there are none.
        """
        if inputs.statistics is None:
            name, needed = self.rule.__name__, self.asks(**bound).kind
            raise InputError(f"{name}: statistics: none given; {needed} needed")
        return {"statistics": inputs.statistics}


@dataclass(frozen=True)
class LogitSpace(Row):
    """Outputs of the experts [T, B, D] and a head -> logits [B, C].

    A tensor [C, D] in the place of the head is the weight of a cosine head.
    """

    rule: Callable[Concatenate[Tensor, Tensor | Head, ...], Tensor]
    kind = "logits"
    needs = "the experts' embeddings of each image"
    scope = "model"

    @property
    def output(self) -> Output:
        """A classifier of the experts' outputs."""
        return "logits"

    @property
    def reads(self) -> frozenset[Read]:
        """The experts' embeddings or logits."""
        return frozenset({"expert_logits"})

    def fuse(self, embeddings: Tensor, head: Tensor | Head, **params: Any) -> Tensor:
        """Logits [B, C] of the fused classifier.

        Raises:
            InputError: unknown, missing or wrong parameters.
        """
        return self.rule(embeddings, head, **self.bound(params))


@dataclass(frozen=True)
class Selected(Learned):
    """Scores of candidate soups -> which ingredients are mixed: `rule(*, …) -> Selection`."""

    rule: Callable[..., Selection]
    kind = "selected"
    needs = "labelled images of the select split"

    @property
    def reads(self) -> frozenset[Read]:
        """Weights, and the scores of soups on labelled inputs."""
        return frozenset({"weights", "inputs", "labels"})

    @property
    def learned(self) -> LearnedFile | None:
        """The coding of the chosen soup."""
        return "coding"

    def selection(self, **params: Any) -> Selection:
        """The selection rule of the ingredients.

        Raises:
            InputError: unknown, missing or wrong parameters.
        """
        return self.rule(**self.bound(params))


@dataclass(frozen=True)
class Fitted(Learned):
    """Embeddings and labels of each task -> a classifier of its embeddings, task by task."""

    rule: Callable[Concatenate[Plane, ...], Fit]
    apply: Callable[..., Tensor]
    """(embedded, head, kept, experts, *, …) -> logits [N, C]."""
    select_only: bool = False
    """Whether it reads rows of the `select` split alone, and none of `fit`."""
    kind = "logits"

    @property
    def learned(self) -> LearnedFile | None:
        """The classifier of each task."""
        return "classifier"

    @property
    def output(self) -> Output:
        """A classifier of the experts' outputs."""
        return "logits"

    @property
    def reads(self) -> frozenset[Read]:
        """The experts' embeddings or logits, and labels."""
        return frozenset({"expert_logits", "labels"})

    @property
    def fits(self) -> bool:
        """Whether it reads rows of the `fit` split, and not of `select` alone."""
        return not self.select_only

    @property
    def needs(self) -> str:
        """What it reads beside weights."""
        rows = "fit and select splits" if self.fits else "select split"
        return f"embeddings and labels of the {rows}"

    def fit(self, plane: Plane, **params: Any) -> Fit:
        """Fit the classifier of one task.

        Raises:
            InputError: unknown, missing or wrong parameters; what the rule refuses.
        """
        return self.rule(plane.widened(), **self.bound(params))

    def logits(
        self,
        embedded: Callable[[str], Tensor],
        head: Tensor,
        kept: Mapping[str, Tensor],
        experts: tuple[str, ...],
        **params: Any,
    ) -> Tensor:
        """Logits [N, C] of rows by the fitted classifier of their task, in float32 at least."""
        bound = self.bound(params)
        return self.apply(lambda s: wide(embedded(s)), wide(head), kept, experts, **bound)


@dataclass(frozen=True)
class Adaptive(Learned):
    """Batches -> one coding: `rule(shape, *, …) -> Learning`."""

    rule: Callable[Concatenate[Shape, ...], Learning]
    labelled: bool = False
    """Whether it learns from labels too."""
    kind = "adaptive"

    @property
    def learned(self) -> LearnedFile | None:
        """A coding."""
        return "coding"

    @property
    def reads(self) -> frozenset[Read]:
        """Weights and inputs, and labels where it learns from them."""
        read: frozenset[Read] = frozenset({"weights", "inputs"})
        return read | {"labels"} if self.labelled else read

    @property
    def stepwise(self) -> bool:
        """Always."""
        return True

    @property
    def needs(self) -> str:
        """What it reads beside weights."""
        return f"{'' if self.labelled else 'un'}labelled images of each task"

    def learning(self, shape: Shape, **params: Any) -> Learning:
        """What is learned, and how.

        Raises:
            InputError: unknown, missing or wrong parameters.
        """
        return self.rule(shape, **self.bound(params))

    def trim(self, shape: Shape, **params: Any) -> Trim:
        """How task vectors are trimmed before coefficients are learned on them."""
        return self.learning(shape, **params).trim


@dataclass(frozen=True)
class Gated(Adaptive):
    """Unlabelled batches -> a gate, which gives each sample a coding from its features."""

    kind = "routed"

    @property
    def learned(self) -> LearnedFile | None:
        """The gate."""
        return "gate"

    @property
    def output(self) -> Output:
        """Merged weights for each sample."""
        return "model_per_sample"

    @property
    def needs(self) -> str:
        """What it reads beside weights."""
        return f"{super().needs}, and a frozen network's features of every image"


@dataclass(frozen=True)
class Resident(Learned):
    """Unlabelled batches -> parameters beside the weights: `rule(shape, *, …)` says how."""

    rule: Callable[Concatenate[Shape, ...], ResidentCourse]
    blend: Callable[[TaskVectors, Mapping[str, Tensor], ResidentCourse], dict[str, Tensor]] | None
    """What was learned -> the merged model; None: there is one model a sample."""
    kind = "resident"
    needs = "unlabelled images of each task"

    @property
    def learned(self) -> LearnedFile | None:
        """Routers or masks."""
        return "in_model"

    @property
    def output(self) -> Output:
        """One merged model; without `blend`, one for each sample."""
        return "model_per_sample" if self.blend is None else "one_model"

    @property
    def reads(self) -> frozenset[Read]:
        """Weights and unlabelled inputs."""
        return frozenset({"weights", "inputs"})

    @property
    def stepwise(self) -> bool:
        """Always."""
        return True

    def course(self, shape: Shape, **params: Any) -> ResidentCourse:
        """What is learned, and how.

        Raises:
            InputError: unknown, missing or wrong parameters.
        """
        return self.rule(shape, **self.bound(params))

    def merge(
        self, vectors: TaskVectors, inputs: MergeInputs = NOTHING, **params: Any
    ) -> dict[str, Tensor]:
        """The merged state dict of one shard, by the masks that were learned for its tensors.

        Raises:
            InputError: wrong parameters; what was learned is of other weights; no single model.
        """
        if self.blend is None:
            return super().merge(vectors, inputs, **params)
        course = self.course(Shape(vectors.tasks, vectors.groups), **params)
        return self.blend(vectors, inputs.learned or {}, course)


@dataclass(frozen=True)
class Routed(Row):
    """The experts' logits of a task's rows -> codings: `rule(evidence, *, …) -> Routing`."""

    rule: Callable[Concatenate[Evidence, ...], Routing]
    kind = "routed"
    needs = "the experts' embeddings of each image"
    scope = "model"

    @property
    def output(self) -> Output:
        """Merged weights for each sample, or for each group of samples."""
        return "model_per_sample"

    @property
    def reads(self) -> frozenset[Read]:
        """Weights, and the experts' logits of the rows that are evaluated."""
        return frozenset({"weights", "expert_logits"})

    def whole_task(self, params: Mapping[str, Any]) -> bool:
        """Whether it fits its coefficients to all rows of a task, or reads their labels."""
        return transductive(params) or is_oracle(params)

    def route(self, evidence: Evidence, **params: Any) -> Routing:
        """Which rows go to which merged model.

        Raises:
            InputError: unknown, missing or wrong parameters; what the rule refuses.
        """
        return self.rule(evidence, **self.bound(params))


Method: TypeAlias = Static | LogitSpace | Adaptive | Selected | Fitted | Routed | Resident
