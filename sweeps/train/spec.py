"""Schema of the training file: a base, tasks, and how experts are fine-tuned."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any

from pydantic import (
    Field,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from actors.families.registry import trained_family
from fusion.errors import unknown
from fusion.parameters import Parameter, parameters
from sweeps.spec.errors import Fault, custom_error, raise_all, spec_errors
from sweeps.spec.method import RESERVED, MethodSpec, read_parameter, searcher_faults, trials_faults
from sweeps.spec.search_space import spaces
from sweeps.spec.shift import ShiftSpec, check_shifts
from sweeps.spec.sweep import NAME, NAME_RULE, Part, SplitSpec, TaskSpec, Text, check_names
from sweeps.spec.yaml_file import read
from sweeps.train.ingredients import Keep
from sweeps.train.population_spec import population_faults

OURS = ("threads", "device", "advance", "sizes", "state", "look", "probe", "stops")
"""Arguments that the program sets; they are not hyper-parameters."""

TRAINING = trained_family()

SIZES = {
    field.name: Parameter(field.name, int, field.default, None) for field in fields(TRAINING.sizes)
}


def schema(function: Callable[..., Any]) -> dict[str, Parameter]:
    """Hyper-parameters of a training function, or of its options, from the signature."""
    return parameters(function, hidden=OURS)


def read_search(raw: Any) -> MethodSpec:
    """Read `finetune`: hyper-parameters (fixed or with spaces), trials, searcher, scheduler."""
    known, faults, params = schema(TRAINING.options), [], {}
    if not isinstance(raw, Mapping):
        raise_all([Fault((), raw, "a mapping of hyper-parameters, or {}, allowed")])
    for key, value in raw.items():
        if key in RESERVED:
            continue
        if key not in known:
            hint = unknown("parameter", str(key), (*known, *RESERVED))
            faults.append(Fault((str(key),), value, hint))
            continue
        try:
            params[key] = read_parameter(known[key], value)
        except Fault as fault:
            faults.append(fault.under(key))
    sampled = list(MethodSpec(params=params).sampled.values())
    faults += trials_faults(raw.get("trials"), bool(sampled))
    faults += searcher_faults(raw.get("searcher", "random"), sampled)
    faults += own_faults(raw, params)
    if faults:
        raise_all(faults)
    return MethodSpec(params=params, **{key: raw[key] for key in RESERVED if key in raw})


def own_faults(raw: Mapping[str, Any], params: Mapping[str, Any]) -> list[Fault]:
    """Faults of fine-tuning only: its schedulers, batch norm in a CLIP ViT."""
    found, scheduler = [], raw.get("scheduler")
    if scheduler not in (None, "asha", "pbt"):
        found.append(Fault(("scheduler",), scheduler, "null, 'asha' or 'pbt' allowed"))
    if scheduler == "pbt":
        found += population_faults(params, raw.get("trials"), raw.get("searcher", "random"))
    frozen = params.get("frozen_batchnorm", False)
    inside = [value for _, space in spaces(frozen) for value in getattr(space, "values", ())]
    if frozen is True or True in inside:
        reason = "a CLIP ViT has no batch norm; false allowed"
        found.append(Fault(("frozen_batchnorm",), raw["frozen_batchnorm"], reason))
    return found


def check_keep(value: Any) -> Keep:
    """Return `value` if it is a valid number of ingredients to keep."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value not in ("best", "all") and not is_count:
        raise custom_error("best, all or an integer of at least 1 allowed")
    kept: Keep = value
    return kept


def read_pretrain(raw: Any) -> dict[str, Any] | None:
    """Read `pretrain`: sizes of the towers and hyper-parameters, fixed values only."""
    if raw is None:
        return None
    known, faults, params = {**SIZES, **schema(TRAINING.pretrain)}, [], {}
    known.pop("seed", None)  # the file's own
    if not isinstance(raw, Mapping):
        raise_all([Fault((), raw, "a mapping of sizes and hyper-parameters, or {}, allowed")])
    for key, value in raw.items():
        try:
            if key not in known:
                raise Fault((), value, unknown("parameter", str(key), known))
            params[key] = read_parameter(known[key], value)
        except Fault as fault:
            faults.append(fault.under(str(key)))
    if faults:
        raise_all(faults)
    return params


class TrainSpec(Part):
    """A training file."""

    name: str = Field(pattern=f"^{NAME.pattern}$", description=NAME_RULE)
    out: Text = Field(description="the folder that gets base/ and experts/<task>/")
    base: Text | None = Field(None, description="a hub id or a folder")
    pretrain: Annotated[dict[str, Any] | None, PlainValidator(read_pretrain)] = Field(
        None, description="a mapping of sizes and hyper-parameters"
    )
    tasks: Mapping[str, TaskSpec] = Field(
        min_length=1, description="a mapping of names to {dataset: …}"
    )
    splits: SplitSpec = Field(
        SplitSpec(), description="a mapping of fit, select, report, val_fraction and seed"
    )
    finetune: Annotated[MethodSpec, PlainValidator(read_search)] = Field(
        MethodSpec(), description="a mapping of hyper-parameters"
    )
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

    @field_validator("tasks", "shifts")
    @classmethod
    def _names(cls, named: Mapping[str, Any]) -> Mapping[str, Any]:
        return check_names(named)

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
        InputError: no such file, or not YAML.
        SpecErrors: an InputError with one line for each fault in `lines`.
    """
    try:
        return TrainSpec.model_validate(read(path, overrides))
    except ValidationError as error:
        raise spec_errors(error, TrainSpec, str(path)) from None
