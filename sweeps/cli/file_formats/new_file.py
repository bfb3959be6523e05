"""A commented sweep file from model folders or hub ids: `sweeps init`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from actors.files.atomic import replacing
from fusion.errors import InputError
from sweeps.spec.fields import NAME, NAME_RULE

TEMPLATE = """\
# A sweep over {count} experts. Every field: docs/sweep_file.md. Check it with `sweeps plan {file}`.
name: {name}
pool:
  base: {base}
  experts:
{experts}
# One entry for each task that is evaluated. `dataset` is a folder, or an id on the hub.
tasks:
{tasks}
# Splits of the data. Without a split of its own, `val` is taken off `fit`.
splits: {{fit: train, select: val, report: test}}
# `sweeps methods` lists all of them. {{grid: [...]}} tries every value.
methods:
  simple_average: {{}}
  task_arithmetic: {{scale: {{grid: [0.1, 0.2, 0.3, 0.4, 0.5]}}}}
  ties: {{density: 0.2, scale: {{grid: [0.5, 1.0, 1.5]}}}}
# What a method's hyper-parameters are selected by.
metric: acc/mean
"""


def new_file(base: str, experts: Sequence[str], out: Path) -> Path:
    """Write a sweep file for a base and its experts.

    Args:
        base: hub id or folder.
        experts: hub ids or folders, or `name=hub id or folder`. The default name is the last part
            of the path, without the base's name before it.
        out: the file; it must not exist.

    Raises:
        InputError: no expert, a name that is not allowed, two experts of one name, or a file that
            exists.
    """
    named = names(base, experts)
    if out.exists():
        raise InputError(f"--out: {str(out)!r}: exists; another name needed")
    if not NAME.fullmatch(out.stem):
        raise InputError(f"--out: {str(out)!r}: {NAME_RULE} allowed before the suffix")
    text = TEMPLATE.format(
        count=len(named),
        file=out,
        name=out.stem,
        base=quoted(base),
        experts="\n".join(f"    {name}: {quoted(source)}" for name, source in named.items()),
        tasks="\n".join(f"  {name}: {{dataset: {name}}}" for name in named),
    )
    with replacing(out) as part:
        part.write_text(text, encoding="utf-8")
    return out


def names(base: str, experts: Sequence[str]) -> Mapping[str, str]:
    """Name -> source of each expert.

    >>> names("org/vit-b32", ["org/vit-b32_mnist", "cars=models/a"])
    {'mnist': 'org/vit-b32_mnist', 'cars': 'models/a'}
    """
    found: dict[str, str] = {}
    stem = Path(base).name
    for given in experts:
        name, mark, source = given.partition("=")
        if not mark:
            source, last = given, Path(given.partition("@")[0]).name
            name = last.removeprefix(stem).lstrip("_-.") or last
        if not NAME.fullmatch(name) or not source:
            raise InputError(f"EXPERT: {given!r}: {NAME_RULE} needed: write name={source or '…'}")
        if name in found:
            raise InputError(
                f"EXPERT: {given!r}: the name {name!r} of another: write name={source}"
            )
        found[name] = source
    if not found:
        raise InputError("EXPERT: none given: at least one hub id or folder needed")
    return found


def quoted(source: str) -> str:
    """A hub id or path as YAML text."""
    plain = all(char.isalnum() or char in "/._-" for char in source) and source[0].isalpha()
    return source if plain else "'" + source.replace("'", "''") + "'"
