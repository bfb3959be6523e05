"""Find finished trials that cannot be reused: other inputs, or a learned file that is missing.

A trial's key says all that its numbers depend on. One whose key is not what the sweep's files give
now was measured with other files, and would be mixed with new ones in one table. Its entry is moved
to `superseded/`, and the trial runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from actors.artifacts.learned_file import unpacked
from actors.files.checksums import unsealed
from fusion.errors import InputError, one_line
from fusion.registry import METHODS
from sweeps.console.number_format import count
from sweeps.results.folder import SweepFolder, learned_name
from sweeps.results.ledger import Entry, Stopped
from sweeps.spec.trial_key import Context, trial_key

KINDS = frozenset({"coding", "gate", "resident"})
"""Of learned files; each has a note of that name, with a hash."""

SUPERSEDED = "superseded"
"""Beside the ledger."""


def renew(
    folder: SweepFolder, context: Context, say: Callable[[str], None], metric: str = "acc/mean"
) -> None:
    """Set aside ledger entries that cannot be reused, and report how many and why.

    Args:
        folder: of the sweep.
        context: what trials depend on now.
        say: takes a line for the user.
        metric: that candidates are compared by now.
    """
    changed, entries = 0, list(folder.ledger)
    for entry in entries:
        if not current(entry, context):
            changed += 1
        elif entry.stopped is not None and not still_beaten(entry.stopped, entry, entries, metric):
            say(f"{entry.method}: stopped in a race that no longer holds; the trial runs again")
        elif (fault := lost(entry, folder)) is not None:
            say(f"{entry.method}: {fault}; the trial runs again")
        else:
            continue
        set_aside(folder, entry)
    if changed:
        say(
            f"{count(changed, 'finished trial')} of other files, settings or versions than now:"
            f" moved to {folder.path / SUPERSEDED}; what is still wanted runs again"
        )


def current(entry: Entry, context: Context) -> bool:
    """Whether a trial's key is still the key of its method, parameters and context."""
    try:
        return trial_key(entry.method, entry.params, context) == entry.trial_key
    except InputError:  # a parameter that the method no longer has
        return False


def still_beaten(stopped: Stopped, entry: Entry, entries: Iterable[Entry], metric: str) -> bool:
    """Whether a candidate that a stopped one could not reach is in the ledger, by the metric."""
    return stopped.metric == metric and any(
        other.method == entry.method and other.metrics.get(metric, -1.0) >= stopped.best
        for other in entries
        if other.status == "done"
    )


def lost(entry: Entry, folder: SweepFolder) -> str | None:
    """Reason why a trial's learned file cannot be read; None if it can, or it has none."""
    method = METHODS.get(entry.method)
    if entry.status != "done" or method is None or not method.learns:
        return None
    path = folder.learned / learned_name(entry.trial_key)
    try:
        data = path.read_bytes()
        _, facts = unsealed(data, must=False)
        for kind in facts.keys() & KINDS:
            unpacked(data, kind, str(path))
    except OSError as error:
        return f"{path}: {error.strerror}"
    except InputError as error:
        return str(error)
    except ValueError as error:
        return f"{path}: damaged ({one_line(error)})"
    return None


def set_aside(folder: SweepFolder, entry: Entry) -> None:
    """Move an entry out of the ledger."""
    name = f"{entry.trial_key}.json"
    (folder.path / SUPERSEDED).mkdir(exist_ok=True)
    (folder.ledger.folder / name).replace(folder.path / SUPERSEDED / name)
