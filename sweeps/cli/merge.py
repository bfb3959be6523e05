"""The command `sweeps merge`: one merged model from folders or hub ids, without a sweep.

Imports are inside functions for start-up time, as in `main.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fusion.errors import InputError
from sweeps.cli.options import LOADING_TORCH, Import, merge_names
from sweeps.console.escape import Screen
from sweeps.console.progress import Progress


def merge(
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD", help="As `sweeps methods` lists it.", autocompletion=merge_names
        ),
    ],
    base: Annotated[str, typer.Argument(metavar="BASE", help="A folder or hub id.")],
    experts: Annotated[
        list[str],
        typer.Argument(
            metavar="EXPERT…", help="Folders or hub ids, also of LoRA adapters; or NAME=FOLDER."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="A new folder.")],
    values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A hyper-parameter: density=0.2."),
    ] = None,
    result_dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="base (each tensor's in the base) or float32.")
    ] = "base",
    modules: Import = None,
) -> None:
    """Merge models into a new model folder, with a method that needs weights alone."""
    from sweeps.cli.file_formats.new_file import names

    params, named = parsed(values or []), names(base, experts)
    with Progress(Screen()) as progress:
        with progress.doing(LOADING_TORCH):
            from fusion.registry import import_methods
            from sweeps.results.export.merge_folders import merge as merge_folders

            import_methods(modules or [], [Path.cwd()], where="--import")
        with progress.doing(f"merging {len(named)} experts, writing the folder"):
            written = merge_folders(method, base, named, out, result_dtype=result_dtype, **params)
        progress.say(str(written))


def parsed(values: Sequence[str]) -> dict[str, Any]:
    """Hyper-parameters of `key=value` texts, whose values are YAML.

    Raises:
        InputError: no `key=value`, a key given twice, or no YAML.

    >>> parsed(["density=0.2", "merge=sum"])
    {'density': 0.2, 'merge': 'sum'}
    """
    from actors.files.documents import parse_yaml

    found: dict[str, Any] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise InputError(f"--set {text}: 'key=value' needed, as in density=0.2")
        if key in found:
            raise InputError(f"--set {text}: {key} is given twice")
        found[key] = parse_yaml(value, f"--set {text}")
    return found
