"""Schema of the training file: a base, tasks, and how experts are fine-tuned."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Annotated, Any

from pydantic import (
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from actors.families.protocol import Training
from actors.families.registry import family_by_config, trainings
from actors.training.lora import Lora
from fusion.errors import InputError, unknown
from fusion.parameters import Parameter, parameters
from sweeps.spec.errors import Fault, custom_error, raise_all, spec_errors
from sweeps.spec.fields import Source
from sweeps.spec.method import RESERVED, MethodSpec, read_parameter, searcher_faults, trials_faults
from sweeps.spec.search_space import Choice, Grid, parse, spaces
from sweeps.spec.shift import ShiftSpec, check_shifts
from sweeps.spec.sweep import (
    NAME,
    NAME_RULE,
    Part,
    SplitSpec,
    StoreSpec,
    TaskSpec,
    Text,
    check_names,
)
from sweeps.spec.yaml_file import read
from sweeps.train.ingredients import Keep
from sweeps.train.population.population_spec import population_faults

OURS = ("threads", "device", "advance", "sizes", "state", "look", "probe", "stops")
"""Arguments that the program sets; they are not hyper-parameters."""

GROUPS: Mapping[str, type[Any]] = {"lora": Lora}
"""Hyper-parameters that are mappings -> the dataclass of their fields."""

FAMILY = "family"
"""Key of `pretrain` that names the family of the base."""


@dataclass(frozen=True)
class FileFamily:
    """The family that a training file is of."""

    name: str
    training: Training


def schema(function: Callable[..., Any]) -> dict[str, Parameter]:
    """Hyper-parameters of a training function, or of its options, from the signature."""
    return parameters(function, hidden=OURS)


def default_family() -> str:
    """The family that `pretrain` makes a base of where it names none: the first that can."""
    return next(name for name, each in trainings().items() if each.pretraining is not None)


def family_of_file(raw: Any) -> FileFamily:
    """The family of a training file: that of its base, or the one that `pretrain` names.

    Of a base nothing but `config.json` is read. A base that cannot be found is refused when it is
    opened; until then the file is read as of the default family.

    Raises:
        InputError: a family whose models cannot be fine-tuned here.
    """
    given: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {}
    base, pretrain, found = given.get("base"), given.get("pretrain"), trainings()
    name = default_family()
    if isinstance(base, str) and pretrain is None:
        with suppress(InputError):
            name = family_by_config(base, "base").name
        if name not in found:
            raise InputError(
                f"base: {base!r}: models of the family {name!r} cannot be fine-tuned here; those of"
                f" {', '.join(found)} can"
            )
    elif isinstance(pretrain, Mapping) and pretrain.get(FAMILY) in found:
        name = pretrain[FAMILY]
    return FileFamily(name, found[name])


def known_family(info: ValidationInfo) -> FileFamily:
    """The family that the file is validated for."""
    found: FileFamily = (info.context or {})[FAMILY]
    return found


def unknown_parameter(key: str, family: str, known: Mapping[str, Any]) -> str:
    """The message about a key that is no hyper-parameter of a family, of another family or none."""
    others = [
        name for name, each in trainings().items() if name != family and key in schema(each.options)
    ]
    allowed = (*known, *RESERVED)
    if not others:
        return unknown("parameter", key, allowed)
    return (
        f"a hyper-parameter of {', '.join(others)} models; the base is a {family} model;"
        f" {', '.join(allowed)} allowed"
    )


def searched(raw: Any, info: ValidationInfo) -> MethodSpec:
    """Read `finetune` for the file's family; a base that is made here has defaults of its own."""
    family = known_family(info)
    made = family.training.pretraining
    if made is not None and info.data.get("pretrain") is not None and isinstance(raw, Mapping):
        raw = {**made.fine_tuning, **raw}
    return read_search(raw, family)


def read_search(raw: Any, family: FileFamily) -> MethodSpec:
    """Read `finetune`: hyper-parameters (fixed or with spaces), trials, searcher, scheduler."""
    known, faults, params = schema(family.training.options), [], {}
    if not isinstance(raw, Mapping):
        raise_all([Fault((), raw, "a mapping of hyper-parameters, or {}, allowed")])
    for key, value in raw.items():
        if key in RESERVED:
            continue
        if key not in known:
            hint = unknown_parameter(str(key), family.name, known)
            faults.append(Fault((str(key),), value, hint))
            continue
        try:
            group = GROUPS.get(key)
            params[key] = (
                read_parameter(known[key], value) if group is None else read_group(group, value)
            )
        except Fault as fault:
            faults.append(fault.under(key))
    sampled = list(MethodSpec(params=params).sampled.values())
    faults += trials_faults(raw.get("trials"), bool(sampled))
    faults += searcher_faults(raw.get("searcher", "random"), sampled)
    faults += own_faults(raw, params, family.training)
    if faults:
        raise_all(faults)
    return MethodSpec(params=params, **{key: raw[key] for key in RESERVED if key in raw})


