"""Three hosts with the project's own cluster on them, and one that is alone, for the whole run."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.hosts import ROOT, Host, hosts, missing
from tests.cluster.launcher import PROJECT, Launcher, user

SPEC = Path(__file__).with_name("sweep.yaml")
NODES_WITHIN = 600.0
"""Seconds for workers to join: the head starts them after `ray up` has returned."""


@dataclass(frozen=True)
class Site:
    """A cluster that `ray up` has started, and its user."""

    user: Launcher
    head: Host
    workers: tuple[Host, ...]


@dataclass(frozen=True)
class OneMachine:
    """The sweep without a cluster."""

    folder: Path
    heard: frozenset[str]
    """What listened on the host meanwhile."""
    address: str


@pytest.fixture(scope="session")
def embedded_pool() -> Path:
    """A cache folder with the embedded pool; built in the user's own where it is not yet."""
    code = (
        "from rich.console import Console; from sweeps.cli.quickstart import ensure_pool;"
        "from actors.files.cache_dir import cache_dir;"
        "ensure_pool('images', Console(stderr=True)); print(cache_dir())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == 0, "the embedded pool cannot be built"
    return Path(done.stdout.split()[-1]) / "embedded"


@pytest.fixture(scope="session")
def machines(embedded_pool: Path) -> Iterator[list[Host]]:
    """Three hosts for a cluster, of which only the head has the pool, and one that is alone."""
    if reason := missing():
        pytest.fail(f"tests/cluster {reason}")
    with hosts(["head", "one", "two", "alone"]) as made:
        for host in (made[0], made[3]):
            give(host, embedded_pool, ".cache/fusion-sweeps/embedded")
            shutil.copy(SPEC, host.home)
        yield made


@pytest.fixture(scope="session")
def one_machine(machines: list[Host]) -> OneMachine:
    """The sweep on the host that is alone. (Before the cluster is up: the cores are few.)"""
    alone = machines[3]
    python = "export PATH=~/.fusion-sweeps/bin:$PATH; python -m sweeps run"
    command = f"cd {PROJECT}; {python} ~/{SPEC.name} --outputs ~/outputs --fresh"
    heard: set[str] = set()
    for _ in range(3):
        with (ROOT / "alone" / "said").open("w+") as said:
            running = subprocess.Popen(
                [*alone.ssh(), command], stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
            while running.poll() is None:
                heard |= listeners(alone)
                time.sleep(2)
            said.seek(0)
            text = said.read()
        if "timed out during startup" not in text:  # Ray gives its processes half a minute
            break
    assert running.returncode == 0, text
    return OneMachine(alone.home / "outputs" / "several-hosts", frozenset(heard), alone.address)


@pytest.fixture(scope="session")
def site(machines: list[Host], one_machine: OneMachine) -> Iterator[Site]:
    """The cluster, up; `one_machine` has ended."""
    head, one, two, _ = machines
    launcher = user(ROOT / "user", head, [one, two])
    launcher.ray("up", "--yes", "cluster.yaml", timeout=400)
    try:
        wait_for_nodes(head, 3)
        yield Site(launcher, head, (one, two))
    finally:
        down = launcher.ray("down", "--yes", "cluster.yaml", check=False).stdout
        until = time.monotonic() + 180  # workers stop when they miss the head for a minute
        while left := [host.name for host in (head, one, two) if runs_ray(host)]:
            assert time.monotonic() < until, f"Ray still runs on {left}: {down[-2000:]}"
            time.sleep(3)


def listeners(host: Host) -> set[str]:
    """Addresses and ports that processes of a host listen on."""
    said = host.run("ss -ltnH", check=False).stdout
    return {line.split()[3] for line in said.splitlines()}


def give(host: Host, folder: Path, name: str) -> None:
    """Copy a folder into a host's home."""
    (host.home / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder, host.home / name)


def wait_for_nodes(head: Host, count: int) -> None:
    """Until the cluster has so many nodes."""
    until = time.monotonic() + NODES_WITHIN
    while time.monotonic() < until:
        if nodes(head) == count:
            return
        time.sleep(2)
    log = head.run("cat /tmp/ray/session_latest/logs/monitor.*", check=False).stdout
    raise AssertionError(f"{nodes(head)} of {count} nodes came up:\n{log[-4000:]}")


def runs_ray(host: Host) -> bool:
    """Whether Ray's processes are on a host."""
    return bool(host.run("pgrep -f 'raylet|gcs_server'", check=False).stdout)


def nodes(head: Host) -> int:
    """How many nodes Ray counts."""
    listed = head.run("ray list nodes --filter state=ALIVE --format json", check=False).stdout
    return listed.count('"node_id"')
