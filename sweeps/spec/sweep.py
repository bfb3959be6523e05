"""Schema of the sweep file: models, tasks, methods, search spaces, metric and placement."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from actors.artifacts.recipe import REFERENCES
from actors.checkpoints.sources import on_modelscope
from actors.experts.metrics import ACCURACY, METRICS, metric_of
from actors.files.documents import dump_yaml
from fusion.errors import InputError
from fusion.registry import METHODS, import_methods
from sweeps.spec.errors import Fault, custom_error, raise_all, spec_errors
from sweeps.spec.fields import EVALUATE, RACING, Racing, check_evaluate, check_reserved
from sweeps.spec.fields import NAME as NAME
from sweeps.spec.fields import NAME_RULE as NAME_RULE
from sweeps.spec.fields import Name as Name
from sweeps.spec.fields import Part as Part
from sweeps.spec.fields import Source as Source
from sweeps.spec.fields import Text as Text
from sweeps.spec.fields import check_names as check_names
from sweeps.spec.method import MethodSpec, read_methods
from sweeps.spec.metric import checked_metric, default_metric, unseen_tasks
from sweeps.spec.shift import ShiftSpec, check_adapted, check_shifts
from sweeps.spec.task import TaskSpec as TaskSpec
from sweeps.spec.trial_key import digest
from sweeps.spec.yaml_file import read

IMPORT = "import"
"""Key of `methods` that names modules with methods; no method has this name."""

SELECTOR = r"^!?(in\([^()]+\)|[^!()]+)$"

Selector = Annotated[
    str,
    Field(pattern=SELECTOR, description="value, !value, in(a, b) or !in(a, b)"),
]


def placed(given: Any) -> Any:
    """A source, or a mapping of names to sources, with hub ids as ids of ModelScope.

    >>> placed({"a": "org/a", "b": "./b"})
    {'a': 'modelscope:org/a', 'b': './b'}
    """
    if isinstance(given, Mapping):
        return {name: placed(value) for name, value in given.items()}
    return on_modelscope(given) if isinstance(given, str) else given


class PoolSpec(Part):
    """The models: one base and the experts that were fine-tuned from it."""

    base: Source = Field(examples=["openai/clip-vit-base-patch32"])
    """The pretrained model that all experts were fine-tuned from."""
    experts: Mapping[Name, Source] = Field(
        min_length=1,
        description="a mapping of at least one name to a hub id or a folder",
        examples=[{"mnist": "tanganke/clip-vit-base-patch32_mnist", "cars": "models/cars"}],
    )
    """Fine-tuned models, or LoRA adapters of the base. An expert of a task has the task's name."""
    platform: Literal["huggingface", "modelscope"] = Field(
        default="huggingface",
        description="huggingface or modelscope (needs its library: "
        "pip install 'fusion-sweeps[modelscope]')",
    )
    """Where ids of base, experts and references are from. Elsewhere, `modelscope:org/name` names
    a model there."""
    preprocessing: Literal["same", "base"] = Field(
        default="same",
        description="same (experts that bring a preprocessing must bring the base's) or base "
        "(all rows are prepared as the base's file says, whatever the experts' say)",
    )
    """Whose preprocessing of images is used where an expert's file differs from the base's."""


class SplitSpec(Part):
    """Splits to fit on, select on and report on."""

    fit: Text = Field(default="train", description="the name of a split")
    """Split that methods learn from and take statistics of."""
    select: Text = Field(default="val", description="the name of a split", examples=["validation"])
    """Split that hyper-parameters are selected on. `val` is taken off `fit` where it is no split of
    the data."""
    report: Text = Field(default="test", description="the name of a split")
    """Split that the comparison reports. To select on it, write `select` out."""
    val_fraction: float = Field(
        default=0.1, gt=0, lt=1, strict=True, description="a number between 0 and 1, both excluded,"
    )
    """Share of the rows of `fit` that `val` takes where the data have no such split."""
    seed: int = Field(default=0, ge=0, strict=True, description="an integer of at least 0")
    """Seed of the choice of those rows."""

    @property
    def select_spelled(self) -> bool:
        """Whether the file names the split to select on."""
        return "select" in self.model_fields_set

    @model_validator(mode="after")
    def _honest(self) -> SplitSpec:
        if self.select == self.report and not self.select_spelled:
            reason = f"selecting on it needs 'select: {self.report}' spelled out"
            raise_all([Fault(("report",), self.report, reason)])
        return self


