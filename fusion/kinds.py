"""The kinds of method (static, per-task, learned, routed, …): signatures, inputs and outputs.

A row of `fusion.registry.METHODS` is an instance of one kind. Its facts are fields: what the method
returns (`output`), what it reads (`reads`), whether it learns (`learns`, `stepwise`), and what it
needs of a model family (`requires`). Callers ask for facts, not for kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Concatenate, Literal, TypeAlias

from torch import Tensor

from fusion.errors import InputError, unknown
from fusion.logits.head import Head
from fusion.methods.classifiers.interface import Fit, TaskEmbeddings, float32_at_least
from fusion.methods.learned.in_model import InModelPlan, RouterOptions
from fusion.methods.learned.steps import Shape, TrainingPlan
from fusion.methods.routed.dawin import ExpertLogits, Routing, is_oracle, transductive
from fusion.methods.soups.selection import Selection
from fusion.methods.statistics.collect import StatisticsRequest
from fusion.parameters import Parameter, bind, parameters
from fusion.task_vectors.sharded_reduce import Survey, run_surveys
from fusion.task_vectors.sparsify import Trim
from fusion.task_vectors.task_vectors import TaskVectors

Output: TypeAlias = Literal["one_model", "model_per_task", "model_per_sample", "logits"]
"""What a method returns: `one_model` merged weights for all tasks; `model_per_task` merged weights
for each task, so the task of a sample must be known; `model_per_sample` merged weights for each
sample or group of samples, so there is no single model to export; `logits` a classifier that reads
outputs of the experts or of a merged model."""

Read: TypeAlias = Literal["weights", "inputs", "labels", "expert_logits", "statistics"]
"""What a method reads: `weights` of base and experts; `inputs` of the tasks' rows before it is
evaluated (`labels`: with their labels); `expert_logits` the experts' embeddings or logits;
`statistics` of data, computed by the experts (Fisher information, Gram matrices)."""

Requirement: TypeAlias = Literal["embeddings", "cosine_head", "mlp_blocks"]
"""What a method needs of a model family: `embeddings` an output [B, D] before the head;
`cosine_head` class weights [C, D] that are compared with normalised embeddings; `mlp_blocks` blocks
with an MLP that routers can replace."""


LearnedFile: TypeAlias = Literal["coding", "gate", "in_model", "classifier"]
"""Content of a method's learned file: a `coding` (coefficients of task vectors), a `gate` that
computes codings from features, `in_model` parameters that are stored beside the weights in the
shards (routers, masks), or a `classifier` of the experts' outputs for each task."""

NO_SINGLE_MODEL: Mapping[Output, str] = {
    "logits": "fuses logits",
    "model_per_sample": "one model a sample",
    "model_per_task": "one model a task",
}
"""Output -> reason why there is no single merged model, for messages."""


@dataclass(frozen=True, eq=False)
class MergeInputs:
    """Inputs of a merge beside task vectors and hyper-parameters; each kind reads some of them."""

    survey: Any = None
    """Result of the method's survey over all shards; None: computed from the given vectors."""
    statistics: Mapping[str, Tensor] | None = None
    """Tensor name -> statistics of data [T, …], for methods that read statistics."""
    task: str | None = None
    """The expert whose model is wanted, for methods that return one model for each task."""
    learned: Mapping[str, Tensor] | None = None
    """Tensor name -> parameters learned in the shards, for in-model methods."""


NOTHING = MergeInputs()


@dataclass(frozen=True)
class Footprint:
    """What it takes to serve a method's result, in models of the pool's size."""

    models: float = 1.0
    """Models whose weights are in memory; a task vector counts as a model."""
    passes: float = 1.0
    """Forward passes of such a model for one input."""
    masks: int = 0
    """Binary masks, of one bit for each weight of a model, beside them."""
    mlps: float = 0.0
    """Further copies of the weights of all MLP blocks; pruned ones by the share that is kept."""


