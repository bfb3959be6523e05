"""The command line: `sweeps run | plan | merge | methods | list | train | report | export | …`.

Exit status: 0 done, 1 some trials failed (named), 2 wrong input (nothing was started), 70 a bug
of this program, 128 + n stopped by signal n (130: Ctrl-C). Errors are one line; `--debug` shows
the traceback.

Each command imports what it runs in its function: `sweeps --help` needs no torch and no Ray, and a
wrong sweep file is refused before either is imported.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actors.cluster.limits import bound_threads
from sweeps.cli.analyse import analyse
from sweeps.cli.cache import app as cache
from sweeps.cli.ending import Commands, guarded
from sweeps.cli.merge import merge
from sweeps.cli.options import (
    LOADING_TORCH,
    OUTPUTS,
    Address,
    Extend,
    Fresh,
    Import,
    Outputs,
    Resume,
    Set,
    Spec,
    Storage,
    method_names,
)
from sweeps.cli.stop_message import given, going_on, resuming, stoppable
from sweeps.console import redact, signals
from sweeps.console.escape import Screen
from sweeps.console.optional import aside
from sweeps.console.progress import Progress

if TYPE_CHECKING:
    from sweeps.execution.run import Outcome
    from sweeps.results.folder import Begin
    from sweeps.spec.sweep import SweepSpec

FINISHED = "everything finished is kept"

LOADING = "loading torch, Ray and MLflow …"
"""The line before the imports that take seconds."""

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Experiment sweeps for model fusion, on Ray, Ray Tune and MLflow.",
)


def say_version(asked: bool) -> None:
    """Print this package's version and end."""
    if asked:
        typer.echo(f"fusion-sweeps {version('fusion-sweeps')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=say_version, help="Show it.")
    ] = False,
) -> None:
    """Options of every command."""
    context.obj = debug
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(redact.Redacting())
    bound_threads()  # before torch is imported


@app.command()
def run(
    spec: Spec,
    address: Address = None,
    resume: Resume = False,
    fresh: Fresh = False,
    extend: Extend = False,
    storage: Storage = None,
    overrides: Set = None,
    modules: Import = None,
    outputs: Outputs = OUTPUTS,
) -> None:
    """Run a sweep; ends with the comparison table and where everything is."""
    from sweeps.results.folder import Begin
    from sweeps.spec.sweep import load

    with stoppable(FINISHED, going_on):
        begin = Begin(resume, fresh, extend, storage)
        conduct(load(spec, overrides or [], modules or []), outputs, begin, address)


def conduct(spec: SweepSpec, outputs: Path, begin: Begin, address: str | None) -> Outcome:
    """Run a loaded sweep file and print the result, which is returned; `run` and `quickstart`
    share it."""
    from sweeps.cluster import ray_connection

    ray_connection.stay_on_loopback(address)
    console, command = Screen(), given()
    console.print(LOADING)
    from sweeps.execution.run import run as run_sweep
    from sweeps.report.terminal_table import render

    outcome = run_sweep(spec, outputs, console, begin, address=address, command=command)
    with aside("the table", f"sweeps report {outcome.folder.path} shows it", typer.echo):
        render(outcome.comparison, console)
    console.print(f"report   {outcome.folder.path / 'report.html'}", soft_wrap=True, markup=False)
    console.print(f"recipes  {outcome.folder.recipes}", soft_wrap=True, markup=False)
    for line in where_to_look(outcome):
        console.print(line, soft_wrap=True, markup=False)
    if outcome.unsent:
        console.print(f"MLflow lacks results ({outcome.unsent}); send them with:", markup=False)
        console.print(resuming(command), soft_wrap=True, markup=False)
    if outcome.unstored:
        console.print(
            f"the storage lacks results ({outcome.unstored}); send them with:", markup=False
        )
        console.print(resuming(command), soft_wrap=True, markup=False)
    for entry in outcome.failed:
        console.print(
            f"failed: {entry.method} {dict(entry.params)}: {entry.error}",
            style="red",
            markup=False,
        )
    if outcome.failed:
        raise typer.Exit(1)
    return outcome


