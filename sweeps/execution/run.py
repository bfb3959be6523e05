"""Run a sweep: from a sweep file to its comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from actors.artifacts.recipe import BASE, Recipe
from actors.checkpoints.checkpoint import content_hash
from actors.cluster import metrics
from actors.cluster.measured_memory import keep_peak
from actors.data.task_rows import TaskData
from actors.experts.metrics import ranked_by
from actors.experts.protocol import WeightsReader
from actors.experts.unseen_tasks import learners
from actors.files.cache_dir import cache_dir
from actors.fleet.file_transfer import home
from fusion.registry import METHODS
from sweeps.cluster import ray_connection
from sweeps.console import redact, signals
from sweeps.console.optional import RESUMED, aside
from sweeps.console.progress import Progress
from sweeps.execution.beside import beside
from sweeps.execution.final_evaluation import (
    evaluate_rows,
    measure_experts,
    measure_shifts,
    measure_times,
)
from sweeps.execution.preflight import ready
from sweeps.execution.site import Site
from sweeps.execution.stale_trials import renew
from sweeps.execution.start_fleet import start_fleet
from sweeps.execution.sweep_run import SweepRun, tags_of
from sweeps.execution.timing import FINISH, STARTING, TRIALS, keep_times, opening
from sweeps.planning.prepared import Prepared
from sweeps.planning.rates import Rates
from sweeps.planning.shift_data import shift_fingerprint
from sweeps.planning.shift_rows import extended
from sweeps.results import recipe
from sweeps.results.comparison import Comparison, Header, Row, compare
from sweeps.results.comparison_file import write
from sweeps.results.correctness_file import read_correct
from sweeps.results.folder import Begin, SweepFolder, claim, learned_name, owned, state_name
from sweeps.results.ledger import Entry, fields_of
from sweeps.results.rows.disclosures import (
    notes_of,
    notes_of_pool,
    outside_answers,
    recognition,
    under_words,
)
from sweeps.results.rows.footprint import footprint
from sweeps.results.rows.winners import winners
from sweeps.spec.reference_methods import is_soup
from sweeps.spec.sweep import SweepSpec
from sweeps.storage import fetch
from sweeps.storage.mirror import Mirror
from sweeps.tracking import mlflow_store
from sweeps.tracking.mlflow_store import browsed
from sweeps.tracking.run_fields import spec_params
from sweeps.tracking.tracker import Tracker
from sweeps.trials.artifact_store import artifact_store
from sweeps.trials.learn_coding import LearningInputs, sizes_of

PACKAGES = ("fusion-sweeps", "torch", "transformers", "ray", "mlflow", "datasets")


@dataclass(frozen=True)
class Outcome:
    """Result of a sweep."""

    comparison: Comparison
    folder: SweepFolder
    failed: tuple[Entry, ...]
    unsent: str | None
    """Why MLflow lacks results; None when it has all."""
    mlflow: str
    """Where MLflow keeps them."""
    unstored: str | None = None
    """Why the storage lacks results; None if it has all, or the sweep uses no storage."""
    page: str = ""
    """Address of MLflow's page of the comparison; of a local store, once `mlflow ui` runs."""
    dashboard: str = ""
    """Address of Ray's dashboard of the cluster; empty if it ended with the sweep."""


