"""Publish a comparison that is on disk: files beside it, and MLflow.

Each step may fail without failing the sweep: the reason is printed in one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from fusion.registry import METHODS
from sweeps.console.optional import RESUMED, aside
from sweeps.execution.keep_examples import keep_examples
from sweeps.execution.sweep_run import SweepRun
from sweeps.execution.winners_models import model_of
from sweeps.report.charts import static_figures
from sweeps.report.charts.search_surfaces import write_tables
from sweeps.report.html import write_html
from sweeps.results.comparison import MEANS, Comparison, is_single
from sweeps.results.comparison_file import write_table
from sweeps.tracking import markdown
from sweeps.tracking.run_fields import totals
from sweeps.trials.optuna_studies import FILE, write_studies


def publish(sweep: SweepRun, comparison: Comparison) -> None:
    """Write table, HTML report, plots and search surfaces, and send them to MLflow."""
    folder, say = sweep.folder, sweep.say
    table, page = folder.path / "comparison.parquet", folder.path / "report.html"
    with aside(table.name, RESUMED, say, table):
        write_table(comparison, folder.path)
    with aside("the report's examples", RESUMED, say):
        keep_examples(sweep, comparison)
    with aside(page.name, f"sweeps report {folder.path} --html {page} makes it", say, page):
        write_html(comparison, page, sweep.entries())
    surfaces: Mapping[str, Path] = {}
    with aside("surfaces", RESUMED, say):
        surfaces = write_tables(comparison.rows, folder.learned, folder.surfaces)
    pictures: list[Path] = []
    with aside("plots", RESUMED, say):
        pictures = static_figures.draw(comparison, folder.path / "plots")
    studies = folder.path / FILE
    with aside(studies.name, RESUMED, say, studies):
        write_studies(sweep.entries(), sweep.spec, studies)
    note = ""
    with aside("the note in MLflow", RESUMED, say):
        note = markdown.described(comparison)
    log_winners(sweep, comparison, surfaces, pictures, note)


def log_winners(
    sweep: SweepRun,
    comparison: Comparison,
    surfaces: Mapping[str, Path],
    pictures: Sequence[Path],
    note: str,
) -> None:
    """Send report metrics, data sets and logged models of the winners, and the sweep's artifacts.

    Args:
        sweep: the run.
        comparison: its result.
        surfaces: method -> table of what its winner searched.
        pictures: plots.
        note: description of the sweep's run in MLflow, as Markdown.
    """
    prepared, folder, tracker, say = sweep.prepared, sweep.folder, sweep.tracker, sweep.say
    datasets = {
        name: f"{task.fingerprint[:24]}-{prepared.splits.report}"[:36]
        for name, task in prepared.tasks.items()
    }
    summary: dict[str, float] = {}
    with aside("the sums in MLflow", "--resume sends them", say):
        summary |= totals(folder.ledger)
    with TemporaryDirectory(prefix="models-") as place:
        summary |= log_rows(sweep, comparison, surfaces, datasets, Path(place))
    names = ("comparison.json", "comparison.parquet", "report.html", "spec.yaml")
    files = [path for name in names if (path := folder.path / name).exists()]
    files += [*sorted(folder.recipes.glob("*.yaml")), *pictures]
    with aside("the sweep's run in MLflow", "--resume sends it", say):
        tracker.finish("FINISHED", summary, files, note=note, datasets=datasets)


def log_rows(
    sweep: SweepRun,
    comparison: Comparison,
    surfaces: Mapping[str, Path],
    datasets: Mapping[str, str],
    place: Path,
) -> dict[str, float]:
    """Send each row's winner; returns the metrics of the sweep's run.

    Args:
        sweep, comparison, surfaces: see `log_winners`.
        datasets: task -> digest of its report rows.
        place: a folder for the models.
    """
    folder, tracker, say = sweep.folder, sweep.tracker, sweep.say
    summary: dict[str, float] = {}
    left: dict[str, None] = {}
    for row in comparison.rows:
        if row.trial_key is None:
            continue
        path = folder.path / row.recipe if row.recipe else None
        tested = {name: value for name, value in row.test.items() if value is not None}
        learned = path.with_suffix(".safetensors") if path else None
        with aside(f"the model {row.method} in MLflow", "--resume sends it", say):
            source = model_of(row, path, sweep.prepared, place)
            if isinstance(source, str) and path and row.method in METHODS and is_single(row.method):
                left[source] = None
            tracker.winner(
                row.method,
                row.trial_key,
                tested,
                datasets,
                path,
                notes=row.notes,
                files=[learned] if learned and learned.exists() else [],
                surface=surfaces.get(row.method),
                source=source,
            )
        for name in map(comparison.value, MEANS):
            if name in tested:
                summary[f"test/{name}/{row.method}"] = tested[name]
    for why in left:
        say(f"MLflow: models are not stored: {why}; sweeps export writes them")
    return summary
