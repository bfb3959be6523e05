"""A sweep, from a spec to a comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from actors.artifacts.recipe import BASE, Recipe
from actors.checkpoints.checkpoint import content_hash
from actors.cluster import metrics
from actors.cluster.measured_memory import keep_peak
from actors.data.task_rows import TaskData
from actors.experts.protocol import Experts
from actors.experts.unseen_tasks import learners
from actors.files.cache_dir import cache_dir
from actors.fleet.file_transfer import home
from actors.fleet.fleet import Client
from fusion.registry import METHODS, Informed, Learned
from sweeps.console import redact, signals
from sweeps.console.optional import aside
from sweeps.console.progress import Progress
from sweeps.execution.final_evaluation import evaluate_rows, measure_shifts
from sweeps.execution.preflight import Begin, ready
from sweeps.execution.site import Site
from sweeps.execution.stale_trials import renew
from sweeps.execution.start_fleet import stand
from sweeps.planning.prepared import Prepared
from sweeps.planning.shift_data import shift_fingerprint
from sweeps.planning.shift_rows import extended
from sweeps.report.charts import static_figures
from sweeps.report.charts.search_surfaces import write_tables
from sweeps.report.html import write_html
from sweeps.results import recipe
from sweeps.results.comparison import MEAN, SEEN, UNSEEN, Comparison, Row, compare
from sweeps.results.comparison_file import write, write_table
from sweeps.results.correctness_file import read_correct
from sweeps.results.disclosures import notes_of, notes_of_pool, under_words
from sweeps.results.folder import Identity, SweepFolder, claim, learned_name, owned, state_name
from sweeps.results.ledger import Entry
from sweeps.results.winners import counted, winners
from sweeps.spec.reference_methods import is_soup
from sweeps.spec.sweep import SweepSpec
from sweeps.storage import fetch
from sweeps.storage.mirror import Mirror
from sweeps.tracking import markdown, mlflow_store
from sweeps.tracking.run_fields import totals
from sweeps.tracking.tracker import Tracker
from sweeps.trials.artifact_store import keep
from sweeps.trials.learn_coding import Course, sizes_of
from sweeps.trials.run_trials import run_trials

PACKAGES = ("fusion-sweeps", "torch", "transformers", "ray", "mlflow", "datasets")

RESUMED = "--resume makes it"


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended."""

    comparison: Comparison
    folder: SweepFolder
    failed: tuple[Entry, ...]
    unsent: str | None
    """Why MLflow lacks results; None when it has all."""
    mlflow: str
    """Where MLflow keeps them."""
    unstored: str | None = None
    """Why the storage lacks results; None when it has all, or there is none."""


