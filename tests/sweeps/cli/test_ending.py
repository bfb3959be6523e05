"""Whatever a command raises: one line, a status that is not 1; a traceback only with --debug."""

import asyncio
import errno
import json
import os
import pickle
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import traceback
import zipfile
from pathlib import Path

import jinja2
import pyarrow as pa
import pydantic
import pytest
import ray.exceptions
import safetensors
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fusion.errors import InputError
from sweeps.cli import main
from sweeps.cli.ending import BUG, end
from sweeps.console.escape import Screen
from sweeps.console.printable import printable
from sweeps.spec.errors import SpecErrors


def call(monkeypatch, capsys, error: BaseException, *words: str) -> tuple[int, str, str]:
    """A command that raises: exit status and what it says."""

    def program() -> None:
        raise error

    command = main.app.registered_commands[0]
    monkeypatch.setattr(command, "callback", program)
    monkeypatch.setattr(command, "name", "run")
    monkeypatch.setattr(sys, "argv", ["sweeps", *words, "run"])
    with pytest.raises(SystemExit) as stop:
        main.main()
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out, said.err


def raised(function, *given) -> BaseException:
    try:
        function(*given)
    except BaseException as error:
        return error
    raise AssertionError("nothing raised")


class Odd(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message")


def deep() -> None:
    deep()


class Model(pydantic.BaseModel):
    number: int


UNFORESEEN = [
    KeyError("label"),
    KeyError(),
    IndexError("list index out of range"),
    ValueError("two\nlines\r\nand \x1b[31mmore"),
    TypeError("x"),
    AttributeError("'NoneType' object has no attribute 'shape'"),
    AssertionError(),
    RuntimeError("[Errno 28] only in the text"),
    NotImplementedError(),
    ZeroDivisionError("division by zero"),
    OverflowError("too large"),
    StopIteration(3),
    ImportError("no module"),
    EOFError("ran out of input"),
    PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/x"),
    IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), "/x"),
    NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), "/x"),
    FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/\ud800x"),
    OSError(errno.ELOOP, os.strerror(errno.ELOOP), "/x"),
    OSError(errno.EIO, os.strerror(errno.EIO)),
    OSError("only a text"),
    ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
    BrokenPipeError(errno.EPIPE, "of some socket"),
    TimeoutError(),
    RecursionError("maximum recursion depth exceeded"),
    MemoryError(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
    ExceptionGroup("several", [KeyError("a"), ExceptionGroup("more", [OSError(5, "b")])]),
    asyncio.CancelledError(),
    asyncio.InvalidStateError("x"),
    GeneratorExit(),
    Odd(),
    pa.ArrowInvalid("Column 1 named label expected length 3 but got length 2"),
    safetensors.SafetensorError("Error while deserializing header"),
    yaml.YAMLError("while scanning"),
    json.JSONDecodeError("Expecting value", "x", 0),
    pickle.UnpicklingError("invalid load key"),
    zipfile.BadZipFile("File is not a zip file"),
    re.error("missing )"),
    jinja2.UndefinedError("x is undefined"),
    raised(Model.model_validate, {"number": "x"}),
    raised(deep),
    subprocess.CalledProcessError(1, ["ray", "start"]),
    ray.exceptions.RayTaskError("f", "a\nlong\ntraceback", KeyError("label")),
    ray.exceptions.RayTaskError("f", "a\ntraceback", KeyError("label")).as_instanceof_cause(),
    ray.exceptions.GetTimeoutError("Get timed out"),
    Warning("x"),
]


@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda error: type(error).__name__)
def test_what_nobody_foresaw_is_one_line_and_status_70(error, monkeypatch, capsys):
    status, _, said = call(monkeypatch, capsys, error)
    assert status == BUG == 70
    assert said.count("\n") == 1
    assert said.endswith(" (this is a bug; --debug shows the traceback)\n")
    assert "Traceback" not in said
    assert said.rstrip("\n").isprintable()


@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda error: type(error).__name__)
def test_with_debug_the_traceback_is_shown_and_the_status_stays(error, monkeypatch, capsys):
    status, _, said = call(monkeypatch, capsys, error, "--debug")
    assert status == 70
    assert "Traceback (most recent call last)" in said or "Exception Group Traceback" in said
    assert "in program" in said


def remote(error: Exception) -> BaseException:
    """An error as Ray hands it on: its text is a whole traceback."""
    text = "".join(traceback.format_exception(error))
    return ray.exceptions.RayTaskError("work", text, error).as_instanceof_cause()


@pytest.mark.parametrize(
    "error",
    [
        InputError("tasks.a: x.parquet: damaged"),
        remote(InputError("tasks.a: x.parquet: damaged")),
        remote(remote(InputError("tasks.a: x.parquet: damaged"))),
        BaseExceptionGroup("tasks", [KeyError("x"), InputError("tasks.a: x.parquet: damaged")]),
    ],
)
def test_wrong_input_is_its_own_line_wherever_it_was_found(error, monkeypatch, capsys):
    assert call(monkeypatch, capsys, error) == (2, "", "tasks.a: x.parquet: damaged\n")


