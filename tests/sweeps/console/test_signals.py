"""Signals in programs of a few lines: every way in which one could be lost."""

import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress

import psutil
import pytest

from sweeps.console import signals
from sweeps.console.terminal import forgiving

THREE = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def started(body: str, **options) -> subprocess.Popen:
    """A program whose body runs where signals are handled; it has said `ready`."""
    text = "\n".join(
        [
            "import os, signal, subprocess, sys, threading, time",
            "from sweeps.console import signals",
            "say = lambda word: print(word, flush=True)",
            "with signals.handled():",
            textwrap.indent(textwrap.dedent(body), "    "),
        ]
    )
    program = subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, **options
    )
    assert program.stdout.readline() == "ready\n"
    return program


def ended(program: subprocess.Popen, seconds: float = 10) -> tuple[int, str]:
    """Status and what was said since."""
    try:
        said = program.communicate(timeout=seconds)[0]
    finally:
        program.kill()
    return program.returncode, said


@pytest.mark.parametrize("number", THREE)
def test_a_signal_unwinds_the_program_and_gives_its_status(number):
    program = started("""
        try:
            say("ready")
            time.sleep(30)
        finally:
            time.sleep(1.5)  # longer than it takes until one that is lost comes again
            say("put away")
    """)
    program.send_signal(number)
    assert ended(program) == (128 + number, "put away\n")


@pytest.mark.parametrize("number", THREE)
def test_no_handler_of_a_library_takes_a_signal_away(number):
    program = started(f"""
        signal.signal({number:d}, signal.SIG_DFL)  # as Ray's core does
        signal.signal({number:d}, lambda *_: sys.exit(1))  # as ray.init and Tune do
        threading.Thread(target=time.sleep, args=[30], daemon=True).start()
        say("ready")
        time.sleep(30)
    """)
    program.send_signal(number)
    assert ended(program)[0] == 128 + number


@pytest.mark.parametrize(
    "place",
    [
        "class Gone:\n    def __del__(self): say('ready'); time.sleep(1)\nx = Gone(); del x",
        "try: say('ready'); time.sleep(30)\nexcept BaseException: pass",
        "import asyncio\nasync def f():\n    loop = asyncio.get_running_loop()\n"
        "    loop.call_soon(lambda: (say('ready'), time.sleep(30)))\n    await asyncio.sleep(30)\n"
        "try: asyncio.run(f())\nexcept BaseException: pass",
    ],
    ids=["finaliser", "broad except", "callback"],
)
def test_a_stop_that_is_swallowed_comes_again(place):
    program = started(f"{textwrap.indent(place, ' ' * 8)}\n        time.sleep(30)")
    time.sleep(0.1)
    program.send_signal(signal.SIGTERM)
    assert ended(program)[0] == 143


def test_a_program_that_ends_as_if_nothing_had_come_still_says_it_was_stopped():
    program = started("""
        try:
            say("ready")
            time.sleep(30)
        except KeyboardInterrupt:
            sys.exit(1)
    """)
    program.send_signal(signal.SIGINT)
    assert ended(program)[0] == 130


@pytest.mark.parametrize("stuck", [False, True], ids=["while it unwinds", "while it is stuck in C"])
def test_a_second_signal_ends_at_once_with_all_that_was_started(stuck):
    program = started(f"""
        import ctypes
        signals.last_words.append(lambda: say("last words"))
        child = subprocess.Popen(["sleep", "60"])
        lock = ctypes.create_string_buffer(64)
        try:
            say("ready")
            if {stuck}:
                for _ in range(2):  # the second time waits for ever, whatever comes
                    ctypes.CDLL(None).pthread_mutex_lock(lock)
            time.sleep(30)
        finally:
            time.sleep(30)
    """)
    (child,) = psutil.Process(program.pid).children()
    time.sleep(0.2)
    program.send_signal(signal.SIGTERM)
    time.sleep(signals.APART + 0.1)
    assert program.poll() is None
    program.send_signal(signal.SIGTERM)
    assert ended(program, 4) == (143, "last words\n")
    with suppress(psutil.NoSuchProcess):
        assert child.wait(2) is None or not child.is_running()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_closed_terminal_that_signals_twice_is_one_stop():
    program = started("""
        try:
            say("ready")
            time.sleep(30)
        finally:
            time.sleep(0.3)
            say("put away")
    """)
    program.send_signal(signal.SIGHUP)
    program.send_signal(signal.SIGTERM)
    assert ended(program) == (129, "put away\n")


def test_under_nohup_a_closed_terminal_is_ignored():
    program = started(
        """
        say("ready")
        time.sleep(0.5)
        """,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    program.send_signal(signal.SIGHUP)
    assert ended(program) == (0, "")


def test_a_process_that_is_forked_can_be_stopped_and_stands_apart_where_it_is_to():
    program = started("""
        with signals.apart():
            child = os.fork()
            if not child:
                time.sleep(30)
        say("ready")
        while os.getpgid(child) == os.getpgid(0):
            time.sleep(0.01)
        os.kill(child, signal.SIGTERM)
        say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    assert ended(program) == (0, "-15\n")


def test_a_thread_that_never_ends_does_not_hold_the_process():
    text = textwrap.dedent("""
        import sys, threading, time, types
        def program():
            threading.Thread(target=time.sleep, args=[30]).start()
            print("ready", flush=True)
            time.sleep(30)
        sys.modules["sweeps.cli.main"] = types.SimpleNamespace(main=program)
        from sweeps.__main__ import main
        main()
    """)
    program = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert program.stdout.readline() == "ready\n"
    program.send_signal(signal.SIGTERM)
    assert ended(program, 5)[0] == 143


def test_a_thread_of_before_takes_no_signal_away():
    text = textwrap.dedent("""
        import threading, time
        threading.Thread(target=time.sleep, args=[30], daemon=True).start()
        from sweeps.console import signals
        with signals.handled():
            print("ready", flush=True)
            while True:
                time.sleep(0.1)
    """)
    for number in THREE:
        program = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
        assert program.stdout.readline() == "ready\n"
        program.send_signal(number)
        assert ended(program, 5)[0] == 128 + number


def test_afterwards_all_is_as_before():
    before = [signal.getsignal(each) for each in THREE], signal.pthread_sigmask(0, [])
    with signals.handled():
        assert {*THREE} <= signal.pthread_sigmask(0, [])
        assert signals.remaining() is None
        with signals.handled():  # a second one changes nothing
            pass
        assert signals.watch is not None
    assert ([signal.getsignal(each) for each in THREE], signal.pthread_sigmask(0, [])) == before
    assert signals.watch is None


def test_what_is_written_to_a_terminal_that_is_gone_is_dropped(monkeypatch):
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        os.close(ours)
        with forgiving():
            for _ in range(3):
                sys.stdout.write("nobody reads this\n")
                sys.stdout.flush()
            sys.stdout.writelines(["nor this\n"])
        stream.flush()
