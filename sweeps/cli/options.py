"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sweeps.storage.outputs_dir import outputs_dir


def method_names(incomplete: str) -> list[str]:
    """Shell completion: the methods whose names begin so."""
    from sweeps.cli import list_methods

    return list_methods.names(incomplete)


def merge_names(incomplete: str) -> list[str]:
    """Shell completion: the methods of `sweeps merge` whose names begin so."""
    from sweeps.cli import list_methods

    return list_methods.names(incomplete, of_weights=True)


Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="A sweep file (YAML).")]
Outputs = Annotated[Path, typer.Option(help="Where all sweeps are kept.")]
Address = Annotated[
    str | None,
    typer.Option(help="A running Ray cluster; default: $RAY_ADDRESS, else this machine."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a field: methods.ties.trials=4."),
]
Storage = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="FUSION_SWEEPS_STORAGE",
        help="Durable storage (a folder, s3://…): the sweep is copied there after every trial.",
    ),
]
Import = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="A module with methods of your own, installed, in this folder, or beside SPEC.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a stopped sweep.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Move an old one of the name aside.")]
Extend = Annotated[
    bool, typer.Option("--extend", help="Go on with other methods, spaces, metric or shifts.")
]
OUTPUTS = outputs_dir()
LOADING_TORCH = "loading torch"
"""What a command without Ray and MLflow shows during its imports."""
