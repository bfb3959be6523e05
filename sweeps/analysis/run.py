"""`sweeps analyse`: geometry and loss landscape of a sweep's models.

`outputs/<name>/analysis/` gets `analysis.html`, a JSON file a part, its tables (Parquet and CSV),
pictures (PNG), and the points that were evaluated: a second call continues from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from actors.artifacts.recipe import BASE
from actors.data.task import Role
from actors.data.task_rows import TaskData
from actors.experts.protocol import Experts
from actors.experts.unseen_tasks import learners
from fusion.analysis.diagnosis import diagnose
from fusion.errors import InputError, unknown
from fusion.task_vectors.gram import layer_of
from sweeps.analysis.core import finding
from sweeps.analysis.core.evaluated_points import PROBE, Points, labels_of, with_probe
from sweeps.analysis.core.finding import Finding
from sweeps.analysis.core.inputs import BEST, SECOND, AnalysisInputs, AnalysisOptions
from sweeps.analysis.core.shift_probes import described, shift_contexts, with_shift_probes
from sweeps.analysis.html_page import write_page
from sweeps.analysis.parts import angles, landscape, pair_averages, robustness, soup_vs_ensemble
from sweeps.console import redact
from sweeps.console.progress import Progress
from sweeps.execution.site import Site
from sweeps.execution.start_fleet import start_fleet
from sweeps.planning.prepare import prepare
from sweeps.planning.prepared import Prepared
from sweeps.report.html import write_html
from sweeps.results.folder import SweepFolder, owned, read_identity
from sweeps.results.ingredient_recipes import TrainingRecipe, recipe_of
from sweeps.spec.reference_methods import is_soup
from sweeps.spec.sweep import SweepSpec
from sweeps.tracking import mlflow_store, tracker

PARTS: Mapping[str, Callable[[AnalysisInputs, AnalysisOptions], Finding]] = {
    "gram": angles.gram,
    "plane": landscape.plane,
    "angles": pair_averages.angles,
    "barriers": landscape.barriers,
    "grid": pair_averages.grid,
    "gap": soup_vs_ensemble.gap,
    "robustness": robustness.robustness,
}
"""In the order in which they are computed."""

DIAGNOSIS = "diagnosis"
"""The part that every call makes, of what is there."""


@dataclass(frozen=True)
class Analysis:
    """Result of an analysis."""

    folder: Path
    findings: tuple[Finding, ...]
    """Of all parts that are there, those of earlier calls among them."""
    logged: str
    """Where it is in MLflow, or the reason why it is not."""

    @property
    def page(self) -> Path:
        """The HTML file."""
        return self.folder / "analysis.html"


def analyse(
    spec: SweepSpec,
    outputs: Path,
    console: Console,
    *,
    parts: Sequence[str] = tuple(PARTS),
    options: AnalysisOptions | None = None,
    rows: int = 1000,
    address: str | None = None,
) -> Analysis:
    """Load a sweep's pool as `sweeps run` does, and compute the parts of the analysis on the select
    split.

    Args:
        spec: whose pool, tasks and splits; its methods are not run.
        outputs: the folder of all sweeps; this one's gets `outputs/<name>/analysis`.
        console: for progress.
        parts: which, of `PARTS`.
        options: models and sizes.
        rows: of each task that walks are measured on; 0: all of select.
        address: of a running Ray cluster; None: `$RAY_ADDRESS`, else one of our own.

    Raises:
        InputError: wrong input, nothing started; or models that span no plane.
    """
    options = options or AnalysisOptions()
    check(spec, parts, options)
    folder = SweepFolder(outputs / spec.name)
    with ExitStack() as stack:
        stack.enter_context(owned(folder.path))
        with ExitStack() as running:
            progress = running.enter_context(Progress(console))
            site = Site(address, progress.say)
            running.enter_context(site.join())
            # References are rows of the comparison; no part of an analysis is made of them.
            # An analysis is a report, in the precision of reports.
            placement = spec.placement.model_copy(
                update={"precision": spec.placement.report_precision}
            )
            alone = spec.model_copy(update={"references": {}, "placement": placement})
            prepared = prepare(alone, outputs, site.resources())
            recipes = {
                name: found
                for name, model in prepared.pool.experts.items()
                if (found := recipe_of(model.folder)) is not None
            }
            running.enter_context(site.start(prepared))
            under_shift = "robustness" in parts and bool(described(prepared).about)

            def probed(data: Mapping[str, TaskData]) -> dict[str, TaskData]:
                found = with_probe(learners(data), rows, spec.seed)  # others have report rows alone
                return with_shift_probes(found, prepared, rows) if under_shift else found

            roles: list[Role] = ["fit", "select"] if under_shift and options.linear else ["select"]
            fleet, data = start_fleet(running, site, prepared, progress, roles, probed)
            here = folder.path / "analysis"
            inputs = given_of(fleet.client, prepared, data, recipes, here, rows, progress)
            if under_shift:
                inputs = replace(inputs, shifted=shift_contexts(inputs.probe, prepared, data))
            files = computed(inputs, options, parts, here)
        return concluded(inputs, spec, outputs, folder, files)


def check(spec: SweepSpec, parts: Sequence[str], options: AnalysisOptions) -> None:
    """Raise InputError if the options name unknown parts or models."""
    for part in parts:
        if part not in PARTS:
            raise InputError(f"--only: {unknown('part', part, PARTS)}")
    for name in options.plane or ():
        words = (*spec.pool.experts, BASE, BEST, SECOND)
        if name not in words:
            raise InputError(f"--plane: {unknown('expert', name, words)}")
    for pair in options.pairs:
        for name in pair:
            if name not in spec.pool.experts:
                raise InputError(f"--pair: {unknown('expert', name, spec.pool.experts)}")
        if len(set(pair)) < len(pair):
            raise InputError(f"--pair: {','.join(pair)}: two different experts needed")
    check_path(spec, options)


def check_path(spec: SweepSpec, options: AnalysisOptions) -> None:
    """Raise InputError if `--path` names no expert with a task to evaluate on."""
    soup = is_soup(spec)
    own = [name for name in spec.pool.experts if soup or name in spec.tasks]
    if options.path is not None and options.path not in own:
        what = "expert" if soup else "expert with a task of its own"
        raise InputError(f"--path: {unknown(what, options.path, own)}")


def given_of(
    experts: Experts,
    prepared: Prepared,
    data: Mapping[str, TaskData],
    recipes: Mapping[str, TrainingRecipe],
    folder: Path,
    rows: int,
    progress: Progress,
) -> AnalysisInputs:
    """Inputs of all parts: Gram matrix, each expert's score, and evaluators of points."""
    spec, names = prepared.spec, prepared.pool.tasks
    context = prepared.context().common
    whole, probe = (
        Points(experts, names, role, folder / "points" / f"{context}-{kept}.json", progress)
        for role, kept in (("select", "select"), (PROBE, f"probe{rows}"))
    )
    singles = whole([whole.of({name: 1.0}) for name in names], "experts")
    return AnalysisInputs(
        context,
        experts.gram(),
        whole,
        probe,
        data,
        dict(zip(names, singles, strict=True)),
        spec.metric.replace("/seen", "/mean"),  # unseen tasks are not looked at
        recipes,
        spec.placement.reduced.get("precision", spec.placement.dtype),
        spec.seed,
        sum(len(labels_of(task, PROBE)) for task in data.values()),
        is_soup(spec),
        described(prepared),
        tuple(dict.fromkeys(layer_of(name) for name in prepared.pool.names)),
        prepared.inputs.kind,
    )