def where_to_look(outcome: Outcome) -> list[str]:
    """Lines with the pages of a finished sweep: MLflow's comparison, Optuna's, Ray's dashboard."""
    from sweeps.cluster.ray_connection import token_hint
    from sweeps.tracking.mlflow_store import serve_command
    from sweeps.trials.optuna_studies import FILE

    serve = serve_command(outcome.mlflow)
    lines = [f"mlflow   {f'{serve}  then ' if serve else ''}{outcome.page}"]
    if (studies := outcome.folder.path / FILE).exists():
        lines.append(f"optuna   optuna-dashboard {studies}  (pip install optuna-dashboard)")
    if outcome.dashboard:
        lines.append(f"ray      {outcome.dashboard}  ({token_hint()})")
    return lines


@app.command()
def plan(
    spec: Spec,
    address: Address = None,
    cluster: Annotated[
        Path | None,
        typer.Option(help="Plan for this cluster.yaml; nothing is asked of its hosts."),
    ] = None,
    gpu_memory: Annotated[
        float, typer.Option(help="With --cluster: GB of a GPU, where no label says it.")
    ] = 0.0,
    resume: Resume = False,
    fresh: Fresh = False,
    extend: Extend = False,
    storage: Storage = None,
    overrides: Set = None,
    modules: Import = None,
    outputs: Outputs = OUTPUTS,
) -> None:
    """Check what `run` with the same options would, and print placement, memory, trials and work;
    loads no weights."""
    from sweeps.spec.sweep import load

    loaded, screen = load(spec, overrides or [], modules or []), Screen()
    screen.print("loading torch, checking models, data and methods …")
    from sweeps.cli.plan import show
    from sweeps.results.folder import Begin

    begin = Begin(resume, fresh, extend, storage)
    show(loaded, outputs, screen, address, cluster, gpu_memory, begin)


