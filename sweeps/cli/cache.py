"""The commands `sweeps cache …`: list the files of the cache folder, and check their checksums.

Imports are inside functions for start-up time, as in `main.py`.
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from sweeps.console.escape import Screen

app = typer.Typer(no_args_is_help=True, help="The cache of this machine: list it, verify it.")


@app.command("list")
def list_files() -> None:
    """Number and size of files of each kind."""
    from actors.artifacts.cache_files import KINDS, files_of
    from actors.files.cache_dir import cache_dir
    from sweeps.console.number_format import size

    table = Table(title=str(cache_dir()), title_justify="left")
    for name in ("kind", "files", "size"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for kind in KINDS:
        files = files_of(kind, cache_dir())
        table.add_row(kind, str(len(files)), size(float(sum(f.stat().st_size for f in files))))
    Screen().print(table)


@app.command()
def verify(
    remove: Annotated[
        bool, typer.Option("--remove", help="Delete damaged files; they are made again.")
    ] = False,
) -> None:
    """Read every file of the cache and compare its checksum.

    Exit status: 0 all are intact (or the damaged ones were deleted), 1 some are damaged. A damaged
    file is never used: a sweep makes it again.
    """
    from actors.artifacts.cache_files import KINDS, fault_of, files_of
    from actors.files.cache_dir import cache_dir
    from sweeps.console.number_format import size

    console, bad = Screen(), 0
    table = Table(title=str(cache_dir()), title_justify="left")
    for name in ("kind", "files", "size", "damaged"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for kind in KINDS:
        files, faults, total = files_of(kind, cache_dir()), 0, 0
        for file in files:
            total += file.stat().st_size
            fault = fault_of(kind, file)
            if fault is None:
                continue
            faults += 1
            console.print(f"{file}: {fault}", soft_wrap=True, markup=False, highlight=False)
            if remove:
                file.unlink(missing_ok=True)
        bad += faults
        table.add_row(kind, str(len(files)), size(float(total)), str(faults))
    console.print(table)
    if bad and remove:
        console.print(f"{bad} damaged, deleted; what is needed of them is made again")
    elif bad:
        console.print(f"{bad} damaged; sweeps make them again, --remove deletes them")
        raise typer.Exit(1)
