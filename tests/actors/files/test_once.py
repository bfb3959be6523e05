"""What is shared is made by one process; the others wait, and say so."""

import subprocess
import sys
import time

import pytest

from actors.files import once
from actors.files.once import alone
from fusion.errors import InputError

HOLD = """
import sys, time
from pathlib import Path
from actors.files.once import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    words = [sys.executable, "-c", HOLD, str(tmp_path / "store.db")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_lock_goes_with_its_process_however_that_ends(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(once, "PATIENT", 0.1)
    said = []

    def tell(line):
        said.append(line)
        holder.kill()

    began = time.monotonic()
    with alone(tmp_path / "store.db", tell, patience=20):
        assert time.monotonic() - began < 10
    assert said == [f"waiting for another process, which makes {tmp_path / 'store.db'}"]


def test_waiting_ends_with_the_file_that_is_held(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(once, "PATIENT", 0.1)
    with (
        pytest.raises(InputError, match=r"\.store\.db\.lock: held by another process for 0 s") as e,
        alone(tmp_path / "store.db", patience=0.2),
    ):
        raise AssertionError("not held")
    assert "\n" not in str(e.value)


def test_where_nothing_can_be_locked_it_is_a_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be locked"), alone(tmp_path / "file" / "x"):
        pass

    def missing(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", missing)
    with (
        pytest.raises(InputError, match=r"not implemented; .*with locks \(flock\), needed"),
        alone(tmp_path / "store.db"),
    ):
        raise AssertionError("not held")


def test_an_embedded_pool_is_built_by_one_at_a_time(tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from actors.embedded import build

    monkeypatch.setattr(once, "PATIENT", 0.05)
    busy, told = [], []

    def slow(root, seed, tell, recipe):
        busy.append(1)
        assert len(busy) == 1
        time.sleep(0.2)
        busy.clear()
        return root

    monkeypatch.setattr(sys.modules[build.__module__], "build_alone", slow)
    with ThreadPoolExecutor(3) as threads:
        asked = [
            threads.submit(build, tmp_path / "pool", 0, lambda what, _: told.append(what))
            for _ in range(3)
        ]
        assert [each.result() for each in asked] == [tmp_path / "pool"] * 3
    assert told
    assert set(told) == {f"waiting for another process, which makes {tmp_path / 'pool'}"}
