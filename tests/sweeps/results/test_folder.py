"""A sweep's folder: who may start, go on, or start anew; one process at a time."""

import json
import subprocess
import sys

import pytest
import yaml

from fusion.errors import InputError
from sweeps.results.folder import SweepFolder, claim, owned, read_identity
from sweeps.results.ledger import Entry


def text(**ties) -> str:
    experts = {"cars": "c", "svhn": "v"}
    methods = {"ties": {"density": 0.2, **ties}}
    return yaml.safe_dump(
        {"name": "s", "pool": {"base": "b", "experts": experts}, "methods": methods}
    )


def test_claiming_twice_needs_a_word(tmp_path):
    path = tmp_path / "s"
    first = claim(path, "h1", "name: s\n", resume=False, fresh=False)
    SweepFolder(path).ledger.add(Entry("k", "ties", "static", {}, "done", "select"))
    with pytest.raises(InputError, match="holds a sweep with 1 finished trials; --resume goes on"):
        claim(path, "h1", "name: s\n", resume=False, fresh=False)
    assert claim(path, "h1", "name: s\n", resume=True, fresh=False) == first


def test_another_spec_is_not_resumed(tmp_path):
    claim(tmp_path / "s", "h1", text())
    with pytest.raises(InputError) as refused:
        claim(tmp_path / "s", "h2", text(density=0.5), resume=True)
    assert refused.value.lines[:2] == (
        f"{tmp_path / 's'}: was started from another spec:",
        "methods.ties.density: 0.2 -> 0.5",
    )
    assert not (tmp_path / "s" / "specs" / "h2.yaml").exists()


def test_an_extended_sweep_keeps_its_id_and_every_spec(tmp_path):
    first = claim(tmp_path / "s", "h1", text())
    second = claim(tmp_path / "s", "h2", text(density=0.5), extend=True)
    assert second.sweep_id == first.sweep_id
    assert [each["spec_hash"] for each in second.history] == ["h1", "h2"]
    specs = [(tmp_path / "s" / each["spec"]).read_text() for each in second.history]
    assert specs == [text(), text(density=0.5)]
    assert (tmp_path / "s" / "spec.yaml").read_text() == text(density=0.5)
    assert read_identity(SweepFolder(tmp_path / "s")) == second
    # Going on with it adds nothing; back to the first spec is one more change.
    assert claim(tmp_path / "s", "h2", text(density=0.5), extend=True) == second
    back = claim(tmp_path / "s", "h1", text(), extend=True)
    assert [each["spec_hash"] for each in back.history] == ["h1", "h2", "h1"]


def test_a_sweep_of_before_there_was_a_history_is_extended(tmp_path):
    claim(tmp_path / "s", "h1", text())
    file = tmp_path / "s" / "sweep.json"
    old = json.loads(file.read_text())
    del old["history"]
    file.write_text(json.dumps(old))
    (tmp_path / "s" / "specs" / "h1.yaml").unlink()
    now = claim(tmp_path / "s", "h2", text(density=0.5), extend=True)
    assert [each["spec_hash"] for each in now.history] == ["h1", "h2"]
    assert (tmp_path / "s" / now.history[0]["spec"]).read_text() == text()


def test_fresh_moves_the_old_one_aside(tmp_path):
    path = tmp_path / "s"
    old = claim(path, "h1", "old")
    new = claim(path, "h2", "new", fresh=True)
    assert new.sweep_id != old.sweep_id
    (aside,) = [p for p in tmp_path.iterdir() if p != path]
    assert (aside / "spec.yaml").read_text() == "old"
    assert (path / "spec.yaml").read_text() == "new"


def test_resume_starts_where_nothing_is(tmp_path):
    assert claim(tmp_path / "s", "h1", "", resume=True).spec_hash == "h1"


def test_a_second_process_is_refused_and_the_lock_dies_with_its_owner(tmp_path):
    code = (
        "import sys, pathlib\n"
        "from sweeps.results.folder import owned\n"
        "with owned(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "s")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(InputError, match="another process is running this sweep"),
        owned(tmp_path / "s"),
    ):
        pass
    holder.kill()
    holder.wait()
    with owned(tmp_path / "s"):
        pass
