"""The command `sweeps analyse`: its options, and what it prints.

Imports are inside functions for start-up time, as in `main.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sweeps.cli.options import OUTPUTS, Address, Import, Outputs, Set, Spec
from sweeps.cli.stop_message import given, stoppable
from sweeps.console.escape import Screen

if TYPE_CHECKING:
    from sweeps.analysis.run import Analysis


def analyse(
    spec: Spec,
    only: Annotated[
        str,
        typer.Option(
            metavar="PARTS", help="Some of gram, plane, angles, barriers, grid, gap, robustness."
        ),
    ] = "",
    plane: Annotated[
        str,
        typer.Option(metavar="[ORIGIN,]FIRST,SECOND", help="Also pretrained, best, second."),
    ] = "",
    pair: Annotated[
        list[str] | None,
        typer.Option(metavar="FIRST,SECOND", help="For barriers and gap; may be given again."),
    ] = None,
    size: Annotated[int, typer.Option(min=2, help="Points along each axis of the plane.")] = 21,
    most: Annotated[int, typer.Option(min=2, help="Pairs are of so many models, the best.")] = 12,
    alpha: Annotated[float, typer.Option(min=0, max=1, help="Of the gap.")] = 0.5,
    path: Annotated[
        str,
        typer.Option(
            metavar="EXPERT",
            help="Where robustness walks to; default: the best, or each task's own expert.",
        ),
    ] = "",
    alphas: Annotated[int, typer.Option(min=2, help="Points on that path, with both ends.")] = 11,
    linear: Annotated[
        bool, typer.Option(help="Walk the linear classifier's path too: reads all fit rows.")
    ] = True,
    rows: Annotated[
        int,
        typer.Option(
            min=0, help="Rows a task for plane, barriers, gap, robustness; 0: all of select."
        ),
    ] = 1000,
    address: Address = None,
    overrides: Set = None,
    modules: Import = None,
    outputs: Outputs = OUTPUTS,
) -> None:
    """Geometry of a sweep's models, and WiSE-FT under shift; a page, tables, pictures."""
    with stoppable("points found are kept", lambda _: given()):
        from sweeps.cluster import ray_connection
        from sweeps.spec.sweep import load

        loaded = load(spec, overrides or [], modules or [])
        ray_connection.stay_on_loopback(address)
        from sweeps.analysis.core.inputs import read_options
        from sweeps.analysis.run import PARTS, analyse

        options = read_options(
            plane, pair or [], size=size, most=most, alpha=alpha, path=path or None,
            alphas=alphas, linear=linear,
        )  # fmt: skip
        parts = [part.strip() for part in only.split(",")] if only else list(PARTS)
        console = Screen()
        found = analyse(
            loaded, outputs, console, parts=parts, options=options, rows=rows, address=address
        )
        tell(found, console)


def tell(found: Analysis, console: Screen) -> None:
    """Print the findings, and where the files are."""
    for finding in found.findings:
        for line in finding.lines:
            console.print(f"{finding.part}: {line}", soft_wrap=True, markup=False, highlight=False)
    console.print(f"page    {found.page}", soft_wrap=True, markup=False)
    console.print(f"tables  {found.folder}", soft_wrap=True, markup=False)
    console.print(f"mlflow  {found.logged}", soft_wrap=True, markup=False)
