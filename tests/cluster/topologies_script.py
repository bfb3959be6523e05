"""Eight nodes of different sizes on this machine; run by `test_topologies.py`, a part a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sweeps.cluster import ray_connection

ray_connection.stay_on_loopback(None)  # before ray is imported
# Of its own, or whoever starts a Ray on this machine meanwhile joins this one.
os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-")

import psutil  # noqa: E402
import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.util.placement_group import placement_group_table, remove_placement_group  # noqa: E402
from ray.util.state import list_actors  # noqa: E402

from actors.cluster.planner import Load, Plan, Resources, plan  # noqa: E402
from actors.fleet.fleet import reserve  # noqa: E402
from tests.actors.fleet.sharded import say, wait_until  # noqa: E402

STORE = 80 * 2**20
ROOT = Path(__file__).parents[2]
THRESHOLD = "RAY_" + "memory_usage_threshold"


def reserved(wanted: Plan) -> list[list[str]]:
    """The nodes of each shard of each replica, once all have their places."""
    groups = [reserve(wanted) for _ in range(wanted.replicas)]
    for group in groups:
        ray.get(group.ready(), timeout=60)
    found = []
    for group in groups:
        table = placement_group_table(group)["bundles_to_node_id"]
        found.append([table[index] for index in range(wanted.shards)])
        remove_placement_group(group)
    # Ray gives them back a little later.
    wait_until(lambda: ray.available_resources().get("GPU", 0) == ray.cluster_resources()["GPU"])
    return found


def placement() -> None:
    """Replicas spread, shards packed, selectors kept: what Ray does is what was planned."""
    nodes = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1, "num_gpus": 0, "object_store_memory": STORE, "include_dashboard": False
        },
    )  # fmt: skip
    sizes = {"a": (4, 4), "b": (2, 2, 1), "c": (1, 1)}
    for zone, gpus in sizes.items():
        for count in gpus:
            nodes.add_node(
                num_cpus=2, num_gpus=count, object_store_memory=STORE, labels={"zone": zone}
            )
    ray.init(address=nodes.address, log_to_driver=False)
    nodes.wait_for_nodes()
    there = ray_connection.of_cluster()
    assert (len(there.nodes), there.gpus) == (8, 15)
    assert sorted(node.gpus for node in there.nodes) == [0, 1, 1, 1, 2, 2, 4, 4]
    zone_of = {node.id: node.labels.get("zone") for node in there.nodes}
    size_of = {node.id: node.gpus for node in there.nodes}
    load = Load(segments=(10**6,) * 8, experts=8)

    spread = plan(load, there, device="cuda", replicas=7)
    used = Counter(node for (node,) in reserved(spread))
    say("seven whole replicas:", sorted(used.values()), "planned", spread.nodes)
    # Seven fit on the two large nodes and a little more; equal choices are made at random.
    assert len(used) > 2
    assert all(count < 4 for count in used.values())
    every = plan(load, there, device="cuda")
    used = Counter(node for (node,) in reserved(every))
    assert (every.replicas, dict(used)) == (15, {n: g for n, g in size_of.items() if g})

    pairs = plan(load, there, device="cuda", shards=2, replicas=6)
    found = reserved(pairs)
    say("six pairs on", [[size_of[node] for node in pair] for pair in found])
    assert all(len(set(pair)) == 1 for pair in found)  # packed: four on a, two on b
    whole = plan(load, there, device="cuda", shards=4, replicas=2)
    assert all(len(set(four)) == 1 for four in reserved(whole))

    in_b = plan(load, there, device="cuda", labels={"zone": "in(b, c)"})
    places = [node for (node,) in reserved(in_b)]
    assert (in_b.replicas, {zone_of[node] for node in places}) == (7, {"b", "c"})
    halves = plan(load, there, device="cuda", gpus=0.5, labels={"zone": "c"})
    assert Counter(node for (node,) in reserved(halves)) == dict.fromkeys(
        [node for node, zone in zone_of.items() if zone == "c"], 2
    )
    # Of unequal GPUs (told, since logical ones have no memory) only the large ones are taken.
    large = {node.id for node in there.nodes if node.gpus == 4}
    told = tuple(
        replace(node, gpu_memory=(80 if node.id in large else 1) * 10**9) for node in there.nodes
    )
    heavy = Load(segments=(10**9,) * 2, experts=4)
    fits = plan(heavy, Resources(told), device="cuda", shards=1, replicas=5)
    assert {node for (node,) in reserved(fits)} == large
    ray.shutdown()
    nodes.shutdown()


def started(words: list[str], cwd: Path) -> subprocess.Popen[str]:
    """A sweep's driver, as a user starts it."""
    log = (cwd / "driver.log").open("a")
    return subprocess.Popen(
        [sys.executable, "-m", "sweeps", "run", *words],
        cwd=cwd, stdout=log, stderr=log, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def until_trials(driver: subprocess.Popen[str], ledger: Path, count: int) -> None:
    """Wait until so many trials are in the ledger and the sweep still runs."""
    while len(list(ledger.glob("*.json"))) < count:
        assert driver.poll() is None, "the sweep ended early"
        time.sleep(0.02)


def finished(driver: subprocess.Popen[str], cwd: Path) -> str:
    """What a driver said that ended well."""
    driver.wait(timeout=420)
    said = (cwd / "driver.log").read_text()
    assert driver.returncode == 0, said[-3000:]
    return said


def eight() -> tuple[Cluster, list[object]]:
    """A head and three workers without cores, and four workers with one for a replica each: more
    replicas than that only wait for each other on a small machine."""
    nodes = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0, "num_gpus": 0, "object_store_memory": STORE,
            "include_dashboard": False,
        },
    )  # fmt: skip
    workers = [
        nodes.add_node(num_cpus=1 if index < 4 else 0, object_store_memory=STORE)
        for index in range(7)
    ]
    ray.init(address=nodes.address, log_to_driver=False)
    nodes.wait_for_nodes()
    return nodes, workers


