"""Completion of commands, options and names of methods in a shell."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import sys
from sweeps.__main__ import main
sys.argv[0] = "sweeps"
try:
    main()
finally:
    assert not {"torch", "ray"} & set(sys.modules), "slow"
"""


def sweeps(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a shell does when somebody presses the tabulator key."""
    given = {**os.environ, **environment}
    command = [sys.executable, "-c", CODE, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=given)
    assert "AssertionError" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize(
    ("shell", "typed", "expected"),
    [
        ("bash", "pla", ["plan"]),
        ("bash", "run s.yaml --res", ["--resume"]),
        ("bash", "merge simple_a", ["simple_average"]),
        ("bash", "merge adamer", []),  # it learns from data: not for this command
        ("bash", "methods adamer", ["adamerging"]),
        ("fish", "quick", ["quickstart"]),
        ("zsh", "quick", ["quickstart"]),
    ],
)
def test_shells_complete(shell: str, typed: str, expected: list[str]) -> None:
    """As the scripts of `--install-completion` ask, in a process of its own, without torch."""
    words = f"sweeps {typed}"
    given = {
        "_SWEEPS_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = sweeps(given)
    assert [each for each in expected if each in done.stdout] == expected, done.stdout
    assert expected or not done.stdout.strip()


def test_the_shell_gets_a_script_of_completion() -> None:
    done = sweeps({"_SWEEPS_COMPLETE": "source_bash"})  # `--show-completion` of a bash
    assert "complete -o default -F _sweeps_completion sweeps" in done.stdout
