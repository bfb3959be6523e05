"""`sweeps train`: a base where one is asked for, then one expert a task, fine-tuned with Tune.

`<out>/base/` and `<out>/experts/<task>/` are Hugging Face folders; `<out>/trained/` has one JSON
file a trial, which a second call of the same file goes by: nothing is trained twice.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console
from rich.table import Table

from actors.checkpoints import Checkpoint, content_hash, inspect
from actors.data import prepare_data
from actors.embeddings import EmbeddingCache
from actors.experts import Recipe, TaskData
from actors.local import local_experts
from actors.pixels import open_pixels
from actors.pool import open_pool
from actors.pretraining import Sizes, pretrain
from actors.sources import cache_dir
from actors.tasks import Role, Splits, Task, TaskSource, open_task
from actors.training import fine_tune
from sweeps import cluster
from sweeps.candidates import random_points
from sweeps.canonical import derive_seed, trial_key
from sweeps.folder import owned
from sweeps.ledger import write_text
from sweeps.progress import Progress
from sweeps.trainspec import TrainSpec

STORE_BYTES = 300 * 2**20
ROLES: tuple[Role, ...] = ("fit", "select", "report")


@dataclass(frozen=True)
class Trained:
    """One finished fine-tuning."""

    key: str
    task: str
    params: Mapping[str, Any]
    select: float
    """Accuracy on the select split; the best of a task becomes its expert."""
    report: float
    seconds: float


def train(spec: TrainSpec, console: Console, *, address: str | None = None) -> list[str]:
    """Train what is missing; returns the tasks that have no expert because all trials failed.

    Raises:
        InputError: wrong input; nothing was started.
    """
    out = Path(spec.out).resolve()
    splits = Splits(**spec.splits.model_dump())
    tasks = {
        name: open_task(TaskSource(name, t.dataset, t.image, t.label, t.templates, t.classnames))
        for name, t in spec.tasks.items()
    }
    base = inspect(spec.base, "base") if spec.base else None
    target = cluster.target(address)
    with owned(out), Progress(console) as progress, cluster.connected(target, STORE_BYTES):
        if base is None:
            if not (out / "base").is_dir():
                make_base(spec, tasks, splits, out / "base", progress)
            base = inspect(str(out / "base"), "base")
        data = load(base, tasks, splits, ROLES, progress)
        wanted = candidates(spec, base, tasks, splits)
        run_trials(wanted, base, data, out, progress)
    best = choose(wanted, out)
    write_text(out / "pool.yaml", pool_yaml(base, best, out))
    console.print(table(best))
    console.print(f"pool  {out / 'pool.yaml'}", soft_wrap=True)
    missing = [task for task in tasks if task not in best]
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
    """Pixels, rows and heads of the tasks."""
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
    from actors.data import captioned

    given = dict(spec.pretrain or {})
    names = {field.name for field in fields(Sizes)}
    sizes = Sizes(**{name: given.pop(name) for name in names & set(given)})
    rows = captioned(
        tasks,
        splits,
        sizes.image,
        cache_dir(),
        progress=lambda done, total: progress.set("images for the base", done, total),
    )

    def advance(step: int, total: int, loss: float) -> None:
        progress.set("base", step, total)

    pretrain(rows, out, sizes=sizes, seed=spec.seed, advance=advance, **given)


def candidates(
    spec: TrainSpec, base: Checkpoint, tasks: Mapping[str, Task], splits: Splits
) -> list[dict[str, Any]]:
    """All trials: {"key", "task", "params", "seed"}; a pure function of files and spec."""
    context = f"{content_hash(base)} {splits}"
    found = {}
    for name, task in tasks.items():
        for params in random_points(spec.finetune, f"finetune {name}", spec.seed):
            key = trial_key(f"finetune {name}", params, f"{context} {task.fingerprint}")
            seed = derive_seed(spec.seed, key) % 2**31
            found[key] = {"key": key, "task": name, "params": params, "seed": seed}
    return list(found.values())


def run_trials(
    wanted: list[dict[str, Any]],
    base: Checkpoint,
    data: Mapping[str, TaskData],
    out: Path,
    progress: Progress,
) -> None:
    """Fine-tune what has no result yet, one CPU (or GPU) a trial."""
    todo = [trial for trial in wanted if finished(trial, out) is None]
    progress.start("experts", len(wanted))
    progress.advance("experts", len(wanted) - len(todo))
    if not todo:
        return
    gpus = cluster.of_cluster().gpus
    resources = {"cpu": 1, "gpu": 1} if gpus else {"cpu": 1}
    device = "cuda" if gpus else "cpu"
    trainable = tune.with_parameters(
        fine_tune_trial, folder=base.folder, data=data, out=out, device=device
    )
    tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space={"trial": tune.grid_search(todo)},
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.config["trial"]["key"],
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(out / "trained"),
            callbacks=[Advancing(progress)],
            verbose=0,
        ),
    ).fit()


class Advancing(tune.Callback):  # type: ignore[misc]  # ray is untyped
    """Moves the progress bar as trials end."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune pickles its callbacks beside its state."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """One more expert."""
        task = trial.config["trial"]["task"]
        self.progress.advance("experts", note=f"{task}: {trial.last_result.get('select', 0):.4f}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """One that failed; said at once."""
        what = trial.config["trial"]
        reason = str(trial.get_error()).strip().splitlines()[-1]
        self.progress.say(f"failed: {what['task']} {what['params']}: {reason}")
        self.progress.advance("experts")


def fine_tune_trial(
    config: Mapping[str, Any], folder: Path, data: Mapping[str, TaskData], out: Path, device: str
) -> None:
    """One fine-tuning: train on fit, measure on select and report, keep folder and result."""
    from actors.heads import read_head

    trial = config["trial"]
    task = data[trial["task"]]
    rows, place = task.rows["fit"], out / "trained" / trial["key"] / "expert"
    pixels = open_pixels(rows.pixels)
    at = slice(None) if rows.indices is None else rows.indices
    start = time.perf_counter()
    if not place.is_dir():
        fine_tune(
            folder,
            pixels.images[at],
            pixels.labels[at],
            read_head(task.head),
            place,
            seed=trial["seed"],
            device=device,
            **trial["params"],
        )
    seconds = time.perf_counter() - start
    pool = open_pool(str(folder), {task.name: str(place)})
    nowhere = EmbeddingCache(out / "trained" / "embeddings", {})
    experts = local_experts(pool, {task.name: task}, nowhere, device=device)
    # With one expert, averaging IS the expert: measured by the same code as every fused model.
    select, report = (
        experts.evaluate(Recipe("simple_average"), role).scores[task.name].accuracy
        for role in ("select", "report")
    )
    result = Trained(trial["key"], task.name, trial["params"], select, report, seconds)
    write_text(result_file(trial, out), json.dumps(asdict(result), indent=1))
    tune.report({"select": select, "report": report})


def result_file(trial: Mapping[str, Any], out: Path) -> Path:
    """Where a trial's result is kept."""
    return out / "trained" / f"{trial['task']}-{trial['key']}.json"


def finished(trial: Mapping[str, Any], out: Path) -> Trained | None:
    """A trial's result, if it has one."""
    path = result_file(trial, out)
    return Trained(**json.loads(path.read_text())) if path.exists() else None


def choose(wanted: Iterable[Mapping[str, Any]], out: Path) -> dict[str, Trained]:
    """Each task's best trial on select; its model becomes `experts/<task>`, others are deleted."""
    best: dict[str, Trained] = {}
    for trial in wanted:
        result = finished(trial, out)
        if result is not None and (
            result.task not in best or result.select > best[result.task].select
        ):
            best[result.task] = result
    for task, result in best.items():
        place, made = out / "experts" / task, out / "trained" / result.key / "expert"
        if made.is_dir():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            made.rename(place)
    for trial in wanted:
        if trial["task"] in best:
            shutil.rmtree(out / "trained" / trial["key"], ignore_errors=True)
    return best


def pool_yaml(base: Checkpoint, best: Mapping[str, Trained], out: Path) -> str:
    """The `pool` of a sweep file, ready to paste."""
    lines = ["pool:", f"  base: {base.folder}", "  experts:"]
    lines += [f"    {task}: {out / 'experts' / task}" for task in best]
    return "\n".join(lines) + "\n"


def table(best: Mapping[str, Trained]) -> Table:
    """The experts' accuracies."""
    shown = Table(title="experts", title_justify="left")
    for name in ("task", "chosen", "select", "report", "seconds"):
        shown.add_column(name, justify="left" if name in ("task", "chosen") else "right")
    for task, result in best.items():
        params = " ".join(f"{name}={value}" for name, value in result.params.items())
        shown.add_row(
            task, params, f"{result.select:.4f}", f"{result.report:.4f}", f"{result.seconds:.1f}"
        )
    return shown
