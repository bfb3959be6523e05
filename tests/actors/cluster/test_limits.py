"""What is granted is the least of machine, cgroups at every level, and ulimits."""

import os
import resource
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.cluster import limits as module
from actors.cluster.limits import bound_threads, cores, killed, levels, limits, number, shortfalls
from actors.cluster.planner import Load, Node, Resources, plan
from fusion.errors import InputError

GB = 10**9
NONE_V1 = 9223372036854771712
MACHINE = SimpleNamespace(total=64 * GB, available=60 * GB)
V2 = "30 24 0:26 {shown} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "35 31 0:32 {shown} /sys/fs/cgroup/{name} rw,relatime shared:9 - cgroup cgroup rw,{name}\n"


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine of 64 GB and 16 cores, without ulimits."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: MACHINE)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    kinds: dict[int, tuple[int, int]] = {}
    none = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: kinds.get(kind, none))
    return kinds


def write(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        file = root / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")


def v2(root: Path, path: str, files: dict[str, object], shown: str = "/") -> Path:
    """A machine with version 2, and this process in `path`."""
    cgroups = {f"/sys/fs/cgroup/{name}": content for name, content in files.items()}
    write(root, {"/proc/self/cgroup": f"0::{path}", **cgroups})
    write(root, {"/proc/self/mountinfo": V2.format(shown=shown)})
    return root


def v1(root: Path, path: str, files: dict[str, object], shown: str = "/") -> Path:
    """A machine with version 1, and this process in `path` of each controller."""
    names = ("memory", "cpu", "cpuset", "pids")
    lines = [f"{n}:{name}:{path}" for n, name in enumerate(names, start=2)]
    write(root, {"/proc/self/cgroup": "\n".join([*lines, "1:name=systemd:/x", "0::/"])})
    mounts = "".join(V1.format(shown=shown, name=name) for name in names)
    write(root, {"/proc/self/mountinfo": mounts + V2.format(shown="/")})
    write(root, {f"/sys/fs/cgroup/{name}": content for name, content in files.items()})
    return root


def test_a_machine_without_cgroups_grants_what_it_has(tmp_path):
    found = limits(tmp_path)
    assert (found.cpus, found.memory, found.total, found.by) == (16, 60 * GB, 64 * GB, "")


def test_a_container_of_version_2_has_its_own_limit(tmp_path):
    stat = f"anon {GB}\ninactive_file 300000000\nactive_file 200000000"
    files = {"memory.max": 2 * GB, "memory.current": GB, "memory.stat": stat}
    files["cpu.max"] = "150000 100000"
    found = limits(v2(tmp_path, "/", files))
    # Cached files are given up when memory is wanted.
    assert (found.cpus, found.memory, found.total) == (1, 2 * GB - GB + GB // 2, 2 * GB)
    assert found.by.endswith("sys/fs/cgroup/memory.max")


def test_a_container_of_version_1_has_its_own_limit(tmp_path):
    files = {
        "memory/memory.limit_in_bytes": 2 * GB,
        "memory/memory.usage_in_bytes": GB,
        "memory/memory.stat": "inactive_file 7\ntotal_inactive_file 400000000\ntotal_active_file 0",
        "cpu/cpu.cfs_quota_us": 50_000,
        "cpu/cpu.cfs_period_us": 100_000,
    }
    found = limits(v1(tmp_path, "/", files))
    assert (found.cpus, found.memory, found.total) == (1, 1_400_000_000, 2 * GB)


def test_a_parent_may_allow_less_than_its_child(tmp_path):
    files = {
        "a/memory.max": 3 * GB,
        "a/memory.current": 2 * GB,
        "a/b/memory.max": 8 * GB,
        "a/b/memory.current": GB,
        "a/cpu.max": "400000 100000",
        "a/b/cpu.max": "max 100000",
    }
    found = limits(v2(tmp_path, "/a/b", files))
    assert (found.cpus, found.memory, found.total) == (4, GB, 3 * GB)


def test_memory_high_is_a_bound(tmp_path):
    files = {"memory.max": "max", "memory.high": GB, "memory.current": 0}
    assert limits(v2(tmp_path, "/", files)).memory == GB


@pytest.mark.parametrize("limit", ["max", NONE_V1, 2**63 - 1, -1, 10**16, "", "unlimited", "1e9"])
def test_what_stands_for_no_limit_is_none(tmp_path, limit):
    found = limits(v1(tmp_path, "/a", {"memory/a/memory.limit_in_bytes": limit}))
    assert (found.memory, found.by) == (60 * GB, "")
    found = limits(v2(tmp_path, "/a", {"a/memory.max": limit, "a/cpu.max": "max"}))
    assert (found.cpus, found.memory, found.by) == (16, 60 * GB, "")


@pytest.mark.parametrize("path", ["/docker/ab", "/docker/ab/inner", "/../../elsewhere", "/gone"])
@pytest.mark.parametrize("shown", ["/docker/ab", "/docker/a", "/"])
@pytest.mark.parametrize("make", [v1, v2])
def test_a_path_of_the_host_is_found_where_it_is_mounted(tmp_path, path, shown, make):
    """Without a cgroup namespace, a container is told the host's path, and sees its own only."""
    prefix = "memory/memory.limit_in_bytes" if make is v1 else "memory.max"
    assert limits(make(tmp_path, path, {prefix: GB}, shown)).memory == GB


def test_cores_are_the_least_of_affinity_quota_and_set(tmp_path, monkeypatch):
    files = {"cpuset/a/cpuset.cpus": "0-3,8", "cpu/a/cpu.cfs_quota_us": -1}
    assert cores(v1(tmp_path / "set", "/a", files)) == 5
    files = {"a/cpuset.cpus.effective": "0-7", "a/cpu.max": "1000 100000"}
    assert cores(v2(tmp_path / "quota", "/a", files)) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert cores(v2(tmp_path / "affinity", "/a", {"a/cpu.max": "800000 100000"})) == 1


def test_threads_are_bound_where_a_cgroup_grants_fewer_cores(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that it is put back
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    bound_threads(tmp_path)
    assert "OMP_NUM_THREADS" not in os.environ
    v2(tmp_path, "/", {"cpu.max": "250000 100000"})
    bound_threads(tmp_path)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    bound_threads(tmp_path)
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_more_is_in_use_than_allowed(tmp_path):
    """A limit that was lowered: nothing is left, and not less."""
    found = limits(v2(tmp_path, "/", {"memory.max": GB, "memory.current": 2 * GB}))
    assert (found.memory, found.total) == (0, GB)


@pytest.mark.parametrize("kind", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_ulimits_bound_memory(tmp_path, machine, kind, monkeypatch):
    machine[kind] = (4 * GB, 8 * GB)
    held = SimpleNamespace(memory_info=lambda: SimpleNamespace(vms=GB, data=GB))
    monkeypatch.setattr(psutil, "Process", lambda: held)
    found = limits(tmp_path)
    assert found.memory == 3 * GB
    assert found.total == 4 * GB
    assert found.by.startswith("ulimit -")


def test_what_ray_cannot_start_with_is_said(tmp_path, machine):
    assert shortfalls(GB, tmp_path) == []
    machine[resource.RLIMIT_AS] = (GB, GB)
    machine[resource.RLIMIT_FSIZE] = (1000, 1000)
    machine[resource.RLIMIT_NOFILE] = (64, 64)
    v2(tmp_path, "/a", {"a/pids.max": 100, "a/pids.current": 40})
    said = "; ".join(shortfalls(GB, tmp_path))
    for part in ("ulimit -v is 976562 kB", "ulimit -f is 0 kB", "ulimit -n is 64", "leaves 60"):
        assert part in said


def test_kills_for_memory_are_counted(tmp_path):
    assert killed(tmp_path) == 0
    write(tmp_path, {"/proc/vmstat": "pgfault 3\noom_kill 5"})
    assert killed(tmp_path) == 5
    events = {"a/memory.events": "low 0\noom 4\noom_kill 2\noom_group_kill 0"}
    assert killed(v2(tmp_path / "2", "/a", events)) == 2
    control = {"memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 47"}
    assert killed(v1(tmp_path / "1", "/a", control)) == 47


ODD = st.one_of(st.text(max_size=20), st.integers(-(2**70), 2**70).map(str), st.just("max 0"))


@given(content=st.lists(ODD, min_size=8, max_size=8))
def test_whatever_the_files_hold_something_is_granted(content, tmp_path_factory):
    root = tmp_path_factory.mktemp("odd")
    one, two, three, four, five, six, seven, eight = content
    files = {
        "a/memory.max": one,
        "a/memory.current": two,
        "a/memory.stat": three,
        "a/cpu.max": four,
    }
    v2(root, "/a", {**files, "a/cpuset.cpus.effective": five, "a/pids.max": six})
    for name, text in (("cgroup", seven), ("mountinfo", eight)):
        with (root / f"proc/self/{name}").open("a") as file:
            file.write(text)
    found = limits(root)
    assert 1 <= found.cpus <= 16
    assert 0 <= found.memory <= 60 * GB
    list(levels(root, "memory"))
    shortfalls(GB, root)


@given(st.text(max_size=40))
def test_a_number_is_one_or_none(text):
    found = number(text)
    assert found is None or int(text) == found


def test_this_very_machine_can_be_asked():
    assert limits().cpus >= 1
    assert killed() >= 0
    assert module.threads() > 0


def test_what_bounds_memory_is_named_where_nothing_fits():
    node = Node(1, 0, 10**6, bound="/sys/fs/cgroup/memory.max grants 2.00 GB")
    with pytest.raises(InputError, match=r"are there \(/sys/fs/cgroup/memory.max grants 2.00 GB\)"):
        plan(Load(segments=(10**6,), experts=2), Resources((node,)))
