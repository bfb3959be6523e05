"""A real cgroup, where this machine lets one be made: what is granted, and who is killed."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.cluster.limits import ROOT, levels

LIMIT = 2_500_000_000
PROJECT = Path(__file__).parents[3]


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A memory cgroup of `LIMIT` bytes below this process's own."""
    own = next(levels(ROOT, "memory"), None)
    name = "memory.limit_in_bytes" if own and (own / "memory.limit_in_bytes").exists() else ""
    if own is None or not name:  # of version 2, one with processes has none below it
        pytest.skip("no memory cgroup of version 1")
    made = own / f"sweeps-test-{os.getpid()}"
    try:
        made.mkdir()
        (made / name).write_text(str(LIMIT))
    except OSError as error:
        pytest.skip(f"a cgroup cannot be made: {error}")
    yield made
    until = time.monotonic() + 20
    while made.exists():
        try:
            made.rmdir()
        except OSError:
            assert time.monotonic() < until, (made / "cgroup.procs").read_text()
            time.sleep(0.2)


SAID = "<said> "
"""Begins each line that the code of a test prints; Ray prints lines of its workers between them."""

SAY = f"""
import sys

def say(*words):
    sys.stdout.write("\\n{SAID}" + " ".join(map(str, words)) + "\\n")  # one piece: not cut in two
    sys.stdout.flush()

"""


def within(cgroup: Path, code: str, timeout: float = 30) -> list[str]:
    """Run Python in a cgroup: what it printed with `say(...)`, a line each."""
    done = subprocess.run(
        [sys.executable, "-c", SAY + code],
        cwd=PROJECT,
        preexec_fn=lambda: (cgroup / "cgroup.procs").write_text(str(os.getpid())),
        stdout=subprocess.PIPE,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout
    return [line.removeprefix(SAID) for line in done.stdout.splitlines() if line.startswith(SAID)]


def test_a_process_in_a_cgroup_is_granted_its_limit(cgroup):
    code = "from actors.cluster.limits import limits; l = limits(); say(l.memory, l.total, l.by)"
    (said,) = within(cgroup, code)
    memory, total, by = said.split()
    assert int(total) == LIMIT // 4096 * 4096
    assert 0.9 * LIMIT < int(memory) < LIMIT
    assert by == str(cgroup / "memory.limit_in_bytes")


EATS = """
import sys
from sweeps.cluster import ray_connection
ray_connection.stay_on_loopback(None)
import ray
from actors.experts.requests import Embed
from actors.fleet.client import Client
from actors.fleet.restarts import StateReporter
from actors.cluster.fatal import OutOfMemory
from actors.fleet.dispatcher import Dispatcher, Slot
from actors.fleet.transport import fetched

class Eats(StateReporter):
    def call(self, request):
        held = bytearray(int(request.expert))
        held[::4096] = b"1" * len(held[::4096])
        return len(held)

with ray_connection.connected(None, 10**8):
    made = ray.remote(Eats).options(num_cpus=0, max_restarts=50, max_task_retries=20).remote()
    group = ray.util.placement_group([{"CPU": 0.1}])
    slots = ray.cloudpickle.dumps([Slot(0, made, group)])
    dispatcher = ray.remote(Dispatcher).options(num_cpus=0, max_concurrency=9)
    dispatcher = dispatcher.remote(slots, 60.0, "3.00 GB")
    client = Client(dispatcher)
    say(fetched(client.submit(Embed(str(10**7), ""))))
    try:
        fetched(client.submit(Embed(str(3 * 10**9), "")))
    except OutOfMemory as error:
        say(error)
    say(fetched(client.submit(Embed(str(10**7), ""))))
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_call_that_the_kernel_kills_twice_is_out_of_memory(cgroup):
    first, refused, last = within(cgroup, EATS, timeout=350)
    assert first == last == "10000000"
    assert refused.startswith(
        "embed 3000000000: out of memory, 2 times in a row, on node 127.0.0.1, where 2.50"
    )
    assert f"({cgroup}/memory.limit_in_bytes)" in refused
    assert "planned: 3.00 GB; set placement.replicas lower" in refused
    kills = (cgroup / "memory.oom_control").read_text()
    assert "oom_kill 2\n" in kills
