"""`sweeps list`."""

from __future__ import annotations

import json
from pathlib import Path

from actors.files.documents import parse_json
from sweeps.report.list_sweeps import listed
from sweeps.results.comparison import Comparison, Row
from sweeps.results.comparison_file import write
from sweeps.results.folder import claim, owned
from tests.sweeps.program import in_process


def compared(folder: Path, spec_hash: str) -> None:
    rows = [
        Row("pretrained", "reference", test={"acc/mean": 0.95}),
        Row("ties", "static", test={"acc/mean": 0.7}),
        Row("wise_ft", "static", test={"acc/mean": 0.8}),
        Row("oracle_single", "selected", test={"acc/mean": 0.9}, notes=("oracle: reads",)),
    ]
    write(Comparison(folder.name, spec_hash, "val", tuple(rows)), folder)


def test_states(tmp_path: Path) -> None:
    for name in ("done", "open", "older", "busy", "bad"):
        claim(tmp_path / name, "a" * 16, "name: x\n")
    compared(tmp_path / "done", "a" * 16)
    compared(tmp_path / "older", "b" * 16)  # of before the sweep was extended
    (tmp_path / "open" / "ledger").mkdir()
    (tmp_path / "open" / "ledger" / "1.json").write_text("{}")
    (tmp_path / "bad" / "sweep.json").write_text("{")
    (tmp_path / "no-sweep").mkdir()
    with owned(tmp_path / "busy"):
        found = {each.name: each for each in listed(tmp_path)}
    assert {name: each.state for name, each in found.items()} == {
        "done": "finished",
        "open": "stopped",
        "older": "stopped",
        "busy": "running",
        "bad": "damaged",
    }
    assert found["done"].best == "wise_ft 0.8000"
    assert found["older"].best == ""
    assert found["open"].trials == 1


def test_the_command(tmp_path: Path) -> None:
    claim(tmp_path / "outputs" / "one", "a" * 16, "name: x\n")
    compared(tmp_path / "outputs" / "one", "a" * 16)
    done = in_process("list", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].split() == ["sweep", "state", "trials", "best", "created"]
    assert "wise_ft 0.8000" in done.stdout
    (row,) = parse_json(in_process("list", "--json", cwd=tmp_path).stdout.encode(), "list")
    assert (row["name"], row["state"]) == ("one", "finished")
    assert json.dumps(row)
    none = in_process("list", "--outputs", "none", cwd=tmp_path)
    assert (none.returncode, none.stderr) == (
        2,
        "--outputs: none: no such folder; `sweeps run` makes it\n",
    )


def test_the_version(tmp_path: Path) -> None:
    from importlib.metadata import version

    done = in_process("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"fusion-sweeps {version('fusion-sweeps')}\n")
