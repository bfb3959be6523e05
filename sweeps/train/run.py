"""`sweeps train`: pretrain a base if the file asks for it, then fine-tune each task with Tune.

`<out>/base/`, `<out>/experts/<task>/` (the best of each task) or `<out>/ingredients/<task>/<key>/`
(several of each) are Hugging Face folders; `<out>/trained/` has one JSON file for
each trial, which a second call of the same file reads, so that nothing is trained twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from actors.checkpoints.checkpoint import Checkpoint
from actors.data.protocol import Inputs
from actors.data.task import Role, Splits, Task, open_task
from actors.data.task_rows import TaskData
from actors.experts.prepare_data import captioned, prepare_data
from actors.families.protocol import Pretraining, Training
from actors.families.registry import family_in, inspect, training_of, trainings
from actors.files.cache_dir import cache_dir
from actors.files.fingerprint import Fingerprint, fingerprint, software
from sweeps.cluster import ray_connection
from sweeps.console.optional import aside
from sweeps.console.progress import Progress
from sweeps.planning.rates import Rates
from sweeps.planning.shift_data import check_corruptions, open_shifts, shift_rows
from sweeps.results.folder import owned
from sweeps.results.ledger import write_text
from sweeps.train.base_scores import BaseScore, base_scores, verdict
from sweeps.train.fine_tuning_context import FineTuningContext
from sweeps.train.ingredients import (
    Ingredient,
    chosen,
    head_file,
    home,
    is_there,
    read_results,
    read_scores,
    result_file,
)
from sweeps.train.inputs.heads import make_heads
from sweeps.train.inputs.starts import make_starts
from sweeps.train.inputs.synthetic import add_synthetic, depends_on, open_synthetic
from sweeps.train.pools import OTHERS, pool_yaml, pools
from sweeps.train.population.population_spec import INTERVALS
from sweeps.train.run_trials import run_trials
from sweeps.train.shift_scores import score_shifts
from sweeps.train.spec import FAMILY, TrainSpec, check_targets, default_family
from sweeps.train.time_estimate import fit_rows, keep_rates, opening, pretraining_length

if TYPE_CHECKING:  # start-up time: MLflow
    from sweeps.tracking.training_run import TrainingRun

STORE_BYTES = 300 * 2**20
ROLES: tuple[Role, ...] = ("fit", "select", "report")


def train(spec: TrainSpec, console: Console, *, address: str | None = None) -> list[str]:
    """Train what is missing; returns the tasks without an expert because all trials failed.

    Raises:
        InputError: wrong input; nothing was started.
        KeyboardInterrupt: what has ended is kept.
    """
    out = Path(spec.out).resolve()
    splits = Splits(**spec.splits.model_dump())
    base, training, inputs = opened(spec)
    check_corruptions(spec.shifts, inputs)
    tasks = {name: open_task(task.source(name), inputs.kind) for name, task in spec.tasks.items()}
    synthetic = open_synthetic(spec, tasks, training, inputs.kind)
    others = open_shifts(spec.shifts, spec.splits.report, tasks)
    target = ray_connection.target(address)
    rates = Rates(cache_dir(), "cpu")
    with owned(out), Progress(console) as progress, ExitStack() as stack:
        progress.say(f"{spec.name}: {opening(spec, base, training, inputs, tasks, rates)}")
        with progress.doing("starting Ray"):
            stack.enter_context(ray_connection.connected(target, STORE_BYTES))
        stack.callback(progress.until_the_end, "stopping Ray")
        if base is None:
            if not (out / "base").is_dir():
                make_base(spec, training, tasks, splits, out / "base", progress, rates)
            base = inspect(str(out / "base"), "base")
        with progress.doing("preparing the data"):
            starts = make_starts(training, base, tasks, spec.seed, out)
            data = load(starts, tasks, splits, ROLES, progress)
            about = contexts(spec, starts, tasks, splits, synthetic)
        context = FineTuningContext(spec, base, starts, data, about, out, training)
        context = add_synthetic(context, synthetic, progress)
        make_heads(context, tasks, progress)
        floor: Mapping[str, BaseScore] = {}
        with aside("the base's scores", "the same command measures them", progress.say):
            floor = base_scores(context, progress)
        before = {each.key for task in tasks for each in context.results(task)}
        run_trials(context, progress)
        new = [r for task in tasks for r in context.results(task) if r.key not in before]
        keep_rates(context, rates, fit_rows(spec, tasks, splits), new, inputs)
        kept = {task: kept_of(context, task) for task in tasks}
        if spec.shifts:
            places = [(each, home(out, each, spec.keep)) for g in kept.values() for each in g]
            inputs = family_in(base).inputs(base)
            rows = shift_rows(spec.shifts, spec.splits.report, inputs, data, tasks, others)
            score_shifts(places, context, rows, progress)
    kept = {task: group for task, group in kept.items() if group}
    settings = {
        name: t.model_dump(mode="json", exclude_defaults=True, exclude={"synthetic"})
        for name, t in spec.tasks.items()
    }
    cut = spec.splits.model_dump(mode="json", exclude_defaults=True)
    (out / OTHERS).unlink(missing_ok=True)
    files = pools(context, kept)
    for name, (over, group) in files.items():
        write_text(out / name, pool_yaml(over, group, out, spec.keep, settings, cut))
    with aside("the table", "the same command shows it", console.print):
        console.print(table(kept, spec, out, floor))
    for line in verdicts(context, kept, floor):
        console.print(line, style="yellow", soft_wrap=True, markup=False)
    for name, (_, group) in files.items():
        console.print(f"pool  {out / name}", soft_wrap=True)
        for task, found in group.items():
            if found[0].tuned_under == "linear_probe":
                file = head_file(out, task, "linear_probe")
                console.print(f"head  tasks.{task}.head: {file}", soft_wrap=True)
    missing = [task for task in tasks if task not in kept]
    for task in missing:
        console.print(f"failed: {task}: no fine-tuning of it succeeded", style="red")
    return missing


def log_training(spec: TrainSpec, runs: TrainingRun) -> str:
    """Send the results of a training, as they are on disk, to MLflow; returns its page."""
    out = Path(spec.out)
    results = [
        (each, result_file(out, task, each.key))
        for task in spec.tasks
        for each in read_results(out, task)
    ]
    return runs.log(spec.model_dump(mode="json"), results, sorted(out.glob("*.yaml")))


def opened(spec: TrainSpec) -> tuple[Checkpoint | None, Training, Inputs]:
    """The base (None: it is yet to be made), fine-tuning of its family, and its preprocessing.

    Raises:
        InputError: no such base, or one that cannot be fine-tuned.
    """
    if spec.base is None:
        training = pretrained_by(spec)
        return None, training, pretraining_inputs(spec, training)
    base = inspect(spec.base, "base")
    training = training_of(base)
    training.check(base)
    check_targets(spec.finetune, training.adaptable(base), str(base.folder))
    return base, training, family_in(base).inputs(base)


def load(
    starts: Mapping[str, Checkpoint],
    tasks: Mapping[str, Task],
    splits: Splits,
    roles: Iterable[Role],
    progress: Progress,
) -> dict[str, TaskData]:
    """Prepare data and heads of the tasks, those of one start together."""
    groups: dict[Path, dict[str, Task]] = {}
    for name, task in tasks.items():
        groups.setdefault(starts[name].folder, {})[name] = task
    found: dict[str, TaskData] = {}
    for members in groups.values():
        start = starts[next(iter(members))]
        kind = family_in(start).inputs(start).kind
        found |= prepare_data(
            start,
            members,
            splits,
            roles,
            cache_dir(),
            progress=partial(progress.set, f"{kind}s"),
        )
    return found


def pretrained_by(spec: TrainSpec) -> Training:
    """Fine-tuning of the family whose base the file asks for."""
    return trainings()[(spec.pretrain or {}).get(FAMILY) or default_family()]


def pretraining_sizes(spec: TrainSpec, made: Pretraining) -> tuple[Any, dict[str, Any]]:
    """Sizes of the base that the file asks for, and the other hyper-parameters."""
    given = {name: value for name, value in (spec.pretrain or {}).items() if name != FAMILY}
    names = {field.name for field in fields(made.sizes)}
    return made.sizes(**{name: given.pop(name) for name in names & set(given)}), given


def pretraining_inputs(spec: TrainSpec, training: Training) -> Inputs:
    """Preprocessing of the base that the file asks for."""
    assert training.pretraining is not None  # checked with the file
    return training.pretraining.inputs(pretraining_sizes(spec, training.pretraining)[0])


def make_base(
    spec: TrainSpec,
    training: Training,
    tasks: Mapping[str, Task],
    splits: Splits,
    out: Path,
    progress: Progress,
    rates: Rates,
) -> None:
    """Pretrain a small base on the fit rows of all tasks together; a killed run goes on.

    Its state is `base-<hash of what the base depends on>.pt`, beside the base.
    """
    assert training.pretraining is not None  # checked with the file
    sizes, given = pretraining_sizes(spec, training.pretraining)
    inputs = training.pretraining.inputs(sizes)
    rows = captioned(
        tasks,
        splits,
        inputs,
        cache_dir(),
        progress=lambda done, total: progress.set(f"{inputs.kind}s for the base", done, total),
    )

    done: list[float] = []

    def advance(step: int, total: int, loss: float) -> None:
        done.append(time.monotonic())
        progress.set("base", step, total, f"loss {loss:.3f}")

    steps, batch = pretraining_length(spec, training)
    progress.set("base", 0, steps)
    made_of = fingerprint(
        "base-1",
        software("torch", "transformers"),
        {**vars(sizes), **given},
        spec.seed,
        vars(splits),
        {
            name: [task.fingerprint, list(task.classnames), list(task.templates)]
            for name, task in tasks.items()
        },
    )
    for state in out.parent.glob("base-*.pt"):
        if state.name != f"base-{made_of[:16]}.pt":  # of another base
            state.unlink()
    training.pretraining.pretrain(
        rows,
        out,
        sizes=sizes,
        seed=spec.seed,
        advance=advance,
        state=out.parent / f"base-{made_of[:16]}.pt",
        **given,
    )
    if len(done) > 1:
        rates.keep("pretrain", done[-1] - done[0], (len(done) - 1) * batch, inputs.about)


def contexts(
    spec: TrainSpec,
    starts: Mapping[str, Checkpoint],
    tasks: Mapping[str, Task],
    splits: Splits,
    synthetic: Mapping[str, Task] = MappingProxyType({}),
) -> dict[str, Fingerprint]:
    """Task -> what its trials depend on besides hyper-parameters: the model that they start from,
    preprocessing, splits, data, synthetic data and their filters, and words with the tokenizer that
    reads them."""
    families = {name: family_in(start) for name, start in starts.items()}
    heads = {
        name: families[name].head_fingerprints(starts[name], {name: task})[name]
        for name, task in tasks.items()
    }
    # The result of a member of a population depends on all members.
    whole = spec.finetune.scheduler == "pbt"
    more = [INTERVALS, spec.finetune.model_dump(mode="json"), spec.seed] if whole else []
    return {
        name: fingerprint(
            "training-1",
            software("torch", "transformers"),
            starts[name].fingerprint,
            families[name].inputs(starts[name]).fingerprint,
            vars(splits),
            task.fingerprint,
            list(task.classnames),
            heads[name],
            *more,
            *depends_on(spec, synthetic, name),
        )
        for name, task in tasks.items()
    }


def kept_of(context: FineTuningContext, task: str) -> list[Ingredient]:
    """A task's kept ingredients whose weights exist."""
    keep = context.spec.keep
    found = chosen(context.results(task), keep)
    return [each for each in found if is_there(context.out, each, keep)]