def check_share(value: Any) -> float | Literal["auto"] | None:
    """Return `value` if it is a fraction of a GPU, `auto` or None."""
    if value is None or value == "auto":
        return None if value is None else "auto"
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        allowed = "a fraction of a GPU for each shard, auto, or null (a whole one), allowed"
        raise custom_error(allowed)
    return float(value)


def check_precision(value: Any) -> Any:
    """Return `value` unless it is a name of fp16, which is refused with the reason."""
    if value in ("fp16", "float16", "half"):
        raise custom_error(
            "no fp16: activations overflow in it, and on CPUs its products are slower than"
            " fp32's; fp32, tf32 or bf16 allowed"
        )
    return value


ProductPrecision: TypeAlias = Annotated[
    Literal["fp32", "tf32", "bf16"], BeforeValidator(check_precision)
]


class PlacementSpec(Part):
    """Placement of the experts: replicas, shards, devices, dtypes; `auto` leaves all to the
    planner."""

    replicas: int | None = Field(
        default=None,
        ge=1,
        strict=True,
        description="an integer of at least 1, or null (as many as fit),",
        examples=[2],
    )
    """Copies of the pool; each evaluates one trial at a time."""
    shards: int | None = Field(
        default=None,
        ge=1,
        strict=True,
        description="an integer of at least 1, or null (as few as fit),",
        examples=[4],
    )
    """Parts that each replica is cut into, each on a device of its own."""
    gpus: Annotated[float | Literal["auto"] | None, PlainValidator(check_share)] = Field(
        default=None,
        description="a fraction of a GPU for each shard, auto, or null (a whole one),",
        examples=[0.5],
    )
    """GPU of a shard. `auto`: as small a part, to a quarter, as holds the measured peak memory of a
    replica."""
    labels: Mapping[Text, Selector] = Field(
        default_factory=dict,
        description="a mapping of node labels to selectors",
        examples=[{"gpu": "in(a100, h100)"}],
    )
    """Labels that nodes need to be given experts."""
    transport: Literal["store", "direct"] = Field(
        default="store", description="store (Ray's object store) or direct (GPU to GPU)"
    )
    """How activations go from shard to shard."""
    weights: Literal["memory", "files", "factored"] = Field(
        default="memory",
        description="memory (task vectors are loaded once), files (they stay in the experts' "
        "files, and are made a tensor at a time) or factored (of experts that are all adapters, "
        "their low-rank factors are loaded),",
    )
    """Where task vectors are held."""
    dtype: Literal["float32", "float16", "bfloat16", "float64"] = Field(
        default="float32", description="float32, float16, bfloat16 or float64"
    )
    """What weights and activations are computed in."""
    delta_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="float32 or bfloat16"
    )
    """What task vectors are rounded to where they are held in memory; sums stay float32."""
    result_dtype: Literal["base", "float32"] = Field(
        default="base", description="base (each tensor's dtype in the base) or float32"
    )
    """What fused models are rounded to, where they are measured and where they are exported."""
    precision: ProductPrecision = Field(
        default="fp32", description="fp32, tf32 (GPUs) or bf16", examples=["bf16"]
    )
    """Precision of the products of activations with weights where methods learn, and where models
    are measured to be chosen: of rows of `fit` and `select`. Merges and statistics stay exact."""
    report_precision: ProductPrecision = Field(
        default="fp32", description="fp32, tf32 (GPUs) or bf16", examples=["fp32"]
    )
    """The same where models are measured for the report."""
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto, cpu or cuda")
    """`auto`: GPUs where the cluster has them."""

    @property
    def precisions(self) -> dict[str, str]:
        """Field -> precision."""
        return {"precision": self.precision, "report_precision": self.report_precision}

    @property
    def reduced(self) -> dict[str, str]:
        """Field -> precision, of those that are not fp32."""
        return {field: value for field, value in self.precisions.items() if value != "fp32"}

    @property
    def narrow(self) -> dict[str, str]:
        """`delta_dtype` and its value, if it is not float32."""
        return {} if self.delta_dtype == "float32" else {"delta_dtype": self.delta_dtype}

    @model_validator(mode="after")
    def _in_memory(self) -> PlacementSpec:
        if self.narrow and self.weights != "memory":
            reason = f"task vectors are not held with weights: {self.weights}; float32 allowed"
            raise_all([Fault(("delta_dtype",), self.delta_dtype, reason)])
        return self

    @model_validator(mode="after")
    def _of_float32(self) -> PlacementSpec:
        if self.dtype != "float32" and self.reduced:
            reason = f"models in {self.dtype} are multiplied in {self.dtype}: fp32 allowed"
            raise_all([Fault((name,), value, reason) for name, value in self.reduced.items()])
        return self


