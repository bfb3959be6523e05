"""Where to read a running sweep's results: a local folder, a storage, the head of a Ray cluster.

Remote files are copied to a folder of this process whenever they change; the other modules read
that folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from actors.files.documents import read_bytes
from fusion.errors import InputError
from sweeps.results.folder import SweepFolder
from sweeps.results.owner import FILE as OWNER
from sweeps.results.owner import read_owner
from sweeps.storage.fetch import place_of, put
from sweeps.storage.store import Store, guarded, open_store

READ = ("comparison.json", "spec.yaml", "sweep.json", OWNER)
"""Beside the ledger, what a reader of results needs."""

NOT_YET = "; one that was just started is there when its weights are loaded"

PATIENCE = 60.0
"""Seconds for the head of a cluster to answer."""

Stamps: TypeAlias = Mapping[str, tuple[Any, ...]]
Pull: TypeAlias = Callable[[Stamps], tuple[Stamps, Mapping[str, bytes]]]
"""pull(stamps known) -> (stamps of all files there, contents of those whose stamp is new)."""


@dataclass
class Watched:
    """A sweep's results in a folder; remote ones as of the last `refresh`."""

    folder: Path
    where: str
    """For people."""
    pull: Pull | None = None
    """None: the folder is the sweep's own."""
    known: Stamps = field(default_factory=dict)

    def refresh(self) -> None:
        """Copy changed files.

        Raises:
            InputError: the other side gives no answer, or has no sweep there.
        """
        if self.pull is not None:
            stamps, contents = self.pull(self.known)
            # The comparison last, and who runs it after that: they count on the rest.
            order = sorted(contents, key=lambda name: (name == OWNER, name == "comparison.json"))
            for name in order:
                put(place_of(SweepFolder(self.folder), name, self.where), contents[name])
            for name in self.known.keys() - stamps.keys():
                place_of(SweepFolder(self.folder), name, self.where).unlink(missing_ok=True)
            self.known = stamps
        if not SweepFolder(self.folder).identity.exists():
            raise InputError(f"{self.where}: no sweep there{NOT_YET}")


@contextmanager
def watched(
    sweep: str,
    outputs: Path,
    *,
    storage: str | None = None,
    address: str | None = None,
    outputs_there: str | None = None,
) -> Iterator[Watched]:
    """Find a sweep's results and refresh them once.

    Args:
        sweep: a name, a folder, or the URL of a sweep on a storage.
        outputs: where sweeps are kept here.
        storage: where to look for a sweep that is not here, or does not run here.
        address: of a Ray cluster, to read the folder on its head.
        outputs_there: where sweeps are kept on that head; None: as is set there.

    Raises:
        InputError: no such sweep.
    """
    with tempfile.TemporaryDirectory(prefix="sweep-") as made:
        copy = Path(made) / sweep.rstrip("/").rpartition("/")[2]
        if address is not None:
            from sweeps.cluster import ray_connection  # start-up time: sets up Ray

            there = ray_connection.target(address)
            if there is None:
                raise InputError(f"--address: {address!r}: a running cluster's address allowed")
            with ray_connection.connected(there, 0):
                place = outputs_there or "its outputs folder"
                found = Watched(copy, f"{address}: {sweep} in {place}")
                found.pull = cluster_pull(sweep, outputs_there, found.where)
                found.refresh()
                yield found
            return
        local = Path(sweep) if Path(sweep).is_dir() else outputs / sweep
        store = store_of(sweep, local, storage)
        found = Watched(local, str(local))
        if store is not None:
            found = Watched(copy, store.url, store_pull(store))
        elif not SweepFolder(local).identity.exists() and local.is_dir():
            yield found  # a folder of results alone: its comparison or ledger is all there is
            return
        found.refresh()
        yield found


def store_of(sweep: str, local: Path, storage: str | None) -> Store | None:
    """The storage to read a sweep from; None: the local folder."""
    if "://" in sweep:
        return open_store(sweep, "")
    if storage is None or is_run(local):
        return None
    store = open_store(storage, sweep)
    there = guarded(store, lambda: store.read("sweep.json")) is not None
    return store if there or not local.is_dir() else None


def is_run(folder: Path) -> bool:
    """Whether a driver runs the sweep in a local folder."""
    file = folder / OWNER
    owner = read_owner(read_bytes(file)) if file.exists() else None
    return owner is not None and owner.alive


def store_pull(store: Store) -> Pull:
    """Read from a storage."""

    def pull(known: Stamps) -> tuple[Stamps, Mapping[str, bytes]]:
        owner = store.read(OWNER)
        listed = {
            name: stamp
            for name, stamp in store.list(["ledger"]).items()
            if name in READ or name.startswith("ledger/")
        }
        new = [name for name, stamp in listed.items() if known.get(name) != stamp]
        contents = store.read_all(new)
        if owner is None:
            return listed, contents
        return {**listed, OWNER: ()}, {**contents, OWNER: owner}

    return lambda known: guarded(store, lambda: pull(known))


def cluster_pull(sweep: str, outputs: str | None, where: str) -> Pull:
    """Read from the head of the connected cluster, by a small task there."""
    import ray  # start-up time: a sweep on this machine, or on a storage, needs no Ray

    def read(known: Any) -> Any:
        # Pickled with its code: the head needs nothing of the project but its files.
        import os
        from pathlib import Path as There

        # Where `outputs_dir` keeps the sweeps of drivers that ran there.
        default = os.environ.get("FUSION_SWEEPS_OUTPUTS") or "~/fusion-sweeps/outputs"
        # An absolute `sweep` is its folder.
        folder = There(outputs or default).expanduser() / There(sweep).expanduser()
        stamps, contents = {}, {}
        for name in [*READ, *(f"ledger/{p.name}" for p in sorted(folder.glob("ledger/*.json")))]:
            try:
                about = (folder / name).stat()
                stamps[name] = (about.st_size, about.st_mtime_ns)
                if known.get(name) != stamps[name]:
                    contents[name] = (folder / name).read_bytes()
            except FileNotFoundError:
                stamps.pop(name, None)
        return str(folder), stamps, contents

    task = ray.remote(num_cpus=0, max_retries=2, resources={"node:__internal_head__": 0.001})(read)

    def pull(known: Stamps) -> tuple[Stamps, Mapping[str, bytes]]:
        ref = task.options(name=f"read results of {sweep}").remote(dict(known))
        try:
            folder, stamps, contents = ray.get(ref, timeout=PATIENCE)
        except ray.exceptions.RayError as error:
            ray.cancel(ref, force=True)
            raise InputError(f"{where}: the cluster's head: {str(error).splitlines()[0]}") from None
        if not stamps:
            raise InputError(f"{folder}, on the cluster's head: no sweep there{NOT_YET}")
        return stamps, contents

    return pull
