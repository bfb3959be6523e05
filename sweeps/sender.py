"""A thread that does one job after another, and does a job again until the other side takes it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

from sweeps.tracking import passes, reason

log = logging.getLogger(__name__)

QUEUED = 256
"""Jobs that wait at most: what is refused is on disk, and asked for again at the end."""

FIRST, LONGEST = 0.5, 10.0
"""Seconds before the second try, doubled from try to try, and at most."""

TRIES = 10
"""After this many, a job that fails while the other side answers others is given up."""

Job = Callable[[], None]


class Sender:
    """Jobs in order, in the background. Nobody who offers a job ever waits for it.

    Jobs must be idempotent: each is run again from its start after a fault that may pass.

    Args:
        probe: raises while the other side is away.
        patience: seconds that `drain` and `do` wait without any success.
    """

    def __init__(self, probe: Job, patience: float) -> None:
        self.probe = probe
        self.patience = patience
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self.pending: list[Future[bool]] = []
        self.trouble: str | None = None
        """What is wrong just now; None while all is well."""
        self.fault: str | None = None
        """Why something was not sent in the end."""
        self.shaky = False
        """Whether any answer was ever lost."""
        self.lost = Event()
        """Set once nothing is tried any more."""
        self.limit: float | None = None
        """When to give up, while somebody waits."""
        self.hurry = Event()
        """Ends a pause between two tries."""

    def offer(self, job: Job) -> bool:
        """Queue a job and return at once; False where too many wait."""
        self.pending = [future for future in self.pending if not future.done()]
        if len(self.pending) >= QUEUED or self.lost.is_set():
            return False
        self.pending.append(self.worker.submit(self.attempt, job))
        return True

    def drain(self) -> None:
        """Wait for all that is queued; says so where that may take a while."""
        self.patient()
        for future in self.pending:
            self.outcome(future)
        self.pending.clear()

    def do(self, job: Job) -> bool:
        """Queue a job behind all others and wait for it; whether it was done."""
        if self.lost.is_set():
            return False
        self.patient()
        return self.outcome(self.worker.submit(self.attempt, job))

    def close(self) -> None:
        """No more jobs."""
        self.lost.set()
        self.hurry.set()
        self.worker.shutdown(wait=False, cancel_futures=True)

    def patient(self) -> None:
        """From now on there is an end to trying."""
        if self.trouble and self.limit is None and not self.lost.is_set():
            log.warning("MLflow: %s; waiting up to %g s for it", self.trouble, self.patience)
        self.limit = time.monotonic() + self.patience
        self.hurry.set()

    def outcome(self, future: Future[bool]) -> bool:
        """Wait for a job; one who interrupts the waiting ends all of it."""
        try:
            return future.result()
        except BaseException:
            self.give_up(self.trouble or "interrupted")
            self.hurry.set()
            raise

    def attempt(self, job: Job) -> bool:
        """Do a job, again and again where its fault may pass; never raises."""
        tries = 0
        while not self.lost.is_set():
            try:
                job()
            except Exception as error:
                tries += 1
                self.shaky = True
                if not passes(error) or (self.enough(tries) and self.answers()):
                    self.fault = self.fault or reason(error)
                    log.warning("MLflow: %s; not sent", reason(error))
                    return False
                self.pause(reason(error), tries)
            else:
                self.well()
                return True
        return False

    def pause(self, why: str, tries: int) -> None:
        """Say once that the other side is away, and wait a while; or give up."""
        if self.enough(0):
            self.give_up(why)
            return
        if self.trouble is None:
            waiting = f"waiting up to {self.patience:g} s for it" if self.limit else "trying again"
            log.warning("MLflow: %s; %s", why, waiting)
        self.trouble = why
        seconds = min(FIRST * 2 ** (tries - 1), LONGEST)
        if self.limit is not None:
            seconds = min(seconds, max(0.0, self.limit - time.monotonic()))
        self.hurry.wait(seconds)
        self.hurry.clear()

    def enough(self, tries: int) -> bool:
        """Whether a job was tried often enough, or somebody has waited long enough."""
        late = self.limit is not None and time.monotonic() >= self.limit
        return late or tries >= TRIES

    def well(self) -> None:
        """A job was taken."""
        if self.trouble is not None:
            log.warning("MLflow: back")
            self.trouble = None
        if self.limit is not None:
            self.limit = time.monotonic() + self.patience

    def answers(self) -> bool:
        """Whether the other side is there."""
        try:
            self.probe()
        except Exception:
            return False
        return True

    def give_up(self, why: str) -> None:
        """Try nothing any more, and say so once."""
        if not self.lost.is_set():
            self.lost.set()
            self.fault = why
            log.warning("MLflow: %s; results stay on disk, --resume sends them", why)