def run(
    spec: SweepSpec,
    outputs: Path,
    console: Console,
    *,
    address: str | None = None,
    resume: bool = False,
    fresh: bool = False,
    extend: bool = False,
    storage: str | None = None,
    command: str = "",
) -> Outcome:
    """Run a sweep to its comparison; everything wrong with the input is found before it starts.

    Args:
        spec: what to run.
        outputs: the folder of all sweeps; this one gets `outputs/<name>`.
        console: for progress.
        address: of a running Ray cluster; None: `$RAY_ADDRESS`, else one of our own.
        resume: go on with what is there.
        fresh: move what is there aside.
        extend: go on with what is there, with other methods, search spaces or metric.
        storage: a URL to which the sweep's folder is copied after every trial.
        command: what reproduces the sweep, for the report.

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
        stack.enter_context(site.join())
        begin = Begin(resume, fresh, extend, storage)
        found = ready(spec, outputs, site.resources(), begin)
        prepared, uri, store = found.prepared, found.uri, found.store
        client, experiment = mlflow_store.connect(
            uri, spec.mlflow.experiment, outputs, progress.say
        )
        if page := stack.enter_context(site.start(prepared)):
            progress.say(f"dashboard {page}")
        fleet, data = stand(
            stack,
            site,
            prepared,
            progress,
            prepared.roles,
            lambda data: extended(prepared, data),
            extractors=list(prepared.needs.extractors.values()),
        )
        # Only now, with every weight and image accepted, does the sweep leave a trace.
        sent = fetch.take_up(store, folder, fresh=fresh) if store else {}
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
            watch=folder.path,
            say=progress.say,
        )
        try:
            course = course_of(prepared, data, folder, everywhere=bool(site.target))
            comparison = swept(
                fleet.client, prepared, folder, identity, tracker, progress, command, course, mirror
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
    return Outcome(comparison, folder, failed, tracker.fault, shown, mirror.fault)


def swept(
    experts: Client,
    prepared: Prepared,
    folder: SweepFolder,
    identity: Identity,
    tracker: Tracker,
    progress: Progress,
    command: str,
    course: Course | None,
    mirror: Mirror,
) -> Comparison:
    """Trials, then the comparison: with experts loaded and data at hand."""
    spec, context = prepared.spec, prepared.context()
    ledger, plan = folder.ledger, prepared.plan
    for damaged in ledger.set_aside():
        progress.say(f"ledger/{damaged}: damaged; its trial runs again")
    ledger.clear_failed()
    renew(folder, context, progress.say)
    metrics.label(sweep=spec.name)

    def record(entry: Entry) -> None:
        entry = replace(entry, gpu_s=entry.busy_s * plan.gpus * plan.shards)
        ledger.add(entry)
        if plan.device == "cuda" and plan.shards == 1:
            keep_peak(prepared.load, entry.peak_bytes, cache_dir())
        (folder.learned / state_name(entry.trial_key)).unlink(missing_ok=True)
        metrics.count("trials", method=entry.method, status=entry.status)
        tracker.trial(entry)
        mirror.wake()
        value = entry.metrics.get(spec.metric)
        shown = "failed" if value is None else f"{spec.metric} {value:.4f}"
        progress.advance("trials", note=f"{entry.method}: {shown}")

    names = prepared.pool.tasks
    run_trials(spec, context, experts, names, folder, record, progress, course)
    rows = [noted(row, prepared) for row in winners(counted(ledger, spec), spec.metric)]
    rows = evaluate_rows(experts, names, rows, folder.correct, folder.learned, progress)
    marks = {n: shift_fingerprint(spec.shifts, n, prepared.others) for n in spec.shifts}
    rows = measure_shifts(experts, marks, rows, folder.correct, folder.learned, progress)
    rows = [with_recipe(row, prepared, folder, experts) for row in rows]
    tracker.flush(ledger)
    rows = [replace(row, run_id=tracker.run_id(row.trial_key or "")) for row in rows]
    comparison = compare(
        spec.name,
        identity.spec_hash,
        rows,
        read_correct(folder.correct),
        select_on=spec.splits.select,
        report_on=spec.splits.report,
        metric=spec.metric,
        tasks=tuple(spec.tasks),
        unseen=spec.unseen,
        failed=[vars(entry) for entry in counted(ledger, spec) if entry.status == "failed"],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={name: version(name) for name in PACKAGES},
        command=redact.text(command) or None,
        adapt_on_shift=spec.adapt_on_shift,
    )
    write(comparison, folder.path)
    shown(comparison, prepared, folder, tracker, progress.say)
    return comparison


def shown(
    comparison: Comparison,
    prepared: Prepared,
    folder: SweepFolder,
    tracker: Tracker,
    say: Callable[[str], None],
) -> None:
    """What shows a comparison that is on disk: files beside it, and MLflow.

    What fails of it is said, and changes nothing of how the sweep ends.
    """
    entries = counted(folder.ledger, prepared.spec)
    table, page = folder.path / "comparison.parquet", folder.path / "report.html"
    with aside(table.name, RESUMED, say, table):
        write_table(comparison, folder.path)
    with aside(page.name, f"sweeps report {folder.path} --html {page} makes it", say, page):
        write_html(comparison, page, entries)
    surfaces: Mapping[str, Path] = {}
    with aside("surfaces", RESUMED, say):
        surfaces = write_tables(comparison.rows, folder.learned, folder.surfaces)
    pictures: list[Path] = []
    with aside("plots", RESUMED, say):
        pictures = static_figures.draw(comparison, folder.path / "plots")
    note = ""
    with aside("the note in MLflow", RESUMED, say):
        note = markdown.described(comparison)
    log_winners(comparison, prepared, folder, tracker, surfaces, pictures, note, say)


def course_of(
    prepared: Prepared, data: Mapping[str, TaskData], folder: SweepFolder, *, everywhere: bool
) -> Course | None:
    """What learning trials are given; None where there are none.

    `everywhere`: whether there may be trials on other nodes.
    """
    entries, needs = prepared.spec.methods, prepared.needs
    if not any(isinstance(METHODS[name], Learned) for name in entries):
        return None
    seen = learners(data)
    return Course(
        prepared.pool.tasks,
        prepared.pool.groups,
        seen,
        sizes_of(seen),
        needs.extractors,
        keep(folder.learned.resolve(), everywhere=everywhere),
        frozenset(name for name, entry in entries.items() if entry.scheduler),
        {gate: (Path(gate).absolute(), key) for gate, key in needs.gates.items()},
        home(),
        prepared.spec.metric,
        tuple(content_hash(prepared.pool.experts[name]) for name in prepared.pool.tasks),
    )


def noted(row: Row, prepared: Prepared) -> Row:
    """The row, with what its reader must know."""
    spec, experts = prepared.spec, prepared.pool.experts
    under = under_words(spec)
    said = notes_of(row.method, row.params, spec.splits, unseen=spec.unseen, under=under)
    notes = [*row.notes, *said]
    if prepared.otherwise and row.method != BASE:
        names = ", ".join(prepared.otherwise)
        notes.append(f"images prepared as the base's file says; that of {names} differs")
    if is_soup(spec):
        hashes = {name: content_hash(expert) for name, expert in experts.items()}
        notes += notes_of_pool(row.method, hashes)
    return replace(row, notes=tuple(notes))


def with_recipe(row: Row, prepared: Prepared, folder: SweepFolder, experts: Experts) -> Row:
    """The row, with the recipe file that rebuilds it; `experts` are no one thing to rebuild."""
    if row.trial_key is None or row.method == "experts":
        return row
    spec = prepared.spec
    selected = {
        "split": spec.splits.select,
        "metric": spec.metric,
        "value": row.val.get(spec.metric),
    }
    learned = None
    if isinstance(METHODS.get(row.method), Learned):
        learned = folder.learned / learned_name(row.trial_key)
    statistics: tuple[str, ...] = ()
    if isinstance(METHODS.get(row.method), Informed):
        statistics = experts.statistics(Recipe(row.method, row.params))
    path = recipe.write(
        folder.recipes, row.method, prepared.pool, row.params, spec.name, selected, learned,
        statistics, spec.placement.result_dtype,
    )  # fmt: skip
    return replace(row, recipe=str(path.relative_to(folder.path)))


def log_winners(
    comparison: Comparison,
    prepared: Prepared,
    folder: SweepFolder,
    tracker: Tracker,
    surfaces: Mapping[str, Path],
    pictures: Sequence[Path],
    note: str,
    say: Callable[[str], None],
) -> None:
    """Report metrics, datasets and logged models of the winners; the sweep's artifacts."""
    datasets = {
        name: f"{task.fingerprint[:24]}-{prepared.splits.report}"[:36]
        for name, task in prepared.tasks.items()
    }
    summary: dict[str, float] = {}
    with aside("the sums in MLflow", "--resume sends them", say):
        summary |= totals(folder.ledger)
    for row in comparison.rows:
        if row.trial_key is None:
            continue
        path = folder.path / row.recipe if row.recipe else None
        tested = {name: value for name, value in row.test.items() if value is not None}
        learned = path.with_suffix(".safetensors") if path else None
        with aside(f"the model {row.method} in MLflow", "--resume sends it", say):
            tracker.winner(
                row.method,
                row.trial_key,
                tested,
                datasets,
                path,
                notes=row.notes,
                files=[learned] if learned and learned.exists() else [],
                surface=surfaces.get(row.method),
            )
        for name in (MEAN, SEEN, UNSEEN):
            if name in tested:
                summary[f"test/{name}/{row.method}"] = tested[name]
    names = ("comparison.json", "comparison.parquet", "report.html", "spec.yaml")
    files = [path for name in names if (path := folder.path / name).exists()]
    files += [*sorted(folder.recipes.glob("*.yaml")), *pictures]
    with aside("the sweep's run in MLflow", "--resume sends it", say):
        tracker.finish("FINISHED", summary, files, note=note, datasets=datasets)


def tags_of(prepared: Prepared, identity: Identity) -> dict[str, str]:
    """Tags of the sweep's parent run."""
    spec = prepared.spec
    chosen_on_report = spec.splits.select == spec.splits.report
    return {
        "spec_hash": identity.spec_hash,
        "select": spec.splits.select,
        "report": spec.splits.report,
        "selected_on_report": str(chosen_on_report).lower(),
        "base": spec.pool.base,
        "experts": ",".join(spec.pool.experts),
        "code": version("fusion-sweeps"),
    }