def read_group(options: type[Any], raw: Any) -> Any:
    """Read a hyper-parameter that is a mapping of others: null, fields with values or spaces, or a
    grid or choice of whole mappings. Defaults are filled in.

    Raises:
        Fault: with the path inside the parameter.
    """
    value, known = parse(raw), schema(options)
    if isinstance(value, Grid | Choice):
        word, found = type(value).__name__.lower(), []
        for at, each in enumerate(value.values):
            try:
                found.append(read_group(options, each))
            except Fault as fault:
                raise fault.under(word, at) from None
        return type(value)(tuple(found))
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise Fault((), raw, f"null or a mapping of {', '.join(known)} allowed")
    given = {}
    for key, inner in value.items():
        if key not in known:
            raise Fault((key,), raw[key], unknown("parameter", key, known))
        try:
            given[key] = read_parameter(known[key], inner)
        except Fault as fault:
            raise fault.under(key) from None
    return {name: given.get(name, parse(each.default)) for name, each in known.items()}


def check_targets(entry: MethodSpec, allowed: Sequence[str], base: str) -> None:
    """Raise InputError where a value of `lora.targets` is none of the layers that can be adapted.

    Args:
        entry: of the search.
        allowed: names of the layers.
        base: of which model, for the message.
    """
    for group in alternatives(entry.params.get("lora")):
        for given in alternatives(group["targets"]) if group else ():
            names = [name for part in given for name in alternatives(part)]
            wrong = [name for name in names if name not in allowed]
            if wrong or not names:
                raise InputError(
                    f"finetune.lora.targets: {(wrong or [given])[0]!r}: layers of {base} needed:"
                    f" {', '.join(allowed)}"
                )


def alternatives(value: Any) -> Sequence[Any]:
    """The values that a parameter can take, if they are listed; a fixed one alone."""
    return value.values if isinstance(value, Grid | Choice) else (value,)


def own_faults(
    raw: Mapping[str, Any], params: Mapping[str, Any], training: Training
) -> list[Fault]:
    """Faults of fine-tuning only: its schedulers, values that the family refuses."""
    found, scheduler = [], raw.get("scheduler")
    if scheduler not in (None, "asha", "pbt"):
        found.append(Fault(("scheduler",), scheduler, "null, 'asha' or 'pbt' allowed"))
    if scheduler == "pbt":
        searcher = raw.get("searcher", "random")
        found += population_faults(params, raw.get("trials"), searcher, training.stepwise)
    for name, (refused, reason) in training.refused.items():
        given = params.get(name)
        inside = [value for _, space in spaces(given) for value in getattr(space, "values", ())]
        if given == refused or refused in inside:
            found.append(Fault((name,), raw[name], reason))
    return found


def check_keep(value: Any) -> Keep:
    """Return `value` if it is a valid number of ingredients to keep."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value not in ("best", "all") and not is_count:
        raise custom_error("best, all or an integer of at least 1 allowed")
    kept: Keep = value
    return kept


def read_pretrain(raw: Any, info: ValidationInfo) -> dict[str, Any] | None:
    """Read `pretrain`: family, sizes of its models and hyper-parameters, fixed values only."""
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise_all([Fault((), raw, "a mapping of sizes and hyper-parameters, or {}, allowed")])
    made = known_family(info).training.pretraining
    named, makers = raw.get(FAMILY), [n for n, each in trainings().items() if each.pretraining]
    if made is None or named not in (None, *makers):
        reason = f"no family that a base can be made of; {', '.join(makers)} allowed"
        raise_all([Fault((FAMILY,), named, reason)])
    sizes = {f.name: Parameter(f.name, int, f.default, None) for f in fields(made.sizes)}
    known, faults, params = {**sizes, **schema(made.pretrain)}, [], {}
    known.pop("seed", None)  # the file's own
    for key, value in raw.items():
        if key == FAMILY:
            params[key] = value
            continue
        try:
            if key not in known:
                raise Fault((), value, unknown("parameter", str(key), known))
            params[key] = read_parameter(known[key], value)
        except Fault as fault:
            faults.append(fault.under(str(key)))
    if faults:
        raise_all(faults)
    return params


class SyntheticSpec(Part):
    """A second, synthetic data set of a task, and its filters; all rows must pass all of them."""

    dataset: Source = Field(examples=["data/drawn-flowers"])
    """The data set, of the task's classes. Its split `train` is used, or its only one. Columns are
    called as the task's."""
    clip_filter: bool = Field(True, description="true or false")
    """Drops images whose class has too small a probability by the base with its zero-shot head."""
    threshold: float | None = Field(
        None, ge=0, lt=1, description="a number in [0, 1), or null (1 / number of classes)"
    )
    """Probability that `clip_filter` needs more than."""
    per_class: int | None = Field(
        None, ge=1, strict=True, description="an integer of at least 1, or null (all)"
    )
    """Images of a class that `clip_filter` keeps at most: those of the largest probability."""
    real_filter: bool = Field(True, description="true or false")
    """Drops images whose embedding by the base is nearer to that of a real fit image of another
    class than to any of their own."""

    @model_validator(mode="after")
    def _filtered(self) -> SyntheticSpec:
        given = {"threshold": self.threshold, "per_class": self.per_class}
        faults = [
            Fault((name,), value, "belongs to clip_filter, which is false; null allowed")
            for name, value in given.items()
            if value is not None and not self.clip_filter
        ]
        if faults:
            raise_all(faults)
        return self


