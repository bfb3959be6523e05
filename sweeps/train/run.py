"""`sweeps train`: pretrain a base if the file asks for it, then fine-tune each task with Tune.

`<out>/base/`, `<out>/experts/<task>/` (the best of each task) or `<out>/ingredients/<task>/<key>/`
(several of each) are Hugging Face folders; `<out>/trained/` has one JSON file for
each trial, which a second call of the same file reads, so that nothing is trained twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from actors.checkpoints.checkpoint import Checkpoint
from actors.data.task import Role, Splits, Task, open_task
from actors.data.task_rows import TaskData
from actors.experts.prepare_data import captioned, prepare_data
from actors.families.registry import family_in, inspect, trained_family
from actors.files.cache_dir import cache_dir
from actors.files.fingerprint import Fingerprint, fingerprint, software
from sweeps.cluster import ray_connection
from sweeps.console.optional import aside
from sweeps.console.progress import Progress
from sweeps.planning.shift_data import check_corruptions, open_shifts, shift_rows
from sweeps.results.folder import owned
from sweeps.results.ledger import write_text
from sweeps.train.fine_tuning_context import FineTuningContext
from sweeps.train.heads import make_heads
from sweeps.train.ingredients import (
    Ingredient,
    by_head,
    chosen,
    head_file,
    home,
    is_there,
    pool_yaml,
    read_scores,
)
from sweeps.train.population_spec import INTERVALS
from sweeps.train.run_trials import run_trials
from sweeps.train.shift_scores import score_shifts
from sweeps.train.spec import TrainSpec, schema

STORE_BYTES = 300 * 2**20
ROLES: tuple[Role, ...] = ("fit", "select", "report")

OTHERS = "pool-other-heads.yaml"
"""Written beside `pool.yaml` if a search tried two heads: the ingredients of the other head."""


def train(spec: TrainSpec, console: Console, *, address: str | None = None) -> list[str]:
    """Train what is missing; returns the tasks without an expert because all trials failed.

    Raises:
        InputError: wrong input; nothing was started.
        KeyboardInterrupt: what has ended is kept.
    """
    out = Path(spec.out).resolve()
    splits = Splits(**spec.splits.model_dump())
    base = inspect(spec.base, "base") if spec.base else None
    inputs = family_in(base).inputs(base) if base else None
    if inputs is not None:
        check_corruptions(spec.shifts, inputs)
    kind = inputs.kind if inputs else "image"
    tasks = {name: open_task(task.source(name), kind) for name, task in spec.tasks.items()}
    others = open_shifts(spec.shifts, spec.splits.report, tasks)
    target = ray_connection.target(address)
    with owned(out), Progress(console) as progress, ray_connection.connected(target, STORE_BYTES):
        if base is None:
            if not (out / "base").is_dir():
                make_base(spec, tasks, splits, out / "base", progress)
            base = inspect(str(out / "base"), "base")
        data = load(base, tasks, splits, ROLES, progress)
        context = FineTuningContext(
            spec, base, data, contexts(spec, base, tasks, splits), out, defaults()
        )
        make_heads(context, tasks, progress)
        run_trials(context, progress)
        kept = {task: kept_of(context, task) for task in tasks}
        if spec.shifts:
            places = [(each, home(out, each, spec.keep)) for g in kept.values() for each in g]
            inputs = family_in(base).inputs(base)
            rows = shift_rows(spec.shifts, spec.splits.report, inputs, data, tasks, others)
            score_shifts(places, context, rows, progress)
    kept = {task: group for task, group in kept.items() if group}
    settings = {
        name: t.model_dump(mode="json", exclude_defaults=True) for name, t in spec.tasks.items()
    }
    cut = spec.splits.model_dump(mode="json", exclude_defaults=True)
    (out / OTHERS).unlink(missing_ok=True)
    pools = dict(zip(("pool.yaml", OTHERS), by_head(kept), strict=False))
    for name, group in pools.items():
        write_text(out / name, pool_yaml(base.folder, group, out, spec.keep, settings, cut))
    with aside("the table", "the same command shows it", console.print):
        console.print(table(kept, spec, out))
    for name, group in pools.items():
        console.print(f"pool  {out / name}", soft_wrap=True)
        for task, found in group.items():
            if found[0].tuned_under == "linear_probe":
                file = head_file(out, task, "linear_probe")
                console.print(f"head  tasks.{task}.head: {file}", soft_wrap=True)
    missing = [task for task in tasks if task not in kept]
    for task in missing:
        console.print(f"failed: {task}: no fine-tuning of it succeeded", style="red")
    return missing


def load(
    base: Checkpoint,
    tasks: Mapping[str, Task],
    splits: Splits,
    roles: Iterable[Role],
    progress: Progress,
) -> dict[str, TaskData]:
    """Prepare data and heads of the tasks."""
    return prepare_data(
        base,
        tasks,
        splits,
        roles,
        cache_dir(),
        progress=lambda done, total: progress.set("images", done, total),
    )


def make_base(
    spec: TrainSpec, tasks: Mapping[str, Task], splits: Splits, out: Path, progress: Progress
) -> None:
    """Pretrain a small CLIP on the fit rows of all tasks together."""
    given = dict(spec.pretrain or {})
    training = trained_family()
    names = {field.name for field in fields(training.sizes)}
    sizes = training.sizes(**{name: given.pop(name) for name in names & set(given)})
    rows = captioned(
        tasks,
        splits,
        training.inputs(sizes),
        cache_dir(),
        progress=lambda done, total: progress.set("images for the base", done, total),
    )

    def advance(step: int, total: int, loss: float) -> None:
        progress.set("base", step, total)

    training.pretrain(rows, out, sizes=sizes, seed=spec.seed, advance=advance, **given)


def contexts(
    spec: TrainSpec, base: Checkpoint, tasks: Mapping[str, Task], splits: Splits
) -> dict[str, Fingerprint]:
    """Task -> what its trials depend on besides hyper-parameters: base, images' preprocessing,
    splits, data, and words with the tokenizer that reads them."""
    family = family_in(base)
    inputs, heads = family.inputs(base), family.head_fingerprints(base, tasks)
    # The result of a member of a population depends on all members.
    whole = spec.finetune.scheduler == "pbt"
    more = [INTERVALS, spec.finetune.model_dump(mode="json"), spec.seed] if whole else []
    return {
        name: fingerprint(
            "training-1",
            software("torch", "transformers"),
            base.fingerprint,
            inputs.fingerprint,
            vars(splits),
            task.fingerprint,
            list(task.classnames),
            heads[name],
            *more,
        )
        for name, task in tasks.items()
    }


def defaults() -> dict[str, object]:
    """Default hyper-parameters of fine-tuning; the seed is left out, being the trial's own."""
    return {
        p.name: p.default for p in schema(trained_family().options).values() if p.name != "seed"
    }


