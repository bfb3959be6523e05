"""Files of the driver's node on another: whole, once, or one line that says why not."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

from actors.cluster.nodes import own_id
from actors.data.task_rows import Rows, TaskData
from actors.fleet import file_transfer
from actors.fleet.file_transfer import Home, TransferFailed, fetch, paths, with_local_files
from actors.fleet.file_transfer_worker import piece
from fusion.errors import InputError


def test_a_piece_is_what_is_there_and_how_much_there_is(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(range(10)))
    for start, wanted in ((0, [0, 1, 2, 3]), (8, [8, 9]), (10, [])):
        total, data = piece(str(path), start, 4)
        assert (total, data.tolist()) == (10, wanted)


def task_data(root: Path) -> TaskData:
    """One task with a file of each kind under `root`."""
    for name in ("pixels/p.arrow", "heads/h.safetensors", "features/f.npy"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    rows = Rows(root / "pixels/p.arrow", np.arange(3), {"e": root / "features/f.npy"})
    return TaskData("t", root / "heads/h.safetensors", {"select": rows})


def test_files_that_are_at_their_paths_are_used_there(tmp_path, monkeypatch):
    monkeypatch.setattr(file_transfer, "fetch", None)
    data = {"t": task_data(tmp_path)}
    found = with_local_files(data, Home("another node", tmp_path))
    assert paths(found) == paths(data)
    assert found["t"].rows["select"].indices is data["t"].rows["select"].indices


def test_files_that_are_not_lie_in_the_nodes_own_cache(tmp_path, monkeypatch):
    """Nothing is fetched that is there by name; of what is not asked for, nothing is looked at."""
    monkeypatch.setenv("FUSION_SWEEPS_CACHE", str(tmp_path / "mine"))
    task_data(tmp_path / "mine")
    data = {"t": moved(task_data(tmp_path / "mine"), tmp_path / "mine", tmp_path / "far")}
    home = Home("another node", tmp_path / "far")
    assert paths(with_local_files(data, home)) == paths({"t": task_data(tmp_path / "mine")})
    some = with_local_files(data, home, ["heads"])["t"]
    assert some.head == tmp_path / "mine/heads/h.safetensors"
    assert some.rows["select"].file == tmp_path / "far/pixels/p.arrow"
    assert paths(with_local_files(data, None)) == paths(data)


def moved(task: TaskData, old: Path, new: Path) -> TaskData:
    def at(path: Path) -> Path:
        return new / path.relative_to(old)

    rows = task.rows["select"]
    features = {key: at(path) for key, path in rows.features.items()}
    return replace(
        task,
        head=at(task.head),
        rows={"select": replace(rows, file=at(rows.file), features=features)},
    )


# ------------------------------------------------------------------------------------- through Ray


@pytest.fixture
def far(ray_cluster, tmp_path, monkeypatch) -> Home:
    """This node as the driver's; another cache folder as this node's own."""
    monkeypatch.setenv("FUSION_SWEEPS_CACHE", str(tmp_path / "mine"))
    (tmp_path / "far").mkdir()
    return Home(own_id(), tmp_path / "far")


@pytest.mark.ray
@pytest.mark.parametrize("size", [0, 1, 1000, 4001, 12_345])
def test_what_arrives_is_what_was_sent(size, far, tmp_path, monkeypatch):
    monkeypatch.setattr(file_transfer, "PIECE", 1000)
    content = np.random.default_rng(size).bytes(size)
    (far.root / "x.npy").write_bytes(content)
    mine = fetch(far.root / "x.npy", far, tmp_path / "mine/deep/x.npy")
    assert mine.read_bytes() == content
    assert sorted(each.name for each in mine.parent.iterdir()) == [".x.npy.lock", "x.npy"]


def first_inode(path: Path, home: Home, mine: Path) -> int:
    return os.stat(fetch(path, home, mine)).st_ino


@pytest.mark.ray
def test_of_several_processes_one_fetches(far, tmp_path):
    (far.root / "x.npy").write_bytes(bytes(1 << 20))
    there = ray.remote(num_cpus=0)(first_inode)
    mine = tmp_path / "mine/x.npy"
    inodes = ray.get([there.remote(far.root / "x.npy", far, mine) for _ in range(2)], timeout=60)
    assert set(inodes) == {os.stat(mine).st_ino}  # a second copy would have another


@pytest.mark.ray
def test_a_killed_process_leaves_no_lock_behind(far, tmp_path):
    (far.root / "x.npy").write_bytes(b"content")
    (tmp_path / "mine").mkdir()
    code = (
        "import fcntl, sys, time; lock = open(sys.argv[1], 'w');"
        " fcntl.flock(lock, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "mine/.x.npy.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        ref = ray.remote(num_cpus=0)(fetch).remote(far.root / "x.npy", far, tmp_path / "mine/x.npy")
        assert ray.wait([ref], timeout=2)[0] == []  # it waits
        holder.send_signal(signal.SIGKILL)
        assert ray.get(ref, timeout=60).read_bytes() == b"content"


@pytest.mark.ray
def test_what_cannot_be_had_is_one_line(far, tmp_path):
    mine = tmp_path / "mine/x.npy"
    with pytest.raises(
        TransferFailed, match=r"x\.npy: cannot be read on node .*No such file.*--resume"
    ):
        fetch(far.root / "x.npy", far, mine)
    nowhere = replace(far, node="a" * 56)
    with pytest.raises(
        TransferFailed, match=r"x\.npy: cannot be copied: node a+, the driver's, does not"
    ):
        fetch(far.root / "x.npy", nowhere, mine)
    assert not mine.exists()


@pytest.mark.ray
@pytest.mark.parametrize("where", ["/sys/cache/x.npy", "/dev/null/x.npy"])
def test_a_cache_that_cannot_be_written_is_one_line(where, far):
    (far.root / "x.npy").write_bytes(b"content")
    with pytest.raises(InputError) as caught:
        fetch(far.root / "x.npy", far, Path(where))
    line = str(caught.value)
    assert line.startswith("node ")
    assert where in line
    assert "FUSION_SWEEPS_CACHE" in line
    assert "\n" not in line


@pytest.mark.ray
def test_a_disk_that_is_too_small_is_found_before_anything_is_sent(far, tmp_path, monkeypatch):
    (far.root / "x.npy").write_bytes(b"content")
    sent = []
    monkeypatch.setattr(
        file_transfer.os, "posix_fallocate", lambda *asked: sent.append(asked[2]) or no_space()
    )
    with pytest.raises(InputError, match=r"node .*x\.npy: cannot be written: No space left"):
        fetch(far.root / "x.npy", far, tmp_path / "mine/x.npy")
    assert sent == [7]
    assert [each.name for each in (tmp_path / "mine").iterdir()] == [".x.npy.lock"]


def no_space() -> None:
    raise OSError(28, "No space left on device")