class StoreSpec(Part):
    """MLflow store and experiment."""

    tracking_uri: Text | None = Field(
        default=None,
        description="a tracking URI, or null (a sqlite file under outputs/),",
        examples=["http://mlflow.example.org:5000"],
    )
    """Store of the runs."""
    experiment: Text | None = Field(
        default=None, description="a name, or null (the default),", examples=["merging"]
    )
    """Experiment of the runs."""


class MlflowSpec(StoreSpec):
    """MLflow store and experiment of a sweep, and which models it gets."""

    max_model_mb: float = Field(
        default=100, ge=0, allow_inf_nan=False, description="a number of megabytes, at least 0,"
    )
    """Merged models of at most this size are stored in MLflow, where `models:/…` loads them; 0:
    none is."""


def own_tasks(validated: dict[str, Any]) -> dict[str, TaskSpec]:
    """Default of `tasks`: each expert is evaluated on the data set of its own name."""
    return {name: TaskSpec(dataset=name) for name in validated["pool"].experts}


def unreserved(name: str) -> str:
    """Return `name` if a sweep's folder may have it."""
    try:
        return check_reserved(name)
    except ValueError as error:
        raise custom_error(str(error)) from None


def unlike_rows(references: Mapping[str, str]) -> Mapping[str, str]:
    """Return `references` if none has the name of another row."""
    for name in references:
        if name in REFERENCES or name in METHODS:
            what = "a method" if name in METHODS else "another row"
            raise custom_error(f"{name!r} is the name of {what}; another name needed")
    return references


named = [f"{kind}/{what}" for kind in METRICS for what in ("mean", "<task>")]


