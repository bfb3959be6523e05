"""Ray's own folder: short, private, removed; the start of a Ray of our own and its failures."""

import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from fusion.errors import InputError
from sweeps.cluster import ray_connection, ray_temp_dir
from sweeps.cluster.ray_temp_dir import LONGEST, make_token, session_folder


@pytest.fixture(autouse=True)
def unset(monkeypatch, tmp_path):
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def few_bytes():
    """A folder of a short path."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="q") as made:
        yield Path(made)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_folder_is_short_private_and_removed():
    with session_folder() as folder:
        assert len(os.fsencode(folder)) <= LONGEST
        assert os.environ["RAY_TMPDIR"] == str(folder)
        assert mode(folder) == 0o700
    assert not folder.exists()
    assert "RAY_TMPDIR" not in os.environ


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_folder_is_given_by_a_short_link(monkeypatch, tmp_path, variable):
    long = tmp_path / ("x" * 120) / "日本語"
    long.mkdir(parents=True)
    monkeypatch.setenv(variable, str(long))
    with session_folder() as folder:
        assert len(os.fsencode(folder)) <= LONGEST
        assert os.environ["TMPDIR"] == os.environ["RAY_TMPDIR"] == str(folder)
        (folder / "file").write_text("spilled")
        (kept,) = long.iterdir()  # what is large lies where the user wants it
        assert (kept / "file").read_text() == "spilled"
        assert mode(kept) == mode(folder.parent) == 0o700
    assert not list(long.iterdir())
    assert not folder.parent.exists()
    assert os.environ.get("RAY_TMPDIR") == (str(long) if variable == "RAY_TMPDIR" else None)


def test_a_short_folder_of_the_users_choice_is_kept(monkeypatch, few_bytes):
    monkeypatch.setenv("RAY_TMPDIR", str(few_bytes))
    with session_folder() as folder:
        assert folder == few_bytes
        (folder / "ray" / "session_1").mkdir(mode=0o755, parents=True)
        ray_temp_dir.close_to_others(folder)
    assert mode(few_bytes / "ray" / "session_1") == 0o700


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("place", ["/nowhere/x", "/etc/passwd", "/proc"])
def test_a_folder_that_cannot_be_used_is_one_line(monkeypatch, variable, place):
    monkeypatch.setenv(variable, place)
    with (
        pytest.raises(InputError, match=rf"^\${variable}: {place}: Ray cannot keep [^\n]*$"),
        session_folder(),
    ):
        pass
    assert os.environ[variable] == place


def test_a_full_folder_is_one_line(monkeypatch):
    monkeypatch.setattr(ray_temp_dir, "ROOM", 2**62)
    with pytest.raises(InputError, match=r"^/tmp: .* of disk needed"), session_folder():
        pass


def test_what_a_killed_process_left_is_removed(monkeypatch, few_bytes):
    monkeypatch.setenv("TMPDIR", str(few_bytes))
    monkeypatch.setattr(ray_temp_dir, "STALE", -1.0)
    code = (
        "from sweeps.cluster.ray_temp_dir import session_folder\nimport time\n"
        "with session_folder() as folder: print(folder, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    left = Path(process.stdout.readline().strip())
    held = left.resolve()
    with session_folder():
        assert held.exists()  # its process lives
    process.kill()
    process.wait()
    process.stdout.close()
    with session_folder():
        assert not held.exists()


def test_the_token_is_its_users_alone(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    before = os.umask(0)
    try:
        make_token()
    finally:
        os.umask(before)
    file = home / ".ray" / "auth_token"
    assert len(file.read_text()) == 64
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)
    assert [each.name for each in file.parent.iterdir()] == ["auth_token"]
    text = file.read_text()
    file.chmod(0o644)
    make_token()
    assert (file.read_text(), mode(file)) == (text, 0o600)


def test_no_token_is_made_where_one_is_given_or_none_is_wanted(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    make_token()
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    make_token()
    assert not (tmp_path / "home" / ".ray").exists()


def test_a_home_that_cannot_be_written_has_a_token_of_this_process(monkeypatch):
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    make_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.fixture
def failing(monkeypatch):
    """A Ray that starts a process and fails; how often it was asked."""
    import ray

    asked: list[psutil.Process] = []

    def init(**given):
        if "object_store_memory" not in given:  # a thread of the tests' own cluster asks for it
            return
        sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
        asked.append(psutil.Process(subprocess.Popen(sleeper).pid))
        raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", init)
    return asked


def test_a_ray_that_does_not_start_is_one_line_and_leaves_nothing(failing):
    with (
        pytest.raises(InputError, match=r"^this machine: Ray does not start: The current node timed"
                      r" out during startup; [^\n]*--address auto$"),
        ray_connection.connected(None, 10**6),
    ):  # fmt: skip
        pass
    assert len(failing) == 2
    until = time.monotonic() + 10
    while any(each.is_running() for each in failing):
        assert time.monotonic() < until, "something was left running"
        time.sleep(0.05)
    assert "RAY_TMPDIR" not in os.environ


def test_ulimits_under_which_ray_cannot_run_are_said_first(monkeypatch, failing):
    monkeypatch.setattr(ray_connection, "shortfalls", lambda size: ["ulimit -n is 64, 512 needed"])
    with (
        pytest.raises(InputError, match=r"^this machine: Ray cannot start here: ulimit -n is 64"),
        ray_connection.connected(None, 10**6),
    ):
        pass
    assert not failing


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], "its dashboard was not there in time"),
        (["2026-01-01\tINFO head.py:341 -- Loaded 9 modules", ""], "its dashboard was not there"),
        (["a\tINFO b", "OSError: address in use", "c\tINFO d"], "OSError: address in use"),
    ],
)
def test_why_ray_does_not_start_is_a_fault_of_its_log(lines, told):
    error = RuntimeError("\n".join(["The last 20 lines of /x/dashboard.log:", *lines]))
    assert ray_connection.reason(error).startswith(told)
