"""SIGINT, SIGTERM and SIGHUP: one way to stop, whatever sent it and whatever the program does.

The three signals are blocked in every thread, and one thread waits for them. So no handler that a
library installs (Tune's for SIGINT, Ray's and its core's for SIGTERM) is ever run, and a main
thread that is busy in C misses none.

* The first signal raises `Stopped` in the main thread, again and again until it is in flight there:
  one that was raised in a place that swallows it (`__del__`, a callback) is not lost. Who catches
  it has `remaining` seconds to hand results on.
* A second signal, half a second later or more, ends the process at once, with all that it started.
  A closed terminal sends two signals within milliseconds: they are one.

The program's exit status is 128 + the signal's number, however the code in between ended.

Imports nothing that takes time: what is imported after it may take seconds, and can be stopped.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

NUDGE = signal.SIGRTMIN + 7
"""Tells the main thread that there is something to raise, and the waiting thread to end."""

GRACE = 8.0
"""Seconds after the first signal in which results are handed on. Docker kills after 10, Slurm and
Ray's jobs after 30."""

APART = 0.5
"""Seconds between two signals that are two and not one."""

AGAIN = 1.0
"""Seconds after which `Stopped` is raised again where nobody is busy with it."""

LAST_WORDS = 1.0
"""Seconds that what is called before the end at once may take."""


class Stopped(KeyboardInterrupt):
    """The program was asked to stop; what is finished is kept."""


class Watch:
    """The thread that waits for signals, and what came."""

    def __init__(self) -> None:
        # Under `nohup` a closed terminal is to be ignored.
        ignored = {each for each in (signal.SIGHUP,) if signal.getsignal(each) is signal.SIG_IGN}
        self.signals = {*SIGNALS} - ignored
        self.main = threading.get_ident()
        self.number: int | None = None
        """Of the signal that came first."""
        self.since = 0.0
        """When that was, in monotonic seconds."""
        self.begun = False
        """Whether there is a sweep on disk that can be gone on with."""
        self.over = False
        self.before = {NUDGE: signal.signal(NUDGE, self.nudged)}
        # A thread of before takes signals too, and does with them what is said here.
        self.before |= {each: signal.signal(each, self.taken) for each in self.signals}
        self.masked = signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)
        self.thread = threading.Thread(target=self.wait, name="signals", daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """What the thread does."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {NUDGE})
        while not self.over:
            came = signal.sigtimedwait({*self.signals, NUDGE}, AGAIN)
            if came is not None and came.si_signo in self.signals:
                self.came(came.si_signo)
            if self.number is not None and not self.over:
                signal.pthread_kill(self.main, NUDGE)

    def came(self, number: int) -> None:
        """A signal."""
        now = time.monotonic()
        if self.number is None:
            self.number, self.since = number, now
        elif now - self.since >= APART:
            end(128 + number)

    def taken(self, number: int, frame: FrameType | None) -> None:
        """In the main thread: a signal that another thread took."""
        self.came(number)
        self.nudged(number, frame)

    def nudged(self, _: int, frame: FrameType | None) -> None:
        """In the main thread: raise, unless what was raised is still being dealt with."""
        if self.number is None or self.over or in_flight():
            return
        raise Stopped(self.number)

    def close(self) -> None:
        """No more waiting; signals do what they did before."""
        self.over = True
        with suppress(ProcessLookupError):
            signal.pthread_kill(self.thread.ident or 0, NUDGE)
        self.thread.join()
        self.restore()

    def restore(self) -> None:
        """Handlers and mask of before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.masked)


watch: Watch | None = None
"""While there is one."""

last_words: list[Callable[[], object]] = []
"""Called, in a thread, before an end at once: what is small and must be written."""

parting = False
"""Whether processes that are forked now are to be apart from our process group."""


def in_flight() -> bool:
    """Whether this thread is dealing with a stop, at any depth.

    Ray turns what is raised while it waits into a `KeyboardInterrupt` of its own.
    """
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False


def remaining() -> float | None:
    """Seconds left to hand results on, after a signal; None where none came."""
    if watch is None or watch.number is None:
        return None
    return max(0.0, watch.since + GRACE - time.monotonic())


def has_begun() -> bool:
    """Whether `begin` was called."""
    return watch is not None and watch.begun


def begin() -> None:
    """Say that from now on there is a sweep on disk that can be gone on with."""
    if watch is not None:
        watch.begun = True


@contextmanager
def handled(*, last: bool = False) -> Iterator[None]:
    """Signals are handled in this block; where one came, it ends with `SystemExit(128 + n)`.

    Inside another such block, and outside the main thread, it does nothing.

    Args:
        last: nothing comes after it: where a signal came the process ends here, whatever threads
            are busy, and whatever signals still come.
    """
    global watch
    if watch is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = Watch()
    try:
        yield
    finally:
        number = watch.number
        if last and number is not None:
            leave(128 + number)
        watch.close()
        watch = None
        if number is not None:
            raise SystemExit(128 + number) from None


@contextmanager
def apart() -> Iterator[None]:
    """Processes that are forked in this block get no signal that is meant for us.

    A terminal sends its signals to all of a process group: Ray would end while results are still
    handed on.
    """
    global parting
    parting = True
    try:
        yield
    finally:
        parting = False


def in_child() -> None:
    """In a process just forked: signals do what they do by default."""
    global watch
    if watch is not None:
        watch.restore()
        watch = None
    if parting:
        os.setpgid(0, 0)


os.register_at_fork(after_in_child=in_child)


def end(status: int) -> None:
    """End at once, with every process that this one started; what is on disk is whole."""
    words = threading.Thread(target=say_last, daemon=True)
    words.start()
    words.join(LAST_WORDS)
    with suppress(Exception):
        import psutil  # start-up time: only a process that is stopped needs it

        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    with suppress(Exception):
        if sys.stderr.isatty():
            os.write(2, b"\x1b[?25h\n")  # a live table hides the cursor
    os._exit(status)


def say_last() -> None:
    """Call what was to be called."""
    for call in last_words:
        with suppress(Exception):
            call()


def leave(status: int) -> None:
    """End the process, with what was said."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)