class SweepSpec(Part):
    """A sweep file."""

    name: Annotated[str, AfterValidator(unreserved)] = Field(
        pattern=f"^{NAME.pattern}$", max_length=100, description=NAME_RULE, examples=["eight-tasks"]
    )
    """The sweep's folder under outputs/, and its name in MLflow."""
    pool: PoolSpec = Field(description="a mapping of base and experts")
    """The models."""
    references: Annotated[Mapping[Name, Source], AfterValidator(unlike_rows)] = Field(
        default={},
        description="a mapping of names to a hub id or a folder",
        examples=[{"mtl": "models/multi-task", "other_tool": "models/mergekit-out"}],
    )
    """Finished models of the pool's family that are evaluated beside the methods, each a row of its
    name: a model of multi-task training, or a merge of another tool. They are shown among the
    references and never win."""
    tasks: Mapping[Name, TaskSpec] = Field(
        default_factory=own_tasks,
        min_length=1,
        description="a mapping of at least one name to {dataset: …}",
    )
    """Tasks that are evaluated. Default: one for each expert, whose data set has the expert's name.
    A task without an expert is unseen: it is evaluated and never learned from."""
    splits: SplitSpec = Field(
        default=SplitSpec(), description="a mapping of fit, select, report, val_fraction and seed"
    )
    """Splits of the data, and what each is used for."""
    methods: Annotated[Mapping[str, MethodSpec], BeforeValidator(read_methods)] = Field(
        description="a mapping of at least one method to its parameters",
        examples=[{"task_arithmetic": {"scale": {"grid": [0.3, 0.5]}}}],
    )
    """Methods that are compared. `sweeps methods` lists them with their parameters."""
    metric: str = Field(
        default_factory=lambda validated: default_metric(validated.get("tasks", {})),
        validate_default=True,
        description=f"{', '.join(named[:-1])} or {named[-1]}",
        examples=["acc/mean"],
    )
    """What hyper-parameters are selected by. The default is `score/mean` if a task has a metric of
    its own, else `acc/mean`. With unseen tasks, a mean is that over the seen ones: `acc/seen`,
    `nll/seen`."""
    evaluate: Annotated[Any, PlainValidator(check_evaluate)] = Field(
        default="all", description=f"{EVALUATE},", examples=["racing"]
    )
    """How much of `select` candidates are measured on. `racing` finds the same winner with fewer
    rows; with a confidence, the same one with that probability. For methods that make one model
    without learning, searched by grids or at random; needs accuracy as the metric."""
    seed: int = Field(default=0, ge=0, strict=True, description="an integer of at least 0")
    """Seed of searches, and of methods that draw."""
    placement: Annotated[
        PlacementSpec, BeforeValidator(lambda given: {} if given == "auto" else given)
    ] = Field(
        default=PlacementSpec(),
        description="auto, or a mapping of replicas, shards, gpus, labels, transport, weights, "
        "dtype, delta_dtype, result_dtype, precision, report_precision and device,",
    )
    """Replicas, shards and devices. `auto`: the planner decides."""
    shifts: Mapping[Name, ShiftSpec] = Field(
        default={},
        description="a mapping of names to {corruption: …, severity: …} or {dataset: …}",
        examples=[{"noise": {"corruption": "gaussian_noise", "severity": 3}}],
    )
    """What rows are also measured on at the end; nothing is chosen by it."""
    adapt_on_shift: Text | None = Field(
        default=None,
        description="the name of a corruption among `shifts`, or null",
        examples=["noise"],
    )
    """Methods adapt to images under it, and take statistics of such, in the place of clean ones."""
    batch_norm: Literal["reestimate", "average"] = Field(
        default="reestimate",
        description="reestimate (measured on unlabelled rows of `fit`) or average",
    )
    """Running statistics of merged models with batch norm. `average`: the mean of the experts', of
    selected ingredients, or with the shares of a weighted average."""
    mlflow: MlflowSpec = Field(
        default=MlflowSpec(), description="a mapping of tracking_uri, experiment and max_model_mb"
    )
    """Where runs are logged."""

    _imports: tuple[str, ...] = ()

    @property
    def imports(self) -> tuple[str, ...]:
        """Modules with methods of other packages: `methods.import` of the file, and `--import`."""
        return self._imports

    @property
    def racing(self) -> Racing | None:
        """How candidates are raced; None: each is measured on all rows."""
        if self.evaluate == "all":
            return None
        return Racing(**({} if self.evaluate == RACING else self.evaluate[RACING]))

    @property
    def unseen(self) -> tuple[str, ...]:
        """Tasks that are evaluated only: see `unseen_tasks`."""
        return unseen_tasks(self.pool.experts, self.tasks)

    @property
    def seen(self) -> tuple[str, ...]:
        """All other tasks: methods learn from them, fit to them, and are selected on them."""
        return tuple(name for name in self.tasks if name not in self.unseen)

    @property
    def mode(self) -> Literal["min", "max"]:
        """Direction of the metric."""
        return "max" if metric_of(self.metric).larger_is_better else "min"

    @model_validator(mode="before")
    @classmethod
    def _on_platform(cls, given: Any) -> Any:
        pool = given.get("pool") if isinstance(given, Mapping) else None
        if not isinstance(pool, Mapping) or pool.get("platform") != "modelscope":
            return given
        models = {k: placed(v) if k in ("base", "experts") else v for k, v in pool.items()}
        return {k: placed(v) if k == "references" else v for k, v in given.items()} | {
            "pool": models
        }

    @model_validator(mode="after")
    def _shifts(self) -> SweepSpec:
        check_shifts(self.shifts, self.tasks)
        check_adapted(self.adapt_on_shift, self.shifts)
        return self

    @model_validator(mode="after")
    def _raced_by_accuracy(self) -> SweepSpec:
        if self.racing and self.metric.partition("/")[0] != ACCURACY.name:
            reason = f"bounds are those of accuracies, and the metric is {self.metric}: all allowed"
            raise_all([Fault(("evaluate",), self.evaluate, reason)])
        return self

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str, info: ValidationInfo) -> str:
        # Where the tasks are at fault, their names are not known, and theirs is the line to print.
        if not info.data.keys() >= {"tasks", "pool"}:
            return metric
        return checked_metric(metric, info.data["tasks"], info.data["pool"].experts)


