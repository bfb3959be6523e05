"""The code of a model card: read back, and run in a process without this package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from actors.files.documents import decoded, read_bytes, read_json
from fusion.errors import InputError

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

NAME = re.compile(r"^name, dtype = (.*), torch\.\w+$", re.MULTILINE)

WITHOUT = (
    "import sys; sys.modules.update(dict.fromkeys(('fusion', 'actors', 'sweeps')));"
    " exec(compile(sys.stdin.read(), 'README.md', 'exec'), {'__name__': '__main__'})"
)
"""A program that runs what it is given; this package cannot be imported."""


def code_in(folder: Path) -> tuple[str, str]:
    """The code of an exported folder's card, and the task that it measures.

    Raises:
        InputError: no card, or one without code.
    """
    file = folder / "README.md"
    found = BLOCK.search(decoded(read_bytes(file), str(file)))
    named = NAME.search(found[1]) if found else None
    if found is None or named is None:
        raise InputError(f"{file}: no code that loads the model; `sweeps export` writes it")
    return found[1], str(json.loads(named[1].replace("'", '"')))


def run_code(folder: Path, code: str) -> float:
    """Run a card's code in its folder, in a process without this package; what it prints last.

    Raises:
        InputError: it failed; the line has the last line of its error.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT], input=code, cwd=folder, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    try:
        return float(done.stdout.split()[-1])
    except (ValueError, IndexError):
        said = (done.stderr.strip() or "it printed no number").splitlines()[-1][:300]
        raise InputError(f"{folder / 'README.md'}: its code fails: {said}") from None


def check_export(folder: Path) -> str:
    """Run the card's code and compare with the row; a line about both.

    Raises:
        InputError: no code, it fails, or another accuracy than the row's.
    """
    code, name = code_in(folder)
    about = read_json(folder / "tasks.json").get(name, {})
    wanted, found = about.get("accuracy"), run_code(folder, code)
    if wanted is None:
        return f"{name}: {found} by the card's code; the row has no accuracy to compare with"
    if found != wanted:
        n = int(about["n"])
        raise InputError(
            f"{folder}: {name}: {found} by the card's code, {wanted} in the row:"
            f" {round(abs(found - wanted) * n)} of {n:,} rows differ"
        )
    return f"{name}: {found} by the card's code with transformers alone, equal to the row"


def check_folders(out: Path) -> Iterator[str]:
    """Check an export: its folder, or those of its tasks.

    Raises:
        InputError: see `check_export`.
    """
    parts = [out] if (out / "config.json").exists() else sorted(out.iterdir())
    yield from map(check_export, parts)