def kept_of(context: FineTuningContext, task: str) -> list[Ingredient]:
    """A task's kept ingredients whose weights exist."""
    keep = context.spec.keep
    found = chosen(context.results(task), keep)
    return [each for each in found if is_there(context.out, each, keep)]


def table(kept: Mapping[str, Sequence[Ingredient]], spec: TrainSpec, out: Path) -> Table:
    """Table of the kept models with accuracies."""
    shown = Table(title="experts" if spec.keep == "best" else "ingredients", title_justify="left")
    texts = ("task", "chosen" if spec.keep == "best" else "ingredient")
    for name in (*texts, "select", "report", *spec.shifts, "seconds"):
        shown.add_column(name, justify="left" if name in texts else "right")
    for task, group in kept.items():
        for each in group:
            params = " ".join(f"{name}={value}" for name, value in each.params.items())
            what = params if spec.keep == "best" else each.folder  # its recipe.yaml has the rest
            shifts = read_scores(home(out, each, spec.keep)).get("shifts", {})
            marks = [f"{shifts[name]:.4f}" if name in shifts else "" for name in spec.shifts]
            numbers = (f"{each.select:.4f}", f"{each.report:.4f}", *marks, f"{each.seconds:.1f}")
            shown.add_row(task, what, *numbers)
    return shown
