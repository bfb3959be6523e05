"""Compare two sweep files, and decide whether a sweep may continue with the new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actors.files.documents import parse_yaml
from fusion.errors import InputError
from sweeps.spec.errors import SpecErrors, shown
from sweeps.spec.sweep import SweepSpec, deciding, load_data
from sweeps.spec.trial_key import canonical

EXTENDS = ("methods", "metric", "shifts", "references")
"""Parts of a spec that may change under a sweep: what is tried, what is selected by, what rows are
measured on beside, and what methods are compared with. Numbers of finished trials depend on none of
them; they do on all others."""

MOST = 10
"""Lines of changes that are shown."""

ABSENT = object()


@dataclass(frozen=True)
class Change:
    """One field of a spec that differs."""

    field: str
    """Dotted: `methods.ties.density`."""
    old: Any
    new: Any

    @property
    def extends(self) -> bool:
        """Whether finished trials keep their numbers when this field changes."""
        return self.field.partition(".")[0] in EXTENDS

    def __str__(self) -> str:
        if self.old is ABSENT:
            return f"{self.field}: added {shown(self.new)}"
        if self.new is ABSENT:
            return f"{self.field}: removed (was {shown(self.old)})"
        return f"{self.field}: {shown(self.old)} -> {shown(self.new)}"


def changes(old: SweepSpec, new: SweepSpec) -> list[Change]:
    """Every field that decides numbers and differs, in the order of the new sweep file.

    What `spec_hash` leaves out (names, places) is left out here.
    """
    return list(differences(deciding(old), deciding(new), ""))


def differences(old: Any, new: Any, at: str) -> list[Change]:
    """The fields of two plain values that differ; lists are taken whole."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [] if canonical(old) == canonical(new) else [Change(at, old, new)]
    found = []
    for key in dict.fromkeys([*new, *old]):
        inner = f"{at}.{key}".lstrip(".")
        if key not in old:
            found.append(Change(inner, ABSENT, new[key]))
        elif key not in new:
            found.append(Change(inner, old[key], ABSENT))
        else:
            found += differences(old[key], new[key], inner)
    return found


def lines(found: list[Change]) -> list[str]:
    """One line for each change; changes after the tenth are counted."""
    said = [str(change) for change in found[:MOST]]
    return [*said, f"and {len(found) - MOST} more"] if len(found) > MOST else said


def check_extends(where: str, old_text: str, new_text: str, *, extend: bool) -> None:
    """Check that a sweep may continue with another sweep file: the user asked for it, and finished
    trials keep their numbers.

    A changed metric only selects: all metrics of finished trials are known. What TPE and CMA-ES
    suggest next is then replayed by the new metric, so that they may try more than `trials`. A
    trial that a scheduler stopped stays stopped, even if the scheduler changes.

    Args:
        where: the sweep is: a folder or URL.
        old_text: the spec it runs.
        new_text: the spec that it is to go on with.
        extend: whether methods, search spaces and metric may differ.

    Raises:
        SpecErrors: an InputError: a line that says so, a line a changed field, a line that says
            what can be done.
    """
    try:
        old = load_data(parse_yaml(old_text, where), where, importing=False)
    except InputError:
        raise InputError(
            f"{where}: was started from another spec, which cannot be read any more; "
            "give another name, or use --fresh"
        ) from None
    found = changes(old, load_data(parse_yaml(new_text, "the spec"), "the spec", importing=False))
    fixed = [change for change in found if not change.extends]
    if found and not fixed and extend:
        return
    if fixed:
        parts = ", ".join(dict.fromkeys(change.field.partition(".")[0] for change in fixed))
        way = f"{parts}: every number depends on it; give another name, or use --fresh"
        said = lines([*fixed, *(change for change in found if change.extends)])
    else:
        way = "--extend goes on with it and keeps finished trials; --fresh, or another name, do not"
        said = lines(found)
    raise SpecErrors([f"{where}: was started from another spec:", *said, way])
