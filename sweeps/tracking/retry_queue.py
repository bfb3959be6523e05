"""Retry queue: a thread that runs jobs in order and repeats each until the server accepts it.

At the end there is one budget for all jobs together: seconds that may go by in trouble. What is
not sent by then is on disk.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import TypeAlias

from sweeps.console import signals
from sweeps.tracking.mlflow_store import passes, reason

log = logging.getLogger(__name__)

QUEUED = 256
"""Most waiting jobs; rejected jobs are on disk, and are sent again at the end."""

FIRST, LONGEST = 0.5, 10.0
"""Seconds before the second try, doubled from try to try, and at most."""

DOUBLINGS = 30
"""After this many, the pause no longer grows: a float has no room for thousands."""

TRIES = 10
"""After this many, a job that fails while the other side answers others is given up."""

Job: TypeAlias = Callable[[], None]


class Sender:
    """Run jobs in order in the background; submitting one never blocks.

    Jobs must be idempotent: each is run again from its start after a fault that may pass.

    Args:
        probe: raises while the other side is away.
        patience: seconds of trouble, in all, that those who wait put up with.
        say: takes a line for the user; None: the log.
    """

    def __init__(
        self, probe: Job, patience: float, say: Callable[[str], None] | None = None
    ) -> None:
        self.probe = probe
        self.patience = self.left = patience
        self.say = say or log.warning
        self.jobs: SimpleQueue[tuple[Job, Future[bool]] | None] = SimpleQueue()
        self.pending: list[Future[bool]] = []
        self.trouble: str | None = None
        """What is wrong just now; None while all is well."""
        self.fault: str | None = None
        """Why something was not sent in the end."""
        self.shaky = False
        """Whether any answer was ever lost."""
        self.lost = Event()
        """Set once nothing is tried any more."""
        self.waited: float | None = None
        """Since when somebody waits: from then on trouble is charged."""
        self.hurry = Event()
        """Ends a pause between two tries."""
        self.lock = Lock()
        """Guards `trouble` and `waited`: the second to be set reports the wait."""
        # A request that never ends must not hold the process.
        Thread(target=self.work, name="mlflow", daemon=True).start()

    def work(self) -> None:
        """Main loop of the thread."""
        while (found := self.jobs.get()) is not None:
            job, future = found
            try:
                future.set_result(self.attempt(job))
            except Exception as error:  # a failed job must not block its waiters
                self.give_up(reason(error))
                future.set_result(False)

    def submit(self, job: Job) -> Future[bool]:
        """Queue a job."""
        future: Future[bool] = Future()
        self.jobs.put((job, future))
        return future

    def offer(self, job: Job) -> bool:
        """Queue a job and return at once; False if too many are queued."""
        self.pending = [future for future in self.pending if not future.done()]
        if len(self.pending) >= QUEUED or self.lost.is_set():
            return False
        self.pending.append(self.submit(job))
        return True

    def drain(self) -> None:
        """Wait until the queue is empty; prints a line if that may take a while."""
        self.patient()
        for future in self.pending:
            self.outcome(future)
        self.pending.clear()

    def do(self, job: Job) -> bool:
        """Queue a job and wait for it; returns whether it was done."""
        if self.lost.is_set():
            return False
        self.patient()
        return self.outcome(self.submit(job))

    def close(self) -> None:
        """Accept no more jobs."""
        self.lost.set()
        self.hurry.set()
        self.jobs.put(None)

    def patient(self) -> None:
        """Limit the retries from now on."""
        with self.lock:
            first, trouble = self.waited is None, self.trouble
            self.waited = time.monotonic() if self.waited is None else self.waited
        if first and trouble and not self.lost.is_set():
            self.say(f"MLflow: {trouble}; {self.waiting()}")
        self.hurry.set()

    def waiting(self) -> str:
        """Context of a caller that waits, during which retries are limited."""
        return f"waiting up to {self.limit():.3g} s for it"

    def limit(self) -> float:
        """Seconds that retries may still take."""
        stopped = signals.remaining()
        return max(0.0, self.left if stopped is None else min(self.left, stopped))

    def outcome(self, future: Future[bool]) -> bool:
        """Wait for a job; after a stop signal only for a short time."""
        try:
            return future.result(signals.remaining())
        except TimeoutError:
            self.give_up(self.trouble or "no answer before the end")
            self.hurry.set()
            return False

    def attempt(self, job: Job) -> bool:
        """Run a job, and retry while its error may pass; never raises."""
        tries = 0
        while not self.lost.is_set():
            began = time.monotonic()
            try:
                job()
            except Exception as error:
                tries += 1
                self.shaky = True
                over = not passes(error) or (tries >= TRIES and self.answers())
                self.refused(reason(error)) if over else self.pause(reason(error), tries)
                self.charge(began, reason(error))
                if over:
                    return False
            else:
                self.well()
                return True
        return False

    def refused(self, why: str) -> None:
        """Give up a job; the first one is reported."""
        if self.fault is None:
            self.fault = why
            self.say(f"MLflow: {why}; not sent")

    def pause(self, why: str, tries: int) -> None:
        """Report once that the server is away, and wait before the next try."""
        with self.lock:
            new, waited = self.trouble is None, self.waited is not None
            self.trouble = why
        if new:
            self.say(f"MLflow: {why}; {self.waiting() if waited else 'trying again'}")
        seconds = min(FIRST * 2.0 ** min(tries - 1, DOUBLINGS), LONGEST)
        self.hurry.wait(seconds if self.waited is None else min(seconds, self.limit()))
        self.hurry.clear()

    def charge(self, began: float, why: str) -> None:
        """Subtract a failed try and its pause from the budget, if a caller waits."""
        if self.waited is None:
            return
        self.left -= time.monotonic() - max(began, self.waited)
        if self.limit() <= 0:
            self.give_up(why)

    def well(self) -> None:
        """A job succeeded: reset the back-off."""
        if self.trouble is not None:
            self.say("MLflow: back")
            self.trouble = None

    def answers(self) -> bool:
        """Whether the server is there."""
        try:
            self.probe()
        except Exception:
            return False
        return True

    def give_up(self, why: str) -> None:
        """Stop retrying, and report it once."""
        if not self.lost.is_set():
            self.lost.set()
            self.fault = why
            self.say(f"MLflow: {why}; results stay on disk, --resume sends them")
