"""Check a sweep's data before it starts: labels, class names and templates; reads no image."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from actors.data.protocol import Inputs
from actors.data.split_labels import Labels, split_labels
from actors.data.task import Place, Role, Splits, Task, partition
from actors.experts.metrics import EXACT, PAIRED, metric_of
from actors.pool.pool import Pool
from actors.pool.running import running_names
from fusion.errors import InputError
from fusion.registry import METHODS
from sweeps.planning.learning_needs import LearningNeeds
from sweeps.planning.shift_data import check_corruptions, split_of
from sweeps.spec.candidates import planned
from sweeps.spec.sweep import PlacementSpec, SweepSpec

MOST_TRIALS = 100_000
"""Most trials of a sweep: all are listed before the first runs."""

TRAINED = ("linear_probe", "wise_ft_linear")
"""Methods that fit a classifier, which needs two classes."""


def check_trials(spec: SweepSpec) -> None:
    """Raise InputError if a sweep has more trials than can be listed."""
    counts = planned(spec)
    if (total := sum(counts.values())) > MOST_TRIALS:
        most = max(counts, key=counts.__getitem__)
        raise InputError(
            f"methods.{most}: {counts[most]:,} trials, {total:,} in all; at most {MOST_TRIALS:,}"
            " allowed: fewer values of a grid, or fewer trials, needed"
        )


def check_offers(spec: SweepSpec, pool: Pool) -> None:
    """Raise InputError where a method, or the dtype, needs something that the models' family does
    not offer."""
    offered = pool.family.offers(pool.base)
    if spec.placement.dtype == "float16" and "float16" not in offered:
        raise InputError(
            "placement.dtype: 'float16'; activations of models of the family"
            f" {pool.family.name!r} overflow in it: bfloat16 or float32 needed"
        )
    check_written(spec, pool)
    for name in spec.methods:
        method = METHODS[name]
        if lacking := method.requires - offered:
            why = f": {method.undefined}" if method.undefined else ""
            raise InputError(
                f"methods.{name}: needs {', '.join(sorted(lacking))}, which models of the family"
                f" {pool.family.name!r} do not have{why}"
            )


def check_deltas(spec: SweepSpec, pool: Pool) -> None:
    """Raise InputError where task vectors are to be rounded, but all of them are in float64."""
    kinds = {pool.delta_dtype(name) for name in pool.groups}
    if spec.placement.narrow and torch.float32 not in kinds:
        raise InputError(
            f"placement.delta_dtype: {spec.placement.delta_dtype!r}; task vectors of models in"
            " float64 are not rounded: float32 (the default) allowed"
        )


def check_batch_norm(spec: SweepSpec, pool: Pool) -> bool:
    """Whether merged models' statistics of batch norm are measured on rows of `fit`.

    Raises:
        InputError: `average` for models without batch norm; a method that runs models whose weights
            are mixed for each row, or takes statistics of data, of models with it.
    """
    if not running_names(pool):
        if spec.batch_norm == "average":
            raise InputError(
                "batch_norm: 'average'; the pool's models have no batch norm: leave it out"
            )
        return False
    for name in spec.methods:
        method = METHODS[name]
        sampled = method.output == "model_per_sample" or method.learned == "in_model"
        if sampled or "statistics" in method.reads:
            raise InputError(
                f"methods.{name}: the pool's models have batch norm, whose running statistics are"
                " those of one merged model; a method that merges weights, or learns one coding,"
                " needed"
            )
    return spec.batch_norm == "reestimate"


def check_device(placement: PlacementSpec, device: str) -> None:
    """Raise InputError where the placement's dtype or precision is not for this kind of device."""
    if device != "cpu":
        return
    if placement.dtype == "float16":
        raise InputError(
            "placement.dtype: 'float16'; on CPUs products in float16 are slower than in float32:"
            " bfloat16 or float32 allowed"
        )
    for field, precision in placement.precisions.items():
        if precision == "tf32":
            raise InputError(f"placement.{field}: 'tf32'; CPUs have no TF32: fp32 or bf16 allowed")