@dataclass(frozen=True)
class Row:
    """Base class of the kinds of method: the rule (a function), its source, and facts about it."""

    rule: Callable[..., Any]
    paper: str
    defaults: str
    """Where the default hyper-parameters come from."""
    requires: frozenset[Requirement] = field(default=frozenset(), kw_only=True)
    """What a model family must offer for this method."""
    undefined: str = field(default="", kw_only=True)
    """Why the method is not defined without it, for messages; empty: the requirement says it."""
    affine: bool = field(default=False, kw_only=True)
    """Whether the result is an average of base and experts with given shares, so that it is defined
    for any tensors that they have."""

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
        """Content of the file that a trial learns first; None: the method does not learn."""
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

    def transductive(self, params: Mapping[str, Any]) -> bool:
        """Whether a row's result depends on other rows of its task, or on labels."""
        return False

    def merged_by(self, params: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The method whose merged model it reads, with its parameters; None: it reads none."""
        return None

    def footprint(self, experts: int, params: Mapping[str, Any]) -> Footprint:
        """Models, forward passes and masks that its result takes, of a pool of so many experts.

        Raises:
            InputError: unknown, missing or wrong parameters.
        """
        return Footprint()

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

    def survey_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The hyper-parameters that its survey depends on, with defaults; none without a survey."""
        return {}

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
        """The hyper-parameters, read from the rule's signature."""
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

    def supplied(self, *args: Any, bound: Mapping[str, Any]) -> dict[str, Any]:
        """The rule's keyword arguments that are made from its other arguments, for direct calls."""
        return {}


@dataclass(frozen=True)
class Learned(Row):
    """Base class of the kinds whose trials learn from data and store the result in a file."""

    scope = "model"


@dataclass(frozen=True)
class Static(Row):
    """Kind of method that merges weights alone: `rule(vectors, *, …) -> StateDict`."""

    rule: Callable[Concatenate[TaskVectors, ...], dict[str, Tensor]]
    survey: Callable[Concatenate[TaskVectors, ...], Survey[Any]] | None = None
    """The survey's function. Its keyword arguments are those of the rule's parameters that change
    its result, which is the rule's argument `survey`."""
    kind = "static"
    needs = "nothing but weights"

    @property
    def scope(self) -> str:
        """`tensor`: merges tensor by tensor; `model`: needs a survey of the whole model first."""
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
        return self.survey(vectors, **self.survey_params(params))

    def survey_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The hyper-parameters that the survey depends on, with defaults.

        Raises:
            InputError: unknown, missing or wrong parameters.
        """
        assert self.survey is not None
        bound, taken = self.bound(params), parameters(self.survey, hidden=("statistics",))
        return {name: bound[name] for name in taken}

    def read(
        self, vectors: TaskVectors, inputs: MergeInputs, bound: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The keyword arguments that the rule takes from `inputs`, checked."""
        return {}


@dataclass(frozen=True)
class PerTask(Static):
    """Kind of method that merges weights into one model for each task.

    Its rule is `rule(vectors, *, task, …) -> StateDict`. The argument `task` is the expert whose
    model is wanted (`MergeInputs.task`). It is no hyper-parameter, so sweep files cannot set it.
    """

    needs = "nothing but weights, and of each row the task that it is of"

    @property
    def output(self) -> Output:
        """Merged weights for each task."""
        return "model_per_task"

    def footprint(self, experts: int, params: Mapping[str, Any]) -> Footprint:
        """Base, one merged task vector, and a mask for each task."""
        return Footprint(models=2, masks=experts)

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The hyper-parameters, read from the rule's signature."""
        return parameters(self.rule, hidden=("survey", "task"))

    def read(
        self, vectors: TaskVectors, inputs: MergeInputs, bound: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The argument `task`, checked.

        Raises:
            InputError: no task, or an unknown one.
        """
        if inputs.task not in vectors.tasks:
            allowed = f"one model a task; one of {', '.join(vectors.tasks)} allowed"
            raise InputError(f"{self.rule.__name__}: task: {inputs.task!r}: {allowed}")
        return {"task": inputs.task}


@dataclass(frozen=True)
class StatisticsBased(Static):
    """Kind of method that merges weights using statistics of data (Fisher, RegMean).

    Its rule is `rule(vectors, *, statistics, …) -> StateDict`. The argument `statistics` maps
    tensor names to [T, …] (`MergeInputs.statistics`); it is no hyper-parameter. `request` maps the
    hyper-parameters to the statistics that are needed.
    """

    request: Callable[..., StatisticsRequest] = field(kw_only=True)
    """The rule's hyper-parameters -> the statistics it needs."""
    needs = "rows of the fit split of each task"

    @property
    def reads(self) -> frozenset[Read]:
        """Weights, and statistics that the experts compute from unlabelled inputs."""
        return frozenset({"weights", "inputs", "statistics"})

    @property
    def fits(self) -> bool:
        """Statistics are computed on the `fit` split."""
        return True

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The hyper-parameters, read from the rule's signature."""
        return parameters(self.rule, hidden=("survey", "statistics"))

    def statistics_request(self, params: Mapping[str, Any]) -> StatisticsRequest:
        """The statistics that the method needs.

        Raises:
            InputError: unknown, missing or wrong parameters.
        """
        return self.request(**self.bound(params))

    def start_survey(
        self, vectors: TaskVectors, inputs: MergeInputs = NOTHING, **params: Any
    ) -> Survey[Any]:
        """The survey of one shard, not yet started."""
        assert self.survey is not None
        given = self.read(vectors, inputs, self.bound(params))
        return self.survey(vectors, **given, **self.survey_params(params))

    def read(
        self, vectors: TaskVectors, inputs: MergeInputs, bound: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The argument `statistics`.

        Raises:
            InputError: there are none.
        """
        if inputs.statistics is None:
            name, needed = self.rule.__name__, self.request(**bound).kind
            raise InputError(f"{name}: statistics: none given; {needed} needed")
        return {"statistics": inputs.statistics}


@dataclass(frozen=True)
class MethodParameter(Parameter):
    """A hyper-parameter that names another method: its name, or a mapping of it to parameters."""

    methods: Callable[[], Mapping[str, Row]] = dict
    """The table in which methods are looked up."""

    def check(self, value: Any, owner: str) -> dict[str, dict[str, Any]]:
        """A mapping of the method's name to all of its parameters, with defaults.

        Raises:
            InputError: no method, an unknown one, one that does not merge weights alone into one
                model, or parameters that it does not take.
        """
        try:
            return self.resolved(value)
        except InputError as error:
            raise InputError(f"{owner}: {self.name}: {value!r}; {error}") from None

    def complaint(self, value: Any) -> str:
        """What is wrong with a value that `check` refuses."""
        try:
            self.resolved(value)
        except InputError as error:
            return str(error)
        return super().complaint(value)

    def resolved(self, value: Any) -> dict[str, dict[str, Any]]:
        """As `check`, with messages that do not name the owner."""
        given = {value: {}} if isinstance(value, str) else value
        if not isinstance(given, Mapping) or len(given) != 1:
            raise InputError("a method, or a mapping of one method to its parameters, allowed")
        ((name, params),) = given.items()
        if name not in self.methods():
            raise InputError(unknown("method", str(name), self.methods()))
        row = self.methods()[name]
        if row.output != "one_model" or row.reads != {"weights"}:
            raise InputError(f"{name}: a method that merges weights alone into one model allowed")
        if not isinstance(params or {}, Mapping):
            raise InputError(f"{name}: {params!r}: a mapping of parameters, or {{}}, allowed")
        return {name: row.bound(params or {})}


def naming(
    found: Mapping[str, Parameter], methods: Callable[[], Mapping[str, Row]]
) -> dict[str, Parameter]:
    """Hyper-parameters of which `of` names another method, in the table `methods`."""
    of = found["of"]
    named = MethodParameter(of.name, of.annotation, of.default, None, (), methods)
    return {**found, "of": replace(named, default=named.check(of.default, ""))}


@dataclass(frozen=True)
class Composed(Static):
    """Kind of method that changes the result of another merge of weights, or what it merges.

    Its rule is `rule(vectors, *, of, merge, …) -> StateDict`. `of` is the other method with its
    parameters (`MethodParameter`). `merge(vectors)` merges the whole model or some of its tensors
    by that method; it is no hyper-parameter.
    """

    methods: Callable[[], Mapping[str, Row]] = field(kw_only=True)
    """The table in which the other method is looked up."""
    form: Callable[[TaskVectors], TaskVectors] = field(
        default=lambda vectors: vectors, kw_only=True
    )
    """Task vectors in the form in which the rule gives them to the other method. Its survey is made
    of them. Default: as they are."""

    @property
    def surveyed(self) -> bool:
        """Always; the survey is that of the other method, and does nothing if it has none."""
        return True

    @property
    def scope(self) -> str:
        """`model`, because the other method may have a survey."""
        return "model"

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The hyper-parameters, read from the rule's signature."""
        return naming(parameters(self.rule, hidden=("merge",)), self.methods)

    def other(self, bound: Mapping[str, Any]) -> tuple[Row, dict[str, Any]]:
        """The other method and its parameters."""
        ((name, params),) = bound["of"].items()
        return self.methods()[name], params

    def start_survey(
        self, vectors: TaskVectors, inputs: MergeInputs = NOTHING, **params: Any
    ) -> Survey[Any]:
        """The survey of the other method, not yet started."""
        row, its = self.other(self.bound(params))
        if not row.surveyed:
            return no_survey()
        return row.start_survey(self.form(vectors), inputs, **its)

    def survey_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The other method and the parameters that its survey depends on, with defaults."""
        bound = self.bound(params)
        row, its = self.other(bound)
        return {
            "of": {name: row.survey_params(its) if row.surveyed else {} for name in bound["of"]}
        }

    def merge(
        self, vectors: TaskVectors, inputs: MergeInputs = NOTHING, **params: Any
    ) -> dict[str, Tensor]:
        """The treated state dict of a model; of one shard, with the `survey` of all shards.

        Raises:
            InputError: unknown, missing or wrong parameters.
        """
        bound = self.bound(params)
        return self.rule(vectors, **self.read(vectors, inputs, bound), **bound)

    def read(
        self, vectors: TaskVectors, inputs: MergeInputs, bound: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The argument `merge`. A survey of the other method that is not given is made here."""
        row, its = self.other(bound)
        survey = inputs.survey
        if row.surveyed and survey is None:
            survey = run_surveys([row.start_survey(self.form(vectors), **its)])
        return {"merge": lambda some: row.merge(some, MergeInputs(survey=survey), **its)}

    def supplied(self, *args: Any, bound: Mapping[str, Any]) -> dict[str, Any]:
        """The argument `merge`, for direct calls."""
        return self.read(args[0], NOTHING, bound)


def no_survey() -> Survey[None]:
    """A survey that asks nothing."""
    return None
    yield


@dataclass(frozen=True)
class LogitSpace(Row):
    """Kind of method that combines the experts' outputs: [T, B, D] and a head -> logits [B, C].

    A tensor [C, D] in place of the head is the weight of a cosine head.
    """

    rule: Callable[Concatenate[Tensor, Tensor | Head, ...], Tensor]
    kind = "logits"
    needs = "the experts' outputs of each row"
    scope = "model"

    @property
    def output(self) -> Output:
        """A classifier of the experts' outputs."""
        return "logits"

    @property
    def reads(self) -> frozenset[Read]:
        """The experts' embeddings or logits."""
        return frozenset({"expert_logits"})

    def footprint(self, experts: int, params: Mapping[str, Any]) -> Footprint:
        """Every expert that has a weight, with a forward pass of its own."""
        weights = params.get("weights")
        used = experts if weights is None else sum(1 for weight in weights if weight)
        return Footprint(models=used, passes=used)

    def fuse(self, embeddings: Tensor, head: Tensor | Head, **params: Any) -> Tensor:
        """Logits [B, C] of the fused classifier.

        Raises:
            InputError: unknown, missing or wrong parameters.
        """
        return self.rule(embeddings, head, **self.bound(params))


@dataclass(frozen=True)
class Selected(Learned):
    """Kind of method that selects ingredients by scores of soups: `rule(*, …) -> Selection`."""

    rule: Callable[..., Selection]
    kind = "selected"
    needs = "labelled rows of the select split"

    @property
    def reads(self) -> frozenset[Read]:
        """Weights, and the scores of soups on labelled inputs."""
        return frozenset({"weights", "inputs", "labels"})

    @property
    def learned(self) -> LearnedFile | None:
        """The coding of the chosen soup."""
        return "coding"

    def selection(self, **params: Any) -> Selection:
        """The selection rule with its parameters.

        Raises:
            InputError: unknown, missing or wrong parameters.
        """
        return self.rule(**self.bound(params))


@dataclass(frozen=True)
class Fitted(Learned):
    """Kind of method that fits a classifier to embeddings and labels, for each task."""

    rule: Callable[Concatenate[TaskEmbeddings, ...], Fit]
    apply: Callable[..., Tensor]
    """Computes logits [N, C]: (embedded, head, kept, experts, *, …)."""
    select_only: bool = False
    """Whether it reads rows of the `select` split only, and none of `fit`."""
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
        """Whether it reads rows of the `fit` split."""
        return not self.select_only

    @property
    def needs(self) -> str:
        """What it reads beside weights."""
        rows = "fit and select splits" if self.fits else "select split"
        return f"embeddings and labels of the {rows}"

    def footprint(self, experts: int, params: Mapping[str, Any]) -> Footprint:
        """The models whose embeddings it reads: `features` one, `sources` those or base and all
        experts, otherwise the experts."""
        bound = self.bound(params)
        if "features" in bound:
            return Footprint()
        listed = bound.get("sources", range(experts))
        read = experts + 1 if listed is None else len(listed)
        return Footprint(models=read, passes=read)

    def fit(self, data: TaskEmbeddings, **params: Any) -> Fit:
        """Fit the classifier of one task.

        Raises:
            InputError: unknown, missing or wrong parameters; data that the rule refuses.
        """
        return self.rule(data.widened(), **self.bound(params))

    def logits(
        self,
        embedded: Callable[[str], Tensor],
        head: Head,
        kept: Mapping[str, Tensor],
        experts: tuple[str, ...],
        **params: Any,
    ) -> Tensor:
        """Logits [N, C] of rows by the fitted classifier of their task, at least float32."""
        bound = self.bound(params)
        return self.apply(lambda s: float32_at_least(embedded(s)), head, kept, experts, **bound)


@dataclass(frozen=True)
class Adapted(Fitted):
    """Kind of method that learns a module for each task on outputs of a merged model, unlabelled.

    Its rule is `rule(data, *, of, …) -> Fit`. `of` is the method that merges, with its parameters
    (`MethodParameter`). It reads outputs of the source `MERGED`, and those of the task's expert.
    """

    methods: Callable[[], Mapping[str, Row]] = field(kw_only=True)
    """The table in which the other method is looked up."""

    @property
    def reads(self) -> frozenset[Read]:
        """Weights, and the outputs of the merged model and of experts on unlabelled inputs."""
        return frozenset({"weights", "inputs"})

    @property
    def needs(self) -> str:
        """What it reads beside weights."""
        return "unlabelled rows of the fit split of each task"

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The hyper-parameters, read from the rule's signature."""
        return naming(super().parameters, self.methods)

    def merged_by(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """A mapping of the method that merges to its parameters."""
        found: Mapping[str, Any] = self.bound(params)["of"]
        return found

    def footprint(self, experts: int, params: Mapping[str, Any]) -> Footprint:
        """One merged model; the modules are not of its size."""
        return Footprint()


@dataclass(frozen=True)
class Adaptive(Learned):
    """Kind of method that learns one coding from batches: `rule(shape, *, …) -> TrainingPlan`."""

    rule: Callable[Concatenate[Shape, ...], TrainingPlan]
    labelled: bool = False
    """Whether it learns from labels too."""
    kind = "adaptive"

    @property
    def learned(self) -> LearnedFile | None:
        """A coding."""
        return "coding"

    @property
    def reads(self) -> frozenset[Read]:
        """Weights and inputs, and labels if it learns from them."""
        read: frozenset[Read] = frozenset({"weights", "inputs"})
        return read | {"labels"} if self.labelled else read

    @property
    def stepwise(self) -> bool:
        """It always learns in gradient steps."""
        return True

    @property
    def needs(self) -> str:
        """What it reads beside weights."""
        return f"{'' if self.labelled else 'un'}labelled rows of each task"

    def plan(self, shape: Shape, **params: Any) -> TrainingPlan:
        """The training plan for these parameters.

        Raises:
            InputError: unknown, missing or wrong parameters.
        """
        return self.rule(shape, **self.bound(params))

    def trim(self, shape: Shape, **params: Any) -> Trim:
        """Trimming of task vectors before coefficients are learned on them."""
        return self.plan(shape, **params).trim


@dataclass(frozen=True)
class Gated(Adaptive):
    """Kind of method that learns a gate, which computes a coding for each sample from features."""

    kind = "routed"

    @property
    def learned(self) -> LearnedFile | None:
        """The gate."""
        return "gate"

    @property
    def output(self) -> Output:
        """Merged weights for each sample."""
        return "model_per_sample"

    def footprint(self, experts: int, params: Mapping[str, Any]) -> Footprint:
        """Base and all task vectors; the gate and its extractor are not of the pool's size."""
        return Footprint(models=experts + 1)

    @property
    def needs(self) -> str:
        """What it reads beside weights."""
        return f"{super().needs}, and a frozen network's features of every row"


@dataclass(frozen=True)
class InModel(Learned):
    """Kind of method that learns parameters inside the shards (routers, masks), without labels.

    Its rule is `rule(shape, *, …) -> InModelPlan`.
    """

    rule: Callable[Concatenate[Shape, ...], InModelPlan]
    blend: Callable[[TaskVectors, Mapping[str, Tensor], InModelPlan], dict[str, Tensor]] | None
    """Builds the merged model from the learned parameters; None: there is one model for each
    sample."""
    kind = "resident"
    needs = "unlabelled rows of each task"

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
        """It always learns in gradient steps."""
        return True

    def footprint(self, experts: int, params: Mapping[str, Any]) -> Footprint:
        """One blended model; with routers, also the task vectors of the MLPs that they merge."""
        options = self.plan(Shape((), ()), **params).options
        if self.blend is not None or not isinstance(options, RouterOptions):
            return Footprint()
        kept = 1.0 if options.prune is None else 1.0 - options.prune
        return Footprint(mlps=experts * kept)

    def plan(self, shape: Shape, **params: Any) -> InModelPlan:
        """The training plan for these parameters.

        Raises:
            InputError: unknown, missing or wrong parameters.
        """
        return self.rule(shape, **self.bound(params))

    def merge(
        self, vectors: TaskVectors, inputs: MergeInputs = NOTHING, **params: Any
    ) -> dict[str, Tensor]:
        """The merged state dict of one shard, from the masks that were learned for its tensors.

        Raises:
            InputError: wrong parameters; masks of other weights; a method without a single model.
        """
        if self.blend is None:
            return super().merge(vectors, inputs, **params)
        plan = self.plan(Shape(vectors.tasks, vectors.groups), **params)
        return self.blend(vectors, inputs.learned or {}, plan)


@dataclass(frozen=True)
class Routed(Row):
    """Kind of method that computes codings from experts' logits.

    Its rule is `rule(expert_logits, *, …) -> Routing`.
    """

    rule: Callable[Concatenate[ExpertLogits, ...], Routing]
    kind = "routed"
    needs = "the experts' outputs of each row"
    scope = "model"

    @property
    def output(self) -> Output:
        """Merged weights for each sample, or for each group of samples."""
        return "model_per_sample"

    @property
    def reads(self) -> frozenset[Read]:
        """Weights, and the experts' logits of the evaluated rows."""
        return frozenset({"weights", "expert_logits"})

    def footprint(self, experts: int, params: Mapping[str, Any]) -> Footprint:
        """The models whose logits it reads, and the model that is merged by them."""
        bound = self.bound(params)
        two = experts == 1 or bound["expert"] is not None
        read = 2 if two else experts
        if bound["combine"] != "weights":
            return Footprint(models=read, passes=read)
        return Footprint(models=2 if two else experts + 1, passes=read + 1)

    def transductive(self, params: Mapping[str, Any]) -> bool:
        """Whether coefficients depend on all rows of a task, or on labels."""
        return transductive(params) or is_oracle(params)

    def route(self, expert_logits: ExpertLogits, **params: Any) -> Routing:
        """The merged model of each row.

        Raises:
            InputError: unknown, missing or wrong parameters; logits that the rule refuses.
        """
        return self.rule(expert_logits, **self.bound(params))


Method: TypeAlias = Static | LogitSpace | Adaptive | Selected | Fitted | Routed | InModel