def run(
    spec: SweepSpec,
    outputs: Path,
    console: Console,
    begin: Begin,
    *,
    address: str | None = None,
    command: str = "",
) -> Outcome:
    """Run a sweep to its comparison; all input errors are found before it starts.

    Args:
        spec: what to run.
        outputs: the folder of all sweeps; this one gets `outputs/<name>`.
        console: for progress.
        begin: new, resumed, fresh or extended; and its storage.
        address: of a running Ray cluster; None: `$RAY_ADDRESS`, else one of our own.
        command: command line that reproduces the sweep, for the report.

    Raises:
        InputError: wrong input, nothing started.
        KeyboardInterrupt: it was stopped.
    """
    folder = SweepFolder(outputs / spec.name)
    comparison: Comparison | None = None

    def tell(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    with (
        aside("the end of the sweep", RESUMED, tell, done=lambda: comparison is not None),
        ExitStack() as stack,
    ):
        stack.enter_context(owned(folder.path))
        progress = stack.enter_context(Progress(console))
        site = Site(address, progress.say)
        with progress.doing("checking models, data and methods"):
            dashboard = stack.enter_context(site.join())
            found = ready(spec, outputs, site.resources(), begin)
        prepared, uri, store = found.prepared, found.uri, found.store
        rates = Rates(cache_dir(), site.kind(prepared))
        progress.say(opening(prepared, rates, folder, begin))
        store_opened = beside(
            partial(mlflow_store.connect, uri, spec.mlflow.experiment, outputs, progress.say)
        )
        with progress.doing(STARTING):
            page = stack.enter_context(site.start(prepared))
        with progress.doing("opening MLflow"):
            client, experiment = store_opened()
        if page:
            progress.say(f"dashboard {page} until the sweep ends; {ray_connection.token_hint()}")
        fleet, data = start_fleet(
            stack,
            site,
            prepared,
            progress,
            prepared.roles,
            lambda data: extended(prepared, data),
            extractors=list(prepared.needs.extractors.values()),
            meanwhile=load_phases,
        )
        # Only now, with every weight and image accepted, does the sweep leave a trace.
        sent = fetch.take_up(store, folder, fresh=begin.fresh) if store else {}
        identity = claim(folder.path, found.spec_hash, found.spec_text, **begin.going_on)
        signals.begin()
        mirror = stack.enter_context(Mirror(folder, store, sent, progress.say))
        tags = tags_of(prepared, identity)
        tracker = Tracker(
            client,
            experiment,
            spec.name,
            identity.sweep_id,
            tags,
            params=spec_params(spec.model_dump(mode="json")),
            watch=folder.path,
            say=progress.say,
        )
        stack.callback(progress.until_the_end, "sending what is left, stopping Ray")
        try:
            inputs = learning_inputs(prepared, data, folder, everywhere=bool(site.target))
            comparison = run_phases(
                SweepRun(
                    prepared,
                    folder,
                    identity,
                    fleet.client,
                    tracker,
                    mirror,
                    progress,
                    inputs,
                    command,
                    data,
                    rates,
                )
            )
        except BaseException as error:
            if stopped := isinstance(error, KeyboardInterrupt):
                progress.say("stopping: what is finished is sent on; a second signal ends at once")
            tracker.flush(folder.ledger)
            tracker.finish("KILLED" if stopped else "FAILED", {}, [])
            raise
    assert comparison is not None
    failed = tuple(entry for entry in folder.ledger if entry.status == "failed")
    shown = redact.url(uri)
    page = browsed(shown, tracker.page)
    return Outcome(comparison, folder, failed, tracker.fault, shown, mirror.fault, page, dashboard)


def load_phases() -> None:
    """Import Tune and what draws the report: seconds, for which nothing has to wait while the
    replicas load."""
    import sweeps.execution.publish
    import sweeps.trials.run_trials  # noqa: F401


def run_phases(sweep: SweepRun) -> Comparison:
    """Run all trials, evaluate the winners, and write and publish the comparison."""
    tidy_ledger(sweep)
    before = {entry.trial_key for entry in sweep.folder.ledger}
    with sweep.progress.timed(TRIALS):
        tune(sweep)
    with sweep.progress.timed(FINISH):
        rows = evaluated(sweep)
        with sweep.progress.doing("comparing the rows"):
            comparison = compared(sweep, rows)
            write(comparison, sweep.folder.path)
        with sweep.progress.doing("writing the report, sending results to MLflow"):
            from sweeps.execution.publish import publish

            publish(sweep, comparison)
    keep_times(sweep, before)
    return comparison


def tidy_ledger(sweep: SweepRun) -> None:
    """Forget trials that have to run again: damaged entries, failed ones, and those whose key an
    upgrade changed."""
    ledger = sweep.folder.ledger
    for damaged in ledger.set_aside():
        sweep.say(f"ledger/{damaged}: damaged; its trial runs again")
    ledger.clear_failed()
    renew(sweep.folder, sweep.context, sweep.say, sweep.spec.metric)


def tune(sweep: SweepRun) -> None:
    """Run every trial that has no ledger entry yet; each is recorded as it ends."""
    from sweeps.trials.run_trials import TrialSetup, run_trials

    spec, plan = sweep.spec, sweep.prepared.plan
    metrics.label(sweep=spec.name)

    def record(entry: Entry) -> None:
        entry = replace(entry, gpu_s=entry.busy_s * plan.gpus * plan.shards)
        sweep.folder.ledger.add(entry)
        if plan.device == "cuda" and plan.shards == 1:
            keep_peak(sweep.prepared.load, entry.peak_bytes, cache_dir())
        (sweep.folder.learned / state_name(entry.trial_key)).unlink(missing_ok=True)
        metrics.count("trials", method=entry.method, status=entry.status)
        sweep.tracker.trial(entry)
        sweep.mirror.wake()
        value = entry.metrics.get(spec.metric)
        shown = entry.status if value is None else f"{spec.metric} {value:.4f}"
        sweep.progress.advance("trials", note=f"{entry.method}: {shown}")

    setup = TrialSetup(
        spec, sweep.context, sweep.experts, sweep.folder, sweep.progress, sweep.inputs
    )
    run_trials(setup, sweep.prepared.pool.tasks, record)


def evaluated(sweep: SweepRun) -> list[Row]:
    """Each method's winner, evaluated on the report split and the shift sets, with its recipe
    file and its run in MLflow."""
    prepared, folder, spec = sweep.prepared, sweep.folder, sweep.spec
    metric = ranked_by(spec.metric)
    found = winners(sweep.entries(), spec.metric, prepared.inputs.kind)
    rows = [noted(row, prepared, folder.learned) for row in found]
    rows = evaluate_rows(
        sweep.experts,
        prepared.pool.tasks,
        rows,
        folder.correct,
        folder.learned,
        sweep.progress,
        metric,
    )
    classes = {name: len(task.classnames) for name, task in prepared.tasks.items()}
    unit = prepared.inputs.kind
    rows = [
        replace(
            row,
            notes=(
                *row.notes,
                *outside_answers(row.test, classes),
                *recognition(row.test, unit),
            ),
        )
        for row in rows
    ]
    marks = {n: shift_fingerprint(spec.shifts, n, prepared.others) for n in spec.shifts}
    rows = measure_shifts(
        sweep.experts, marks, rows, folder.correct, folder.learned, sweep.progress, metric
    )
    measure_experts(sweep.experts, folder.path, sweep.context.common, sweep.progress)
    rows = measure_times(sweep.experts, rows, folder.correct, folder.learned, sweep.progress)
    rows = [with_recipe(row, prepared, folder, sweep.experts) for row in rows]
    sweep.tracker.flush(folder.ledger)
    return [replace(row, run_id=sweep.tracker.run_id(row.trial_key or "")) for row in rows]


def compared(sweep: SweepRun, rows: Iterable[Row]) -> Comparison:
    """The comparison of evaluated rows."""
    spec = sweep.spec
    header = Header(
        spec.name,
        sweep.identity.spec_hash,
        select_on=spec.splits.select,
        report_on=spec.splits.report,
        metric=spec.metric,
        tasks=tuple(spec.tasks),
        unseen=spec.unseen,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={name: version(name) for name in PACKAGES},
        command=redact.text(sweep.command) or None,
        adapt_on_shift=spec.adapt_on_shift,
        precision=spec.placement.precision,
        report_precision=spec.placement.report_precision,
        delta_dtype=spec.placement.delta_dtype,
    )
    entries = list(sweep.entries())
    ends = fields_of(entries, "failed"), fields_of(entries, "stopped")
    return compare(header, rows, read_correct(sweep.folder.correct), *ends)


def learning_inputs(
    prepared: Prepared, data: Mapping[str, TaskData], folder: SweepFolder, *, everywhere: bool
) -> LearningInputs | None:
    """Inputs of learning trials; None if no method learns.

    `everywhere`: whether there may be trials on other nodes.
    """
    entries, needs = prepared.spec.methods, prepared.needs
    if not any(METHODS[name].learns for name in entries):
        return None
    seen = learners(data)
    return LearningInputs(
        prepared.pool.tasks,
        prepared.pool.groups,
        seen,
        sizes_of(seen),
        needs.extractors,
        artifact_store(folder.learned.resolve(), everywhere=everywhere),
        frozenset(name for name, entry in entries.items() if entry.scheduler),
        {gate: (Path(gate).absolute(), key) for gate, key in needs.gates.items()},
        home(),
        prepared.spec.metric,
        tuple(content_hash(prepared.pool.experts[name]) for name in prepared.pool.tasks),
        stacked_rows(prepared),
    )


def stacked_rows(prepared: Prepared) -> int:
    """Most rows in one pass of several tasks' models; 0 where the plan has no such passes."""
    if not prepared.plan.stacked:
        return 0
    return prepared.pool.stacked_rows(prepared.plan.device, prepared.spec.placement.dtype)


def noted(row: Row, prepared: Prepared, learned: Path) -> Row:
    """Add a row's disclosures, whether the sweep file asked for it, and what its model takes."""
    spec, experts = prepared.spec, prepared.pool.experts
    under, unit = under_words(spec), prepared.inputs.kind
    said = notes_of(row.method, row.params, spec.splits, unseen=spec.unseen, under=under, unit=unit)
    notes = [*row.notes, *said]
    used = [row.method] if row.method in spec.references else experts
    others = [name for name in prepared.otherwise if name in used]
    if others and row.method != BASE:
        names = ", ".join(others)
        notes.append(f"{unit}s prepared as the base's file says; that of {names} differs")
    if is_soup(spec):
        hashes = {name: content_hash(expert) for name, expert in experts.items()}
        notes += notes_of_pool(row.method, hashes)
    held = footprint(row, prepared.pool, learned / learned_name(row.trial_key or ""))
    return replace(
        row, notes=tuple(notes), asked=row.method in prepared.asked, cost={**row.cost, **held}
    )


def with_recipe(row: Row, prepared: Prepared, folder: SweepFolder, experts: WeightsReader) -> Row:
    """Write a row's recipe file; `experts` has none, being no single model, and finished models
    have none."""
    spec = prepared.spec
    if row.trial_key is None or row.method == "experts" or row.method in spec.references:
        return row
    selected = {
        "split": spec.splits.select,
        "metric": spec.metric,
        "value": row.val.get(spec.metric),
    }
    learned = data = None
    method = METHODS.get(row.method)
    if method is not None and method.learns:
        learned = folder.learned / learned_name(row.trial_key)
        data = learned.read_bytes()
    statistics: tuple[str, ...] = ()
    if method is not None and "statistics" in method.reads:
        statistics = experts.statistics(Recipe(row.method, row.params))
    path = recipe.write(
        folder.recipes, row.method, prepared.pool, row.params, spec.name, selected, learned,
        statistics, spec.placement.result_dtype, spec.placement.precisions,
        experts.running(Recipe(row.method, row.params, data)) if prepared.batch_norm else {},
    )  # fmt: skip
    return replace(row, recipe=str(path.relative_to(folder.path)))
