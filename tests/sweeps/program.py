"""The command line: in a process of its own, or in this one."""

import io
import json
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

TIMES = ("cost", "created", "run_id", "versions", "command")

ONE = ("--set", "placement.replicas=1")
"""One replica, whatever machine runs the tests: each process that starts costs seconds."""

TWO = ("--set", "placement.replicas=2")
"""As many replicas as the tests' own Ray has room for."""


def sweeps(*words: object, cwd: Path, **options) -> subprocess.CompletedProcess:
    """Run `python -m sweeps` as a user does; it starts a Ray of its own."""
    return subprocess.run(
        [sys.executable, "-m", "sweeps", *map(str, words)],
        cwd=cwd, capture_output=True, text=True, timeout=540, check=False, **options,
    )  # fmt: skip


def in_process(*words: object, cwd: Path) -> subprocess.CompletedProcess:
    """Run the program in this process: with the Ray of the fixture `ray_cluster`, where it is up.

    Saves the start of Python with torch and MLflow, and that of a Ray.
    """
    from sweeps.cli import main

    out, err, status = io.StringIO(), io.StringIO(), 0
    command = ["sweeps", *map(str, words)]
    with (
        patch.object(sys, "argv", command),
        patch.dict(os.environ),
        chdir(cwd),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())


def comparison(folder: Path) -> dict:
    """The comparison without what differs from run to run: times, ids, the command line."""

    def strip(value):
        if isinstance(value, dict):
            return {name: strip(inner) for name, inner in value.items() if name not in TIMES}
        return [strip(inner) for inner in value] if isinstance(value, list) else value

    return strip(json.loads((folder / "comparison.json").read_text()))
