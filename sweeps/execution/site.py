"""Where a sweep runs: a running cluster, or this machine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from actors.cluster.nodes import Found
from actors.cluster.planner import Plan, Resources
from actors.fleet.fleet import Fleet
from fusion.errors import InputError
from sweeps.cluster import ray_connection
from sweeps.execution.autoscale import Autoscaler
from sweeps.planning.prepare import arrange
from sweeps.planning.prepared import Prepared


class Site:
    """A running cluster with what its nodes reported, or this machine."""

    def __init__(self, address: str | None, say: Callable[[str], None]) -> None:
        """`address`: as `--address` gives it; `say`: prints a line."""
        self.target = ray_connection.target(address)
        self.say = say
        self.known: dict[str, Found] = {}

    def join(self) -> AbstractContextManager[str]:
        """Connect to the cluster, if there is one."""
        return ray_connection.connected(self.target, 0) if self.target else nullcontext("")

    def start(self, prepared: Prepared) -> AbstractContextManager[str]:
        """Start a local cluster, unless one is connected; returns the dashboard's address."""
        store = prepared.plan.store_bytes
        return nullcontext("") if self.target else ray_connection.connected(None, store)

    def resources(self) -> Resources:
        """Resources of the cluster or this machine.

        Raises:
            InputError: a node that cannot take part.
        """
        return (
            ray_connection.of_cluster(self.known) if self.target else ray_connection.this_machine()
        )

    def kind(self, prepared: Prepared) -> str:
        """What rates of work are of: this machine's device, or a cluster's."""
        return prepared.plan.device + ("-cluster" if self.target else "")

    def readers(self, prepared: Prepared) -> list[str]:
        """Ids of the nodes that read the weights from disk; prints which nodes get them sent."""
        if not self.target:
            return []
        seeing, blind = ray_connection.readers(prepared.pool, self.resources())
        if blind:
            names = ", ".join(blind[:5]) + (f" and {len(blind) - 5} more" if blind[5:] else "")
            self.say(
                f"no experts go to {names}: they do not see the checkpoints (placement.weights:"
                " files)"
                if prepared.spec.placement.weights == "files"
                else f"weights are sent, once a node, to {names}: they do not see the checkpoints"
            )
        return seeing

    def elastic(self, fleet: Fleet, prepared: Prepared) -> AbstractContextManager[object]:
        """Context that adapts the fleet to the cluster, if the number of replicas is not fixed."""
        spec, shards = prepared.spec, prepared.plan.shards
        if not self.target or spec.placement.replicas is not None:
            return nullcontext()
        refused: set[str] = set()

        def planned() -> Plan:
            try:
                resources = self.resources()
            except InputError as error:
                # A node that came with another version takes no part; said once.
                if str(error) not in refused:
                    refused.add(str(error))
                    self.say(str(error))
                raise
            return arrange(spec, prepared.pool, prepared.needs, resources, shards)

        return Autoscaler(fleet, planned, self.say)