def check_written(spec: SweepSpec, pool: Pool) -> None:
    """Raise InputError where the metric is exact match, and models write no answers: those of the
    family, or a method that combines the scores of several models."""
    if metric_of(spec.metric) is not EXACT:
        return
    if "answers" not in pool.family.offers(pool.base):
        raise InputError(
            f"metric: {spec.metric!r}; models of the family {pool.family.name!r} write no answers:"
            " acc allowed"
        )
    for name in spec.methods:
        if METHODS[name].output == "logits":
            raise InputError(f"methods.{name}: {no_answers(spec.metric)}")


def no_answers(metric: str) -> str:
    """Why a method whose output is logits cannot be judged by exact match."""
    return (
        "combines scores of several models and writes no answers, which metric"
        f" {metric!r} needs: acc allowed"
    )


def check_words(pool: Pool, tasks: Mapping[str, Task]) -> None:
    """Raise InputError where the base makes no model, or no head of a task's class names; or where
    a task's metric is not defined for its classes."""
    for task in tasks.values():
        check_metric(task)
    pool.family.check_model(pool.base)
    pool.family.check_tasks(pool.base, tasks)


def check_metric(task: Task) -> None:
    """Raise InputError where a task's metric is not defined for its classes."""
    where, classes = f"tasks.{task.name}: metric: {task.metric!r}", len(task.classnames)
    if task.metric == "f1" and classes != 2:
        raise InputError(f"{where}: of two classes; the task has {classes}; 'matthews' allowed")
    numbers = task.metric in PAIRED and PAIRED[task.metric].numbers
    if numbers and (task.wording is None or task.wording.values is None):
        raise InputError(f"{where}: targets that are numbers needed; 'matthews' allowed")


def check_data(
    spec: SweepSpec,
    tasks: Mapping[str, Task],
    places: Mapping[str, Mapping[Role, Place]],
    splits: Splits,
) -> None:
    """Raise InputError if labels are out of range, or a part has no rows or too few classes.

    Args:
        spec: the sweep with all methods that run.
        tasks: name -> task.
        places: task -> role -> place of its rows, for the roles that are read.
        splits: settings of the partition of splits.
    """
    for name, task in tasks.items():
        for role, place in places[name].items():
            labels = split_labels(task, place.split)
            if labels is None:
                continue
            found = part_of(labels, place, splits, name, role)
            if role == "fit":
                check_classes(spec, name, found)


def part_of(labels: Labels, place: Place, splits: Splits, name: str, role: Role) -> Labels:
    """Labels of a role's rows."""
    if place.part == "all":
        return labels
    try:
        fit, val = partition(labels, splits.val_fraction, splits.seed)
    except InputError as error:
        raise InputError(f"task {name!r}: splits.{role}: {error}") from None
    return labels[fit if place.part == "fit" else val]


def check_classes(spec: SweepSpec, name: str, labels: Labels) -> None:
    """Raise InputError if a classifier would be fitted to rows of one class."""
    methods = [each for each in spec.methods if each in TRAINED]
    if methods and len(np.unique(labels)) < 2:
        raise InputError(
            f"methods.{methods[0]}: task {name!r}: its fit rows are all of one class; 2 or more"
            " classes needed"
        )


def check_extractors(needs: LearningNeeds, inputs: Inputs) -> None:
    """Raise InputError if a gate's extractor reads another kind of data than the pool's models."""
    for extractor in needs.extractors.values():
        if (kind := extractor.inputs.kind) != inputs.kind:
            raise InputError(
                f"extractor: {extractor.source!r}: reads {kind}s; the pool's models read"
                f" {inputs.kind}s"
            )


def check_shifts(spec: SweepSpec, inputs: Inputs, others: Mapping[tuple[str, str], Task]) -> None:
    """Raise InputError if shift sets have wrong labels, or corruptions of other data."""
    check_corruptions(spec.shifts, inputs)
    for (name, _), task in others.items():
        split_labels(task, split_of(task, spec.splits.report, name))