def computed(
    inputs: AnalysisInputs, options: AnalysisOptions, parts: Sequence[str], folder: Path
) -> list[Path]:
    """Compute parts and write each at once; returns the files."""
    if "plane" in parts:
        landscape.chosen_plane(inputs, options)  # what is wrong with it is said before the work
    return [
        path
        for part, compute in PARTS.items()
        if part in parts
        for path in finding.write(compute(inputs, options), folder)
    ]


def concluded(
    inputs: AnalysisInputs, spec: SweepSpec, outputs: Path, folder: SweepFolder, files: list[Path]
) -> Analysis:
    """Write the diagnosis, the page and the report that links to it, and log to MLflow."""
    here = folder.path / "analysis"
    contexts = {robustness.PART: inputs.context_under_shift}
    findings = [
        found
        for part in PARTS
        if (found := finding.read(here, part, contexts.get(part, inputs.context)))
    ]
    findings.append(diagnosis(inputs, findings))
    files = [*files, *finding.write(findings[-1], here)]
    report = folder.path / "report.html"
    facts = {
        "sweep": spec.name,
        "select": spec.splits.select,
        "report": spec.splits.report,
        "linked": report.exists(),
    }
    page, pictures = write_page(findings, here, facts)
    placed = [(path, "analysis") for path in (page, *files)]
    placed += [(path, "analysis/plots") for path in pictures]
    if report.exists():
        write_html(folder.path, report)
        placed.append((report, ""))
    return Analysis(here, tuple(findings), logged(spec, outputs, folder, placed))


def diagnosis(inputs: AnalysisInputs, findings: Sequence[Finding]) -> Finding:
    """Reasons why a soup of these models may be no better than the best of them."""
    about = "Limits are rules of thumb: each names what to look at, none is a proof."
    if not inputs.soup:
        line = "The models are experts of different tasks: there is no soup to diagnose."
        return Finding(DIAGNOSIS, inputs.context, "", (line,))
    pairs = [
        line
        for found in findings
        if found.part == "barriers"
        for line in found.tables.get("pairs", ())
    ]
    names = inputs.gram.tasks
    lines = diagnose(
        inputs.gram,
        [inputs.singles[name].get("acc/mean", float("nan")) for name in names],
        [inputs.recipes.get(name, {}).get("learning_rate") for name in names],
        {(line["first"], line["second"]): line["height"] for line in pairs},
    )
    quiet = "Nothing known of these models speaks against averaging them."
    return Finding(DIAGNOSIS, inputs.context, about, lines or (quiet,))


def logged(
    spec: SweepSpec, outputs: Path, folder: SweepFolder, files: Sequence[tuple[Path, str]]
) -> str:
    """Log files with the sweep's parent run; returns where that is, or why it failed."""
    if not folder.identity.exists():
        return "not logged: there is no sweep of this name yet"
    uri = spec.mlflow.tracking_uri or mlflow_store.default_uri(outputs)
    try:
        client, experiment = mlflow_store.connect(uri, spec.mlflow.experiment, outputs)
        runs = tracker.attach(client, experiment, read_identity(folder).sweep_id, files)
    except InputError as error:
        return f"not logged: {error}"
    except Exception as error:  # any error of a store: the analysis is on disk in any case
        return f"not logged: {mlflow_store.reason(error)}"
    shown = redact.url(uri)
    return shown if runs else f"not logged: {shown} has no run of this sweep"