def homes() -> Counter[str]:
    """How many replicas have their place on which node."""
    tables = placement_group_table().values()
    return Counter(
        node
        for table in tables
        if table["state"] == "CREATED" and table["name"].startswith("sweep:")
        for node in table["bundles_to_node_id"].values()
    )


def entries(ledger: Path) -> dict[str, tuple[int, str]]:
    """Name of each entry -> when it was written, and what it holds."""
    return {
        path.name: (path.stat().st_mtime_ns, path.read_text()) for path in ledger.glob("*.json")
    }


def without_a_node(
    spec: Path, cwd: Path, ledger: Path
) -> tuple[Cluster, list[str], subprocess.Popen[str]]:
    """A sweep that lost a node with a replica in its middle, and has ended two more trials since.

    Returns:
        The cluster, the sweep's command line, its driver.
    """
    nodes, workers = eight()
    words = [str(spec), "--address", nodes.address]
    driver = started(words, cwd)
    until_trials(driver, ledger, 3)
    before = homes()
    say("replicas on", len(before), "nodes")
    assert len(before) == 4
    victim = next(worker for worker in workers if worker.node_id in before)
    nodes.remove_node(victim, allow_graceful=False)
    wait_until(lambda: victim.node_id not in homes())
    say("killed", victim.node_id[:8])
    until_trials(driver, ledger, len(list(ledger.glob("*.json"))) + 2)
    return nodes, words, driver


def losing(spec: Path, cwd: Path) -> None:
    """A node that dies in mid-sweep: the sweep ends by itself."""
    ledger = cwd / "outputs" / "tiny" / "ledger"
    nodes, _, driver = without_a_node(spec, cwd, ledger)
    kept = entries(ledger)
    said = finished(driver, cwd)
    after = entries(ledger)
    say("trials", len(kept), "then", len(after))
    assert len(after) > len(kept)
    assert {name: after.get(name) for name in kept} == kept
    assert "Traceback" not in said
    ray.shutdown()
    nodes.shutdown()


