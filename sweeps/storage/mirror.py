"""Copy a running sweep's folder to durable storage, and write its signs of life.

Two background threads do this: the sweep never waits for a storage, and continues without it.
`run` wakes the copying after every trial.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from fusion.errors import InputError
from sweeps.console import signals
from sweeps.console.number_format import count
from sweeps.results import owner
from sweeps.results.folder import SweepFolder
from sweeps.results.ledger import write_text
from sweeps.results.owner import Owner, State, read_owner
from sweeps.storage.fetch import Sent, Signature, check_unowned
from sweeps.storage.store import Store, guarded, reason

GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("specs", ()),
    ("", ("spec.yaml", "sweep.json")),
    ("learned", ()),
    ("ledger", ()),
    ("correct", ()),
    ("recipes", ()),
    ("surfaces", ()),
    ("plots", ()),
    ("", ("comparison.parquet", "comparison.json", "report.html")),
)
"""What is sent, in this order: folders, or files by name. Each counts on those before it, so that a
storage that was cut off at any point holds a sweep that can be resumed."""

PAUSES = (1.0, 60.0)
"""Seconds until a storage that failed is tried again: at first, and at most."""

SOON = 0.2
LAST_TRIES = 3
PATIENCE = 120.0
"""Seconds, in all, that the end of a sweep waits for a storage; after a signal, fewer."""


class Taken(Exception):
    """Another driver has taken over the sweep on the storage."""


class Mirror:
    """Copy the folder and write heartbeats while the context is entered; copy all at its end."""

    def __init__(
        self,
        folder: SweepFolder,
        store: Store | None,
        sent: Sent,
        say: Callable[[str], None],
    ) -> None:
        """Nothing is copied before the context is entered.

        Args:
            folder: the sweep's.
            store: where it is copied to; None: nowhere, there are signs of life only.
            sent: what is there already, see `take_up`.
            say: takes a line for the user.
        """
        self.folder, self.store, self.sent, self.say = folder, store, sent, say
        self.owner = Owner()
        self.fault: str | None = None
        """Why the storage lacks something; None while all is well."""
        self.pause, self.retry, self.beat_due, self.beaten = 0.0, 0.0, 0.0, 0.0
        self.woken, self.ending = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.loop, name="mirror", daemon=True)
        self.heart = threading.Thread(target=self.pulse, name="pulse", daemon=True)

    def wake(self) -> None:
        """Signal that files changed; returns at once."""
        self.woken.set()

    def __enter__(self) -> Mirror:
        """Take ownership of the sweep and start the threads.

        Raises:
            InputError: another driver owns the sweep, or the storage cannot be written.
        """
        signals.last_words.append(self.stopped)
        try:
            if (store := self.store) is not None:
                check_unowned(store, but=self.owner.driver)
                guarded(store, lambda: store.write(owner.FILE, self.owner.dump()))
            self.note("running")
            self.beat_due = time.monotonic() + owner.BEAT
            self.woken.set()
            self.thread.start()
            self.heart.start()
        except KeyboardInterrupt:
            self.stopped()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        state: State = "finished"
        if kind is not None:
            state = "stopped" if issubclass(kind, KeyboardInterrupt) else "failed"
        self.ending.set()
        self.woken.set()
        try:
            self.close(state)
        except KeyboardInterrupt:  # the first signal comes now
            self.close("stopped")
            raise
        finally:
            signals.last_words.remove(self.stopped)
        if self.store is not None and self.fault is not None:
            lacks = count(len(self.lacking()), "file")
            self.say(f"storage {self.store.url} lacks {lacks} ({self.fault}); --resume sends them")

    def stopped(self) -> None:
        """Release the sweep when the process is stopped."""
        self.ending.set()
        self.note("stopped")

    def close(self, state: State) -> None:
        """Release the sweep, then send what is missing, for a limited time.

        A storage may hang: a thread asks it, which is left alone when time is up.
        """
        self.heart.join()
        self.note(state)
        if self.store is None:
            return
        last = threading.Thread(target=self.last, args=(state,), daemon=True)
        last.start()
        stopped = signals.remaining()
        patience = PATIENCE if stopped is None else min(PATIENCE, stopped)
        last.join(patience)
        if last.is_alive():
            self.fault = self.fault or f"no answer in {patience:.0f} s"

    def last(self, state: State) -> None:
        """Send everything that is missing, then the final state of the sweep."""
        self.thread.join()
        if self.store is None:
            return
        for number in range(LAST_TRIES):
            time.sleep(number * PAUSES[0])
            self.attempt(state)
            if self.fault is None or self.store is None:
                return
        with suppress(Exception):  # a missed heartbeat is no error
            self.store.write(owner.FILE, self.owner.beating(state).dump())

    def loop(self) -> None:
        """Main loop of the copying thread."""
        while not self.ending.is_set():
            now = time.monotonic()
            due = min(self.beat_due, self.retry) if self.retry > now else self.beat_due
            self.woken.wait(max(0.0, due - now))
            self.woken.clear()
            if time.monotonic() >= self.retry and not self.ending.is_set():
                self.attempt()
            if time.monotonic() >= self.beat_due:
                self.beat_due = time.monotonic() + owner.BEAT

    def pulse(self) -> None:
        """Main loop of the heartbeat thread: a hanging storage must not look like a dead driver."""
        while not self.ending.wait(owner.BEAT):
            self.note("running")

    def note(self, state: State) -> None:
        """Write a heartbeat into the local folder; a full disk is reported elsewhere."""
        self.owner = self.owner.beating(state)
        with suppress(InputError, OSError):
            write_text(self.folder.path / owner.FILE, self.owner.dump().decode())

    def attempt(self, state: State = "running") -> None:
        """Send changed files; the first failure is reported and sets the time of the next try."""
        if (store := self.store) is None:
            return
        try:
            self.beat(store)
            self.send(store)
            if state != "running":
                store.write(owner.FILE, self.owner.beating(state).dump())
        except Taken as taken:
            self.fault, self.store = None, None
            self.say(f"storage {store.url}: {taken}; this one writes there no more")
        except Exception as error:  # any file system's own kinds
            if self.fault is None:
                self.say(f"storage {store.url}: {reason(error)}; the sweep goes on without it")
            self.fault = reason(error)
            self.pause = min(PAUSES[1], max(PAUSES[0], 2 * self.pause))
            self.retry = time.monotonic() + self.pause
        else:
            if self.fault is not None:
                self.say(f"storage {store.url}: is reached again")
            self.fault, self.pause = None, 0.0

    def beat(self, store: Store) -> None:
        """Write a heartbeat to the storage, unless another driver has taken over."""
        found = read_owner(store.read(owner.FILE))
        if found is not None and found.driver != self.owner.driver:
            raise Taken(f"another driver has taken this sweep over ({found.words()})")
        store.write(owner.FILE, self.owner.beating().dump())
        self.beaten = time.monotonic()

    def send(self, store: Store) -> None:
        """Send changed files in order, then remove files that were deleted locally."""
        here = scan(self.folder.path)
        if "sweep.json" not in here:
            raise InputError(f"{self.folder.path}: is gone; nothing is removed from the storage")
        for name, now in here.items():
            if self.sent.get(name) == now:
                continue
            data = unchanged(self.folder.path / name, now)
            if data is None:
                # It changed since it was listed, and with it perhaps others.
                self.retry = time.monotonic() + SOON
                continue
            store.write(name, data)
            self.sent[name] = now
            if time.monotonic() - self.beaten > owner.BEAT:
                self.beat(store)
        for name in [name for name in self.sent if name not in here]:
            store.remove(name)
            del self.sent[name]

    def lacking(self) -> list[str]:
        """Files that the storage lacks, or has in another version."""
        here = scan(self.folder.path)
        return [name for name, now in here.items() if self.sent.get(name) != now]


def scan(path: Path) -> Mapping[str, Signature]:
    """Every file to send, in order, with its signature.

    Listed from the end: what a file counts on was there before it, and so is listed after it.
    """
    found: list[tuple[str, Signature]] = []
    for folder, names in reversed(GROUPS):
        there = []
        with suppress(FileNotFoundError), os.scandir(path / folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or (names and entry.name not in names):
                    continue
                with suppress(FileNotFoundError):  # removed since it was listed
                    if entry.is_file():
                        about = entry.stat()
                        name = f"{folder}/{entry.name}" if folder else entry.name
                        there.append((name, (about.st_size, about.st_mtime_ns)))
        order = {name: at for at, name in enumerate(names)}
        there.sort(key=lambda each: (order.get(each[0], 0), each[0]))
        found = there + found
    return dict(found)


def unchanged(path: Path, listed: Signature) -> bytes | None:
    """Content of a file; None if it changed since it was listed."""
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            return file.read() if (about.st_size, about.st_mtime_ns) == listed else None
    except FileNotFoundError:
        return None
