"""A sweep's folder: who may start, go on, or start anew; one process at a time."""

import subprocess
import sys

import pytest

from fusion.errors import InputError
from sweeps.folder import SweepFolder, claim, owned
from sweeps.ledger import Entry


def test_claiming_twice_needs_a_word(tmp_path):
    path = tmp_path / "s"
    first = claim(path, "h1", "name: s\n", resume=False, fresh=False)
    SweepFolder(path).ledger.add(Entry("k", "ties", "static", {}, "done", "select"))
    with pytest.raises(InputError, match="holds a sweep with 1 finished trials; --resume goes on"):
        claim(path, "h1", "name: s\n", resume=False, fresh=False)
    assert claim(path, "h1", "name: s\n", resume=True, fresh=False) == first


def test_another_spec_is_not_resumed(tmp_path):
    claim(tmp_path / "s", "h1", "", resume=False, fresh=False)
    with pytest.raises(InputError, match=r"started from another spec \(hash h1, now h2\)"):
        claim(tmp_path / "s", "h2", "", resume=True, fresh=False)


def test_fresh_moves_the_old_one_aside(tmp_path):
    path = tmp_path / "s"
    old = claim(path, "h1", "old", resume=False, fresh=False)
    new = claim(path, "h2", "new", resume=False, fresh=True)
    assert new.sweep_id != old.sweep_id
    (aside,) = [p for p in tmp_path.iterdir() if p != path]
    assert (aside / "spec.yaml").read_text() == "old"
    assert (path / "spec.yaml").read_text() == "new"


def test_resume_starts_where_nothing_is(tmp_path):
    assert claim(tmp_path / "s", "h1", "", resume=True, fresh=False).spec_hash == "h1"


def test_a_second_process_is_refused_and_the_lock_dies_with_its_owner(tmp_path):
    code = (
        "import sys, pathlib\n"
        "from sweeps.folder import owned\n"
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