def test_a_line_a_fault_and_no_more(monkeypatch, capsys):
    error = SpecErrors(["s.yaml: a\nb: x", "s.yaml: \x1b]0;title\x07: y", "s.yaml: \ud800: z"])
    said = call(monkeypatch, capsys, error)
    expected = "s.yaml: a\\nb: x\ns.yaml: \\x1b]0;title\\x07: y\ns.yaml: \\ud800: z\n"
    assert said == (2, "", expected)


def test_a_full_disk_is_named(monkeypatch, capsys):
    for code in (errno.ENOSPC, errno.EDQUOT):
        error = OSError(code, os.strerror(code), "/mnt/x")
        assert call(monkeypatch, capsys, error) == (2, "", "/mnt/x: no space left on the disk\n")


def test_ctrl_c(monkeypatch, capsys):
    assert call(monkeypatch, capsys, KeyboardInterrupt())[0] == 130


def test_debug_shows_where_wrong_input_was_found(monkeypatch, capsys):
    status, _, said = call(monkeypatch, capsys, InputError("a.yaml: wrong"), "--debug")
    assert status == 2
    assert "Traceback" in said
    assert said.endswith("\na.yaml: wrong\n")


@given(st.text())
def test_any_message_is_one_line_of_what_a_terminal_shows(text):
    for error in (InputError(text), ValueError(text), OSError(5, text, text)):
        (line,) = end(error).lines
        assert line.isprintable()
        line.encode()


@given(st.text())
def test_what_is_printable_stays(text):
    assert printable(printable(text)) == printable(text)
    assert (printable(text) == text) == text.isprintable()


@given(st.text(alphabet=st.characters(exclude_characters="\n")))
def test_a_screen_obeys_no_text(text):
    with tempfile.TemporaryFile("w+") as file:
        Screen(file=file, width=400, force_terminal=True, color_system=None).print(
            text, markup=False, soft_wrap=True
        )
        file.seek(0)
        assert file.read().rstrip("\n").isprintable()


def test_a_screen_shows_a_table_as_any_console_does():
    from rich.table import Table

    table = Table(title="at most")
    table.add_column("method")
    table.add_row("ties\nmore")
    shown = []
    for kind in (Console, Screen):
        console = kind(width=40, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(table)
        shown.append(console.export_text())
    assert shown[0] == shown[1]


@pytest.mark.parametrize("module", ["sweeps", "sweeps.cli.main", "sweeps.launch"])
def test_every_entry_has_the_same_statuses(module, tmp_path, monkeypatch, capsys):
    words = [str(tmp_path)] if module == "sweeps.launch" else ["run", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["sweeps", *words])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(module, run_name="__main__")
    assert (stop.value.code, capsys.readouterr().err.count("\n")) == (2, 1)


PRINT = "write = print"
SCREEN = "from sweeps.console.escape import Screen; write = Screen().print"


def written(out: int, write: str = PRINT) -> tuple[int, str]:
    """A process that writes much to `out`: exit status, and what it says beside it."""
    code = f"{write}; from sweeps.cli.main import main; main(lambda: write('x\\n' * 50_000))"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=out, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(out)
    return done.returncode, done.stderr


@pytest.mark.parametrize("how", [PRINT, SCREEN])
def test_a_reader_that_goes_away_is_no_fault(how):
    read, write = os.pipe()
    os.close(read)
    assert written(write, how) == (141, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_were_closed_at_the_start(closed, tmp_path):
    """They are no bug, and no file that is opened takes their place."""
    code = "from sweeps.cli.main import main; main(lambda: (open('f', 'w').close(), print('x')))"
    command = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(code)} {closed}"
    path = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=path, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "f").read_bytes() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_output_that_takes_nothing():
    status, said = written(os.open("/dev/full", os.O_WRONLY))
    assert status == 2
    assert said.endswith("no space left on the disk\n")
    assert said.count("\n") == 1


ENDING = """
import atexit, gc, sys
atexit.register(lambda: print("frozen", gc.get_freeze_count() > 0))
sys.argv = ["sweeps", *sys.argv[1:]]
from sweeps.__main__ import main
main()
"""


def ended(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ENDING, *arguments], capture_output=True, text=True, timeout=60
    )


def test_end_skips_garbage_collection_and_runs_exit_handlers() -> None:
    done = ended("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("fusion-sweeps ")
    assert done.stdout.endswith("frozen True\n")


def test_exit_status_is_kept() -> None:
    done = ended("report", "no-such-sweep")
    assert done.returncode == 2
    assert done.stdout.endswith("frozen True\n")