@app.command()
def methods(
    name: Annotated[
        str | None, typer.Argument(help="One method, in full.", autocompletion=method_names)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    modules: Import = None,
) -> None:
    """The methods, by what they need: parameters, defaults, papers."""
    from sweeps.cli import list_methods

    if modules:
        from fusion.registry import import_methods

        import_methods(modules, [Path.cwd()], where="--import")

    if as_json:
        typer.echo(json.dumps(list_methods.as_json(name), indent=1))
    else:
        Screen().print(list_methods.describe(name))


@app.command()
def train(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A training file (YAML).")],
    address: Address = None,
    overrides: Set = None,
) -> None:
    """Fine-tune experts from a base (made first where the file says so), with Tune."""
    with stoppable("what has ended is kept", lambda _: given()):
        from sweeps.cluster import ray_connection
        from sweeps.train.spec import load

        loaded = load(spec, overrides or [])
        ray_connection.stay_on_loopback(address)
        Screen().print(LOADING)
        from sweeps.tracking.training_run import TrainingRun
        from sweeps.train.run import log_training
        from sweeps.train.run import train as train_pool

        console, store = Screen(), loaded.mlflow
        runs = TrainingRun(
            loaded.name, Path(loaded.out), store.tracking_uri, store.experiment, console.print
        )
        failed = train_pool(loaded, console, address=address)
        with aside("the runs in MLflow", "the same command sends them", typer.echo):
            page = log_training(loaded, runs)
            serve = f"{runs.serve}  then " if runs.serve else ""
            console.print(f"mlflow  {serve}{page}", soft_wrap=True, markup=False)
    if failed:
        raise typer.Exit(1)


@app.command()
def report(
    context: typer.Context,
    sweep: Annotated[
        str, typer.Argument(metavar="SWEEP", help="A sweep's name, folder, or URL on a storage.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the HTML report here.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="A live table until the sweep ends.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
    address: Annotated[
        str | None, typer.Option(help="Read the folder on the head of this Ray cluster.")
    ] = None,
    storage: Storage = None,
    outputs: Outputs = OUTPUTS,
) -> None:
    """The comparison of a finished (or running) sweep."""
    from sweeps.report.terminal_table import render
    from sweeps.results.comparison_file import document
    from sweeps.results.partial_comparison import gather
    from sweeps.storage.watch import watched

    given = context.get_parameter_source("outputs")
    chosen = given is not None and given.name == "COMMANDLINE"
    # As jobs are given it: `sweeps/cli/ray_job.py`.
    there = str(outputs) if chosen else os.environ.get("FUSION_SWEEPS_OUTPUTS")
    with watched(sweep, outputs, storage=storage, address=address, outputs_there=there) as found:
        if follow:
            from sweeps.cli.live_table import follow as follow_sweep

            if follow_sweep(found, Screen(), every).state != "finished":
                raise typer.Exit(1)
        comparison, _ = gather(found.folder)
        if html is not None:
            from sweeps.report.html import write_html

            write_html(found.folder, html)
    if as_json:
        typer.echo(json.dumps(document(comparison), indent=1))
    elif not follow:
        render(comparison, Screen())


@app.command(name="list")
def list_all(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    outputs: Outputs = OUTPUTS,
) -> None:
    """The sweeps in the outputs folder: state, trials, best row, date."""
    from sweeps.report.list_sweeps import listed, shown

    found = listed(outputs)
    if as_json:
        typer.echo(json.dumps([vars(each) for each in found], indent=1))
    else:
        Screen().print(shown(found))


app.command()(analyse)
app.command()(merge)
app.add_typer(cache, name="cache")


@app.command("schema")
def schema_of_files(
    training: Annotated[
        bool, typer.Option("--training", help="Of the training file, not of the sweep file.")
    ] = False,
) -> None:
    """JSON schema of the sweep file, for editors."""
    from sweeps.cli.file_formats.json_schema import sweep_schema, train_schema

    typer.echo(json.dumps(train_schema() if training else sweep_schema(), indent=1))


@app.command("init")
def init_file(
    base: Annotated[str, typer.Argument(metavar="BASE", help="A hub id or a folder.")],
    experts: Annotated[
        list[str], typer.Argument(metavar="EXPERT…", help="Hub ids or folders, or NAME=ID.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("sweep.yaml"),
) -> None:
    """Write a commented sweep file for a base and its experts."""
    from sweeps.cli.file_formats.new_file import new_file

    written = new_file(base, experts, out)
    Screen().print(
        f"{written}: set the dataset of each task, then: sweeps plan {shlex.quote(str(written))}",
        soft_wrap=True,
        markup=False,
    )


@app.command()
def export(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="outputs/…/recipes/….yaml")],
    out_dir: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="A new folder.")],
    check: Annotated[
        bool,
        typer.Option("--check", help="Run the model card's code, and compare with the row."),
    ] = False,
    modules: Import = None,
) -> None:
    """Rebuild a fused model from its recipe, as a Hugging Face folder with a model card."""
    with Progress(Screen()) as progress:
        with progress.doing(LOADING_TORCH):
            from fusion.registry import import_methods
            from sweeps.results.export.code import check_folders
            from sweeps.results.export.from_recipe import export as export_model

            import_methods(modules or [], [Path.cwd()], where="--import")
        if lacking := export_model(recipe, out_dir, progress.doing):
            progress.say(f"{out_dir}: {lacking}")
        progress.say(f"{out_dir}")
        if check:
            with progress.doing("running the model card's code on one task"):
                lines = list(check_folders(out_dir))
            for line in lines:
                progress.say(line)


@app.command()
def quickstart(
    text: Annotated[
        bool, typer.Option("--text", help="Texts: a small T5 and six experts.")
    ] = False,
    resume: Resume = False,
    modules: Import = None,
    outputs: Outputs = OUTPUTS,
) -> None:
    """Build an embedded pool if it is absent, of images or of texts, and sweep over it."""
    with stoppable(FINISHED, going_on):
        from actors.files.embedded_pool import IMAGES, TEXT
        from sweeps.cli.quickstart import QUICKSTARTS, ensure_pool, next_steps
        from sweeps.results.folder import Begin
        from sweeps.spec.sweep import load

        kind = TEXT if text else IMAGES
        loaded = load(QUICKSTARTS[kind], modules=modules or [])
        ensure_pool(kind, Screen())
        begin = Begin(resume=resume, fresh=not resume)
        outcome = conduct(loaded, outputs, begin, None)
        if not text:
            typer.echo("texts    `sweeps quickstart --text` does the same with a small T5")
        for line in next_steps(outcome.folder, outcome.comparison.best):
            typer.echo(line)


def main(program: Callable[[], object] = app) -> None:
    """Run the program; errors of the user end in one line each and status 2."""
    with signals.handled():
        guarded(program)


if __name__ == "__main__":
    main()