class TrainTaskSpec(TaskSpec):
    """A task of a training file."""

    synthetic: SyntheticSpec | None = Field(
        None, description="a mapping of dataset and filters, or null"
    )
    """Synthetic images that experts are also trained on; `finetune.synthetic_share` mixes them."""


class TrainSpec(Part):
    """A training file."""

    name: str = Field(pattern=f"^{NAME.pattern}$", description=NAME_RULE, examples=["my-experts"])
    """Name of the training."""
    out: Text = Field(
        description="the folder that gets base/ and experts/<task>/",
        examples=["outputs/my-experts"],
    )
    """Folder of what is made."""
    base: Text | None = Field(
        None, description="a hub id or a folder", examples=["openai/clip-vit-base-patch32"]
    )
    """Model that fine-tuning starts from. A file has this or `pretrain`."""
    pretrain: Annotated[dict[str, Any] | None, PlainValidator(read_pretrain)] = Field(
        None, description="a mapping of sizes and hyper-parameters", examples=[{"steps": 1000}]
    )
    """Makes a small base first, from the tasks' data."""
    tasks: Mapping[str, TrainTaskSpec] = Field(
        min_length=1,
        description="a mapping of names to {dataset: …}",
        examples=[{"flowers": {"dataset": "data/flowers"}}],
    )
    """Tasks, as in a sweep file; an expert is made for each."""
    splits: SplitSpec = Field(
        SplitSpec(), description="a mapping of fit, select, report, val_fraction and seed"
    )
    """Splits, as in a sweep file."""
    finetune: Annotated[MethodSpec, PlainValidator(searched)] = Field(
        default_factory=dict,
        validate_default=True,
        description="a mapping of hyper-parameters",
        examples=[{"learning_rate": {"loguniform": [1e-5, 1e-3]}, "epochs": 3, "trials": 8}],
    )
    """Hyper-parameters of fine-tuning, fixed or searched: see below."""
    keep: Annotated[Keep, PlainValidator(check_keep)] = Field(
        "best", description="best, all or an integer of at least 1"
    )
    """Number of ingredients of a task that are kept on disk."""
    shifts: Mapping[str, ShiftSpec] = Field(
        default_factory=dict,
        description="a mapping of names to {corruption: …, severity: …} or {dataset: …}",
    )
    """Shift sets on which kept ingredients are also evaluated."""
    seed: int = Field(0, ge=0, strict=True, description="an integer of at least 0")
    """Seed of the base that is made, and of the search."""
    mlflow: StoreSpec = Field(StoreSpec(), description="a mapping of tracking_uri and experiment")
    """Where fine-tunings are logged, as in a sweep file; the default is a file beside `out`."""

    @field_validator("tasks", "shifts")
    @classmethod
    def _names(cls, named: Mapping[str, Any]) -> Mapping[str, Any]:
        return check_names(named)

    @field_serializer("finetune")
    def _searched(self, found: MethodSpec) -> dict[str, Any]:
        return found.model_dump(mode="json")

    @model_validator(mode="after")
    def _one_base(self) -> TrainSpec:
        if (self.base is None) == (self.pretrain is None):
            reason = "exactly one of base and pretrain needed"
            raise_all([Fault(("base",), self.base, reason)])
        check_shifts(self.shifts, self.tasks)
        reason = "finetune.head says under which head is tuned; null allowed"
        faults = [
            Fault(("tasks", name, "head"), task.head, reason)
            for name, task in self.tasks.items()
            if task.head is not None
        ]
        if faults:
            raise_all(faults)
        return self


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> TrainSpec:
    """Load the training file at `path` and apply `key=value` overrides.

    Raises:
        InputError: no such file, not YAML, or a base of a family that is only merged.
        SpecErrors: an InputError with one line for each fault in `lines`.
    """
    try:
        raw = read(path, overrides)
        family = family_of_file(raw)
        return TrainSpec.model_validate(raw, context={FAMILY: family})
    except ValidationError as error:
        raise spec_errors(error, TrainSpec, str(path)) from None
