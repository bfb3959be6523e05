"""A cluster of three nodes loses them one by one; run by `test_failures.py` in its own process."""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sweeps.cluster import ray_connection

ray_connection.stay_on_loopback(None)  # before ray is imported
# Of its own, or whoever starts a Ray on this machine meanwhile joins this one.
os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-")

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.util.placement_group import placement_group_table  # noqa: E402

from actors.fleet.errors import Unplaced, placed  # noqa: E402
from actors.fleet.fleet import Fleet, FleetOptions  # noqa: E402
from tests.actors.fleet.sharded import alive, plan_of, say, wait_until  # noqa: E402
from tests.actors.laws.parts import Parts, make_parts  # noqa: E402
from tests.fusion import laws  # noqa: E402

NODE = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 100 * 2**20}


def node_of(fleet: Fleet, index: int) -> str:
    """The node that holds a shard's place."""
    return str(placement_group_table(fleet.groups[0])["bundles_to_node_id"][index])


def shortage_of(parts: Parts, fleet: Fleet, lose: Callable[[], None]) -> str:
    """What a training says that loses its place at step 3."""
    try:
        parts.train(fleet.client, between=lambda step: lose() if step == 3 else None)
    except Unplaced as error:
        return str(error)
    raise AssertionError("a training without a place ended")


def main(root: Path, scratch: Path) -> None:
    parts = make_parts(root, scratch / "cache")
    alone = parts.train(parts.local())
    head = {"num_cpus": 0, "num_gpus": 0, "object_store_memory": 100 * 2**20}
    nodes = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
    workers = [nodes.add_node(**NODE) for _ in range(3)]
    ray.init(address=nodes.address, log_to_driver=False)
    nodes.wait_for_nodes()

    def lose(node: str) -> None:
        (gone,) = [each for each in workers if each.node_id == node]
        workers.remove(gone)
        nodes.remove_node(gone, allow_graceful=False)

    with Fleet(*parts.args, plan_of(1, 2), FleetOptions(patience=10)) as fleet:
        fleet.ready(200)
        laws.assert_same_bits(parts.train(fleet.client), alone)
        say("undisturbed: the same bits")
        pids = [ray.get(shard.pid.remote()) for shard in fleet.shards]
        weights = [ray.experimental.get_object_locations([ref])[ref] for ref in fleet.flat]
        held = [where["node_ids"] for where in weights]
        say("weights lie on", held)
        # A node with a shard; if one is, the one where the weights were read.
        victims = [node_of(fleet, index) for index in range(2)]
        victim = next((node for node in victims if [node] in held), victims[0])
        say("rebuilds weights:", [victim] in held)

        def between(step: int) -> None:
            if step == 5:
                lose(victim)
                wait_until(lambda: not alive(pids[victims.index(victim)]))

        start = time.monotonic()
        laws.assert_same_bits(parts.train(fleet.client, between=between), alone)
        wait_until(lambda: placed(fleet.groups[0]))
        assert victim not in [node_of(fleet, index) for index in range(2)]
        assert pids != [ray.get(shard.pid.remote()) for shard in fleet.shards]
        say(f"a node lost: the same bits, {time.monotonic() - start:.1f} s")

        start = time.monotonic()
        line = shortage_of(parts, fleet, lambda: lose(node_of(fleet, 1)))
        took = time.monotonic() - start
        say(f"too few: {line}; {took:.1f} s")
        assert "2 shards need 1 CPU each; the cluster has 1 CPU" in line
        assert "\n" not in line
        assert took < 60
        workers.append(nodes.add_node(**NODE))
        laws.assert_same_bits(parts.train(fleet.client), alone)
        say("a node joined: the same bits")
    ray.shutdown()
    nodes.shutdown()
    say("all well")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