def going(spec: Path, cwd: Path) -> None:
    """A node that dies in mid-sweep, and a driver that is killed -9."""
    ledger = cwd / "outputs" / "tiny" / "ledger"
    nodes, words, driver = without_a_node(spec, cwd, ledger)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    kept = entries(ledger)
    say("the driver killed after", len(kept), "trials")
    wait_until(lambda: not homes())  # the cluster lets go of what a dead driver had
    said = finished(started([*words, "--resume"], cwd), cwd)
    after = entries(ledger)
    written_again = {
        name: (kept[name], after.get(name)) for name in kept if after.get(name) != kept[name]
    }
    assert not written_again, written_again
    assert "Traceback" not in said
    ray.shutdown()
    nodes.shutdown()


def joining(spec: Path, cwd: Path) -> None:
    """A node that joins in mid-sweep gets a replica."""
    nodes, _ = eight()
    ledger = cwd / "outputs" / "tiny" / "ledger"
    driver = started([str(spec), "--address", nodes.address], cwd)
    until_trials(driver, ledger, 3)
    joined = nodes.add_node(num_cpus=2, object_store_memory=STORE)
    log = cwd / "driver.log"
    until(lambda: "a node joined" in log.read_text() or driver.poll() is not None, 300)
    assert driver.poll() is None, log.read_text()
    assert homes()[joined.node_id] >= 1, homes()
    say("the node that joined has", homes()[joined.node_id], "replicas")
    driver.kill()
    ray.shutdown()
    nodes.shutdown()


def until(holds: Callable[[], bool], seconds: float) -> None:
    """Wait for something that takes its time."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


HOG = """
import sys, time
held = bytearray(int(sys.argv[1]))
held[::4096] = b"1" * len(held[::4096])
time.sleep(120)
"""


def memory(spec: Path, cwd: Path) -> None:
    """A machine short of memory: Ray kills a replica, it comes back, the table is the same."""
    total, used = psutil.virtual_memory().total, psutil.virtual_memory().used
    room = 5 * 10**9  # for the sweep itself
    os.environ[THRESHOLD] = f"{min((used + room) / total, 0.9):.3f}"
    os.environ["RAY_" + "memory_monitor_refresh_ms"] = "100"
    nodes = Cluster(
        initialize_head=True,
        # With a dashboard: it is what lists actors.
        head_node_args={"num_cpus": 2, "object_store_memory": STORE, "include_dashboard": True},
    )
    ray.init(address=nodes.address, log_to_driver=False)
    ledger = cwd / "outputs" / "tiny" / "ledger"
    driver = started([str(spec), "--address", nodes.address], cwd)
    until_trials(driver, ledger, 3)
    before = restarts()
    assert before, "trials ended, and there is no replica"
    assert not any(before.values()), before
    size = int(total * float(os.environ[THRESHOLD]))
    hog = subprocess.Popen(
        [sys.executable, "-c", HOG, str(size - psutil.virtual_memory().used + 2 * 10**9)]
    )
    try:
        until(lambda: any(restarts().values()) or driver.poll() is not None, 90)
    finally:
        hog.kill()
        hog.wait()
    went = sum(count > 0 for count in restarts().values())
    assert went or driver.poll() is None, "the sweep ended before memory was short"
    said = finished(driver, cwd)
    say("short of memory:", went, "of", len(before), "replicas went", said[-2000:])
    ray.shutdown()
    nodes.shutdown()


def restarts() -> dict[str, int]:
    """Replica -> how often it was started again; as Ray has it.

    The names of processes do not tell: while a replica works, its process bears that call's name.
    """
    found = list_actors(filters=[("class_name", "=", "Replica")], detail=True)
    return {each.actor_id: int(each.num_restarts or 0) for each in found}


if __name__ == "__main__":
    part, *rest = sys.argv[1:]
    parts = {
        "placement": placement,
        "losing": losing,
        "going": going,
        "joining": joining,
        "memory": memory,
    }
    parts[part](*map(Path, rest))
    say("all well")