def verdicts(
    context: FineTuningContext,
    kept: Mapping[str, Sequence[Ingredient]],
    floor: Mapping[str, BaseScore],
) -> list[str]:
    """Sentences about experts that are no better than what they started from."""
    made = context.training.pretraining if context.spec.pretrain is not None else None
    fitting = made.fine_tuning.get("learning_rate") if made is not None else None
    found = []
    for task, group in kept.items():
        rate = group[0].params.get("learning_rate", context.defaults.get("learning_rate"))
        if task in floor:
            found.append(verdict(group[0], floor[task], rate, fitting))
    return [line for line in found if line]


def table(
    kept: Mapping[str, Sequence[Ingredient]],
    spec: TrainSpec,
    out: Path,
    floor: Mapping[str, BaseScore],
) -> Table:
    """Table of the kept models with their scores, and the base's on report."""
    shown = Table(title="experts" if spec.keep == "best" else "ingredients", title_justify="left")
    texts = ("task", "chosen" if spec.keep == "best" else "ingredient")
    for name in (*texts, "select", "base", "report", *spec.shifts, "seconds"):
        shown.add_column(name, justify="left" if name in texts else "right")
    for task, group in kept.items():
        for each in group:
            params = " ".join(f"{name}={value}" for name, value in each.params.items())
            what = params if spec.keep == "best" else each.folder  # its recipe.yaml has the rest
            shifts = read_scores(home(out, each, spec.keep)).get("shifts", {})
            marks = [f"{shifts[name]:.4f}" if name in shifts else "" for name in spec.shifts]
            base = f"{floor[task].report:.4f}" if task in floor else ""
            scores = (f"{each.select:.4f}", base, f"{each.report:.4f}")
            numbers = (*scores, *marks, f"{each.seconds:.1f}")
            shown.add_row(task, what, *numbers)
    return shown
