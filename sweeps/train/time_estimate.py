"""Estimate of a training's time from rates measured on this machine, and the rates of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from actors.checkpoints.checkpoint import Checkpoint
from actors.data.protocol import Inputs
from actors.data.task import Splits, Task, assign
from actors.families.protocol import Training
from actors.families.registry import family_in, inspect
from sweeps.cluster import ray_connection
from sweeps.console import number_format
from sweeps.planning.rates import Rates, Span
from sweeps.planning.statistics_cost import rows_at
from sweeps.spec.search_space import Choice, Grid
from sweeps.train.fine_tuning_context import FineTuningContext
from sweeps.train.ingredients import Trained
from sweeps.train.searcher import count
from sweeps.train.spec import TrainSpec, schema

POSITIONS = 50
"""Positions of a row that the multiplications of a model are guessed from, where its segments do
not state them."""


def opening(
    spec: TrainSpec,
    base: Checkpoint | None,
    training: Training,
    inputs: Inputs,
    tasks: Mapping[str, Task],
    rates: Rates,
) -> str:
    """What a training will do, and how long that takes on this machine."""
    out, splits = Path(spec.out).resolve(), Splits(**spec.splits.model_dump())
    if base is None and (out / "base").is_dir():
        base = inspect(str(out / "base"), "base")
    time, said = Span(), ""
    if base is None:
        row = rates.span("pretrain", inputs.about)
        steps, batch = pretraining_length(spec, training)
        time += row * (steps * batch)
        said = f"a base of {number_format.count(steps, 'step')}, then "
    else:
        row = rates.span("fine-tune", model_key(base, inputs)) * work_of(base)
    slots = ray_connection.this_machine().nodes[0].cpus
    time += rates.span("start") + fine_tuning(
        spec, training.options, fit_rows(spec, tasks, splits), row, out, slots
    )
    trials = sum(count(spec.finetune, task, spec.seed) for task in tasks)
    runs, of = number_format.count(trials, "fine-tuning"), number_format.count(len(tasks), "task")
    return f"{said}{runs} of {of}; {time}"


def pretraining_length(spec: TrainSpec, training: Training) -> tuple[int, int]:
    """Steps and batch size of the base's pretraining."""
    assert training.pretraining is not None  # checked with the file
    known, given = schema(training.pretraining.pretrain), spec.pretrain or {}
    steps, batch = (given.get(name, known[name].default) for name in ("steps", "batch_size"))
    return int(steps), int(batch)


def fit_rows(spec: TrainSpec, tasks: Mapping[str, Task], splits: Splits) -> dict[str, int]:
    """Task -> rows that its experts are fine-tuned on in one pass: as many synthetic ones, if it
    has such."""
    places = {name: assign(task, splits)["fit"] for name, task in tasks.items()}
    return {
        name: rows_at(tasks[name], place, splits) * (1 if spec.tasks[name].synthetic is None else 2)
        for name, place in places.items()
    }


def passes(spec: TrainSpec, options: type[Any]) -> float:
    """Passes over the rows of one fine-tuning; the most that a search may choose."""
    default = schema(options)["epochs"].default
    return largest(spec.finetune.params.get("epochs", default))


def largest(value: Any) -> float:
    """The largest number that a parameter can take.

    >>> largest(3), largest(Grid((1, 4, 2)))
    (3.0, 4.0)
    """
    if isinstance(value, Grid | Choice):
        return max(map(largest, value.values))
    return float(getattr(value, "high", value))


def work_of(base: Checkpoint) -> float:
    """Multiplications of the forward pass of a row."""
    chain = family_in(base).segments(base)
    stated = [segment.work for segment in chain if segment.work is not None]
    if len(stated) == len(chain):
        return float(sum(stated))
    return float(POSITIONS * sum(segment.numel for segment in chain))


def model_key(base: Checkpoint, inputs: Inputs) -> str:
    """What the speed of training depends on."""
    numel = sum(segment.numel for segment in family_in(base).segments(base))
    return f"{family_in(base).name}/{numel}/{inputs.about}"


def fine_tuning(
    spec: TrainSpec, options: type[Any], rows: Mapping[str, int], row: Span, out: Path, slots: int
) -> Span:
    """Seconds of all fine-tunings that have no result yet.

    Args:
        spec: the training file.
        options: hyper-parameters of the family's fine-tuning.
        rows: task -> rows of fit.
        row: seconds of a row that is trained on.
        out: the folder of the training.
        slots: fine-tunings side by side.
    """
    left = {
        task: max(0, count(spec.finetune, task, spec.seed) - len(results_of(out, task)))
        for task in rows
    }
    total = sum(left[task] * rows[task] for task in rows) * passes(spec, options)
    return row * (total / max(1, slots))


def results_of(out: Path, task: str) -> list[Path]:
    """Files of a task's results, or of a task whose name goes on."""
    return list((out / "trained").glob(f"{task}-*.json"))


def keep_rates(
    context: FineTuningContext,
    rates: Rates,
    rows: Mapping[str, int],
    new: Iterable[Trained],
    inputs: Inputs,
) -> None:
    """Store the rate of this run's fine-tunings; those that were stopped early count nothing."""
    ended = [each for each in new if not each.stopped and each.seconds > 0]
    default = schema(context.training.options)["epochs"].default
    units = sum(
        rows[each.task] * largest(each.params.get("epochs", default)) for each in ended
    ) * work_of(context.base)
    seconds = sum(each.seconds for each in ended)
    rates.keep("fine-tune", seconds, units, model_key(context.base, inputs))
