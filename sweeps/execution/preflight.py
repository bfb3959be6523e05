"""Checks before a sweep starts; `plan` and `run` share them.

All that can be known without weights, pixels or a fleet is known here. What is left to `run` are
the contents themselves: NaN in weights, a text tower that was trained, a broken image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from actors.cluster.planner import Resources
from sweeps.planning.prepare import prepare
from sweeps.planning.prepared import Prepared
from sweeps.results.folder import Begin, SweepFolder, check_free
from sweeps.spec.sweep import SweepSpec, dump, spec_hash
from sweeps.storage import fetch
from sweeps.storage.store import Store, reach
from sweeps.tracking import mlflow_store


@dataclass(frozen=True)
class Ready:
    """A sweep that can start, and where."""

    prepared: Prepared
    folder: SweepFolder
    spec_hash: str
    """Of the spec as the user gave it."""
    spec_text: str
    uri: str
    """Where MLflow is."""
    store: Store | None


def ready(spec: SweepSpec, outputs: Path, resources: Resources, begin: Begin) -> Ready:
    """Run all checks of a validated sweep file; creates nothing.

    Args:
        spec: what to run.
        outputs: the folder of all sweeps.
        resources: where it would run.
        begin: what becomes of a sweep of its name that is there.

    Raises:
        InputError: what would keep the sweep from running; one line.
    """
    folder = SweepFolder(outputs / spec.name)
    prepared = prepare(spec, outputs, resources)
    now, text = spec_hash(spec), dump(spec)
    check_free(folder.path, now, text, **begin.going_on)
    store = reach(begin.storage, folder.path) if begin.storage else None
    if store:
        fetch.check_there(store, folder, now, text, **begin.going_on)
    uri = spec.mlflow.tracking_uri or mlflow_store.default_uri(outputs)
    mlflow_store.check_reachable(uri, spec.mlflow.experiment)
    return Ready(prepared, folder, now, text, uri, store)