def load(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    modules: Sequence[str] = (),
    *,
    importing: bool = True,
) -> SweepSpec:
    """Load the sweep file at `path` and apply `key=value` overrides (dotted keys, YAML values).

    Args:
        path: the file.
        overrides: as `--set` gives them.
        modules: further modules with methods, beside those of `methods.import`.
        importing: whether modules may be imported; a file among results is not trusted so far.

    Raises:
        InputError: no such file, not YAML, or a module that cannot be imported.
        SpecErrors: an InputError with one line for each fault in `lines`.
    """
    data = read(path, overrides)
    return load_data(data, str(path), modules, importing=importing)


def load_data(
    data: Any, file: str, modules: Sequence[str] = (), *, importing: bool = True
) -> SweepSpec:
    """Import the modules that plain data of a sweep file names, then validate it. See `load`."""
    rest, named = without_imports(data, file)
    every = tuple(dict.fromkeys((*named, *modules)))
    if importing:
        import_methods(every, [Path(file).parent, Path.cwd()], where=f"{file}: methods.import")
    spec = validate(rest, file)
    spec._imports = every
    return spec


def without_imports(data: Any, file: str) -> tuple[Any, list[str]]:
    """A sweep file's content without `methods.import`, and the modules named there.

    Raises:
        InputError: no name, and no list of names.
    """
    methods = data.get("methods") if isinstance(data, Mapping) else None
    if not isinstance(methods, Mapping) or IMPORT not in methods:
        return data, []
    given = methods[IMPORT]
    names = given if isinstance(given, list) else [given]
    if not all(isinstance(name, str) for name in names):
        raise InputError(
            f"{file}: methods.import: {given!r}: the name of a module, or a list of names, allowed"
        )
    rest = {name: entry for name, entry in methods.items() if name != IMPORT}
    return {**data, "methods": rest}, names


def validate(data: Any, file: str) -> SweepSpec:
    """Validate plain data as a sweep file; error messages name `file`.

    Raises:
        SpecErrors: an InputError with one line for each fault in `lines`.
        InputError: data that holds itself.
    """
    try:
        return SweepSpec.model_validate(data)
    except ValidationError as error:
        raise spec_errors(error, SweepSpec, file) from None
    except RecursionError:
        raise InputError(f"{file}: an alias that holds itself: plain data needed") from None


def dump(spec: SweepSpec) -> str:
    """YAML of a sweep file, with the defaults written out; it loads back equal."""
    data = spec.model_dump(mode="json")
    if not spec.splits.select_spelled:
        del data["splits"]["select"]
    if not spec.references:
        del data["references"]
    if spec.racing is None:
        del data["evaluate"]
    if spec.pool.platform == "huggingface":
        del data["pool"]["platform"]
    if spec.batch_norm == "reestimate":
        del data["batch_norm"]
    if spec.imports:
        data["methods"] = {IMPORT: list(spec.imports), **data["methods"]}
    return dump_yaml(data, allow_unicode=True)


def spec_hash(spec: SweepSpec) -> str:
    """Hash of what decides a sweep's numbers, 16 hex digits; independent of the order of keys.

    Left out, since the same results come of any of them (to rounding, on another device or from
    factors): `name` (a folder), `mlflow` (where results are written), and of `placement` replicas,
    shards, device and weights (where they are computed, and from what; its `dtype`, `result_dtype`
    and precisions are rounding, and stay).
    """
    return digest(deciding(spec))


def deciding(spec: SweepSpec) -> dict[str, Any]:
    """The part of a sweep file that decides its numbers, as plain data."""
    data = spec.model_dump(mode="json", exclude={"name", "mlflow", "placement"})
    del data["pool"]["preprocessing"]  # what is computed is the same with either
    del data["pool"]["platform"]  # an id on another platform says so itself
    for name in ("shifts", "references"):
        if not data[name]:
            del data[name]
    if spec.racing is None:
        del data["evaluate"]
    if spec.batch_norm == "reestimate":
        del data["batch_norm"]
    if spec.adapt_on_shift is None:
        del data["adapt_on_shift"]
    else:  # shifts may change under a sweep; this one, which is learned from, may not
        data["adapt_on_shift"] = {
            "name": spec.adapt_on_shift,
            **data["shifts"][spec.adapt_on_shift],
        }
    for task in data["tasks"].values():
        if task["head"] is None:
            del task["head"]
    if spec.placement.result_dtype != "base":
        data["result_dtype"] = spec.placement.result_dtype
    return {
        **data,
        "dtype": spec.placement.dtype,
        **spec.placement.reduced,
        **spec.placement.narrow,
    }
