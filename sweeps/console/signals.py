"""Signal handling: SIGINT, SIGTERM and SIGHUP stop the program in the same way in every phase.

The three signals are blocked in every thread, and one thread waits for them. So handlers that
libraries install (Tune for SIGINT, Ray and its core for SIGTERM) never run, and a signal is not
missed while the main thread is busy in C code.

* The first signal raises `Stopped` in the main thread. It is raised again until the main thread
  handles it, because some places swallow exceptions (`__del__`, callbacks). The handler has
  `remaining` seconds to pass results on.
* A second signal, at least half a second later, ends the process and its children at once.
  A closed terminal sends two signals within milliseconds: they count as one.

The program's exit status is 128 + the signal's number.

This module imports only what loads fast. Slow imports come after it and can be interrupted.
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
"""Internal signal: wakes the main thread to raise `Stopped`, and the waiting thread to end."""

GRACE = 8.0
"""Seconds after the first signal for passing results on. Docker kills after 10, Slurm and Ray jobs
after 30."""

APART = 0.5
"""Signals closer together than this many seconds count as one."""

AGAIN = 1.0
"""Seconds after which `Stopped` is raised again if the main thread is not handling it."""

LAST_WORDS = 1.0
"""Seconds that the calls of `last_words` may take before the process ends."""


class Stopped(KeyboardInterrupt):
    """The program was asked to stop by a signal; finished work is kept."""


class Watch:
    """The thread that waits for signals, and the state of the first one."""

    def __init__(self) -> None:
        # `nohup` asks to ignore a closed terminal.
        ignored = {each for each in (signal.SIGHUP,) if signal.getsignal(each) is signal.SIG_IGN}
        self.signals = {*SIGNALS} - ignored
        self.main = threading.get_ident()
        self.number: int | None = None
        """Number of the first signal."""
        self.since = 0.0
        """Monotonic time of the first signal, in seconds."""
        self.begun = False
        """Whether a sweep is on disk that `--resume` can continue."""
        self.over = False
        self.before = {NUDGE: signal.signal(NUDGE, self.nudged)}
        # Threads started earlier do not block the signals: their handlers do the same work.
        self.before |= {each: signal.signal(each, self.taken) for each in self.signals}
        self.masked = signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)
        self.thread = threading.Thread(target=self.wait, name="signals", daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Body of the thread: wait for signals and wake the main thread."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {NUDGE})
        while not self.over:
            came = signal.sigtimedwait({*self.signals, NUDGE}, AGAIN)
            if came is not None and came.si_signo in self.signals:
                self.came(came.si_signo)
            if self.number is not None and not self.over:
                signal.pthread_kill(self.main, NUDGE)

    def came(self, number: int) -> None:
        """Record the first signal; end the process at the second."""
        now = time.monotonic()
        if self.number is None:
            self.number, self.since = number, now
        elif now - self.since >= APART:
            end(128 + number)

    def taken(self, number: int, frame: FrameType | None) -> None:
        """Handler in the main thread for a signal that another thread received."""
        self.came(number)
        self.nudged(number, frame)

    def nudged(self, _: int, frame: FrameType | None) -> None:
        """Handler in the main thread: raise `Stopped`, unless one is already being handled."""
        if self.number is None or self.over or in_flight():
            return
        raise Stopped(self.number)

    def close(self) -> None:
        """Stop waiting and restore the previous handlers."""
        self.over = True
        with suppress(ProcessLookupError):
            signal.pthread_kill(self.thread.ident or 0, NUDGE)
        self.thread.join()
        self.restore()

    def restore(self) -> None:
        """Restore the handlers and the signal mask found at the start."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.masked)


watch: Watch | None = None
"""The active watch, or None outside of `handled`."""

last_words: list[Callable[[], object]] = []
"""Functions called in a thread just before `end`: short writes that must not be lost."""

parting = False
"""Whether processes forked now leave this process group (see `apart`)."""


def in_flight() -> bool:
    """Whether this thread is handling a stop, at any depth of nested exceptions.

    Ray converts an exception raised while it waits into a `KeyboardInterrupt` of its own.
    """
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False


def remaining() -> float | None:
    """Seconds left for passing results on after a signal; None without a signal."""
    if watch is None or watch.number is None:
        return None
    return max(0.0, watch.since + GRACE - time.monotonic())


def has_begun() -> bool:
    """Whether `begin` was called."""
    return watch is not None and watch.begun


def begin() -> None:
    """Record that a sweep is on disk from now on, which `--resume` can continue."""
    if watch is not None:
        watch.begun = True


@contextmanager
def handled(*, last: bool = False) -> Iterator[None]:
    """Handle signals in this block; after a signal it ends with `SystemExit(128 + n)`.

    Does nothing inside another such block or outside the main thread.

    Args:
        last: the block is the program's last: after a signal the process ends here at once, even
            if threads are busy or further signals come.
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
    """Put processes forked in this block into process groups of their own.

    A terminal sends signals to the whole process group. Without this, Ray would end while results
    are still being passed on.
    """
    global parting
    parting = True
    try:
        yield
    finally:
        parting = False


def in_child() -> None:
    """Restore default signal handling in a newly forked process."""
    global watch
    if watch is not None:
        watch.restore()
        watch = None
    if parting:
        os.setpgid(0, 0)


os.register_at_fork(after_in_child=in_child)


def end(status: int) -> None:
    """End this process and all its children at once; atomic writes leave no file half written."""
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
    """Call the functions of `last_words`; exceptions are ignored."""
    for call in last_words:
        with suppress(Exception):
            call()


def leave(status: int) -> None:
    """Flush stdout and stderr, then end the process."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)
