"""Read a sweep's comparison from its folder; of a running sweep, build one from finished trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fusion.errors import InputError
from sweeps.results.comparison import Comparison, Header, compare
from sweeps.results.comparison_file import read
from sweeps.results.folder import SweepFolder, read_identity
from sweeps.results.ledger import Entry, Ledger, fields_of
from sweeps.results.rows.winners import counted, winners
from sweeps.spec.sweep import SweepSpec, load, spec_hash


def gather(folder: Path) -> tuple[Comparison, tuple[Entry, ...]]:
    """(comparison, finished trials) of the sweep in `folder`; of a running sweep the comparison has
    select metrics only.

    A comparison of before the sweep was extended counts as none.
    """
    spec, entries = kept_spec(folder), tuple(Ledger(folder / "ledger"))
    if spec is not None:
        entries = tuple(counted(entries, spec))
    file = folder / "comparison.json"
    if entries and (not file.exists() or outdated(folder)):
        return running(folder, entries, spec), entries
    return noting_asked(read(folder), spec), entries


def noting_asked(comparison: Comparison, spec: SweepSpec | None) -> Comparison:
    """The comparison, with rows that the sweep file does not list as references.

    Comparisons of earlier versions do not say which rows these are.
    """
    if spec is None:
        return comparison
    asked = {*spec.methods, *spec.references}
    return replace(
        comparison,
        rows=tuple(
            replace(row, asked=row.asked and row.method in asked) for row in comparison.rows
        ),
    )


def kept_spec(folder: Path) -> SweepSpec | None:
    """Load the sweep's kept file; None if it is missing or of an older version."""
    file = folder / "spec.yaml"
    try:
        return load(file, importing=False) if file.exists() else None
    except InputError:
        return None


def finished_model(folder: Path, row: str) -> str | None:
    """Source of the finished model that a sweep's row is; None: the row is no such model."""
    spec = kept_spec(folder)
    return None if spec is None else spec.references.get(row)


def outdated(folder: Path) -> bool:
    """Whether the comparison was made with an earlier sweep file."""
    about = SweepFolder(folder)
    return about.identity.exists() and read(folder).spec_hash != read_identity(about).spec_hash


def running(folder: Path, entries: Sequence[Entry], spec: SweepSpec | None) -> Comparison:
    """Comparison of a running sweep: winners of finished trials, nothing reported."""
    ends = fields_of(entries, "failed"), fields_of(entries, "stopped")
    if spec is None:
        header = Header(folder.name, "", select_on=entries[0].split)
        return compare(header, winners(entries), {}, *ends)
    header = Header(
        spec.name,
        spec_hash(spec),
        select_on=spec.splits.select,
        report_on=spec.splits.report,
        metric=spec.metric,
        tasks=tuple(spec.tasks),
        unseen=spec.unseen,
        precision=spec.placement.precision,
        report_precision=spec.placement.report_precision,
        delta_dtype=spec.placement.delta_dtype,
    )
    return noting_asked(compare(header, winners(entries, spec.metric), {}, *ends), spec)
