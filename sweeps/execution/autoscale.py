"""Autoscale a fleet: add replicas when nodes join, and remove them when nodes leave.

The number of shards of a replica does not change.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import ray

from actors.cluster.planner import Plan
from actors.fleet.errors import placed
from actors.fleet.fleet import Fleet, Member, weights_ready
from actors.fleet.transport import fetched
from fusion.errors import InputError
from sweeps.console import signals

log = logging.getLogger(__name__)

PULSE = 5.0
"""Seconds between checks of the cluster."""

GRACE = 30.0
"""Seconds that a replica which lost its place may wait for another before it is ended."""

START = 600.0
"""Seconds that a new replica may take until it holds its weights."""

TRIES = 3
"""New replicas in a row that may fail; no more are started until the cluster's nodes change."""


@dataclass
class StartingReplica:
    """A replica that is starting and takes no calls yet."""

    member: Member
    waiting: list[Any]
    since: float


class Autoscaler:
    """Watch the cluster from a thread of the driver while a sweep runs; a context manager."""

    def __init__(
        self, fleet: Fleet, planned: Callable[[], Plan], say: Callable[[str], None]
    ) -> None:
        """The thread starts when the context is entered.

        Args:
            fleet: a running one.
            planned: the plan for the cluster as it is now, with the fleet's shards; raises
                InputError where it has no room for one replica.
            say: shows a line to the user.
        """
        self.fleet, self.planned, self.say = fleet, planned, say
        self.starting: list[StartingReplica] = []
        self.failures = 0
        """New replicas that failed, since one was ready or the nodes changed."""
        self.nodes: object = None
        """Those of the last plan."""
        self.lost: dict[int, float] = {}
        """Number of a replica without a place -> since when."""
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, name="elastic", daemon=True)

    def run(self) -> None:
        """Check the cluster every `PULSE` seconds until the sweep ends."""
        while not self.stopped.wait(PULSE):
            try:
                self.check()
            except InputError as error:
                log.debug(
                    "elastic: %s", error
                )  # no room: the dispatcher reports it where it matters
            except Exception as error:  # a cluster in trouble must not end the sweep's helper
                log.warning("elastic: %s", " ".join(str(error).split())[:200])

    def check(self) -> None:
        """One check: admit replicas that are ready, drop those that lost their node, start new
        ones."""
        self.admit_ready()
        plan, over = self.planned(), self.lost_replicas()
        if plan.nodes != self.nodes:
            self.nodes, self.failures = plan.nodes, 0
        # A plan for other nodes may say otherwise where a shard fits.
        self.fleet.plan = replace(self.fleet.plan, places=plan.places)
        room = plan.replicas - len(self.fleet.members) + len(over)
        for _ in range(room if self.failures < TRIES else 0):
            member = self.fleet.start()
            self.starting.append(StartingReplica(member, weights_ready([member]), time.monotonic()))
        if over and len(over) < len(self.active()):
            self.set_active(without=over)
            self.say(f"a node left: {len(self.active())} replicas")

    def admit_ready(self) -> None:
        """Admit new replicas that are ready; drop those that failed or took too long."""
        for each in list(self.starting):
            done, each.waiting = (
                ray.wait(each.waiting, num_returns=len(each.waiting), timeout=0)
                if each.waiting
                else ([], [])
            )
            try:
                for ref in done:
                    fetched(ref)
                late = bool(each.waiting) and time.monotonic() - each.since > START
            except Exception as error:  # its node went again, say
                log.warning("elastic: a new replica: %s", " ".join(str(error).split())[:200])
                late = True
            if late:
                self.starting.remove(each)
                self.set_active(without=[each.member])
                self.failures += 1
                if self.failures == TRIES:
                    self.say(f"{TRIES} new replicas failed: no more are started on these nodes")
            elif not each.waiting:
                self.starting.remove(each)
                self.set_active()
                self.failures = 0
                self.say(f"a node joined: {len(self.active())} replicas")

    def lost_replicas(self) -> list[Member]:
        """Replicas without a node for longer than `GRACE`."""
        now = time.monotonic()
        homeless = [member for member in self.active() if not placed(member.group)]
        self.lost = {each.number: self.lost.get(each.number, now) for each in homeless}
        return [each for each in homeless if now - self.lost[each.number] > GRACE]

    def active(self) -> list[Member]:
        """Replicas that take calls."""
        coming = {each.member.number for each in self.starting}
        return [member for member in self.fleet.members if member.number not in coming]

    def set_active(self, without: Collection[Member] = ()) -> None:
        """Set the replicas that take calls; new ones that are not ready wait."""
        out = {member.number for member in without}
        coming = [each.member for each in self.starting]
        self.fleet.set_replicas([m for m in self.active() if m.number not in out], coming)

    def __enter__(self) -> Autoscaler:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        left = signals.remaining()
        self.thread.join(timeout=60 if left is None else left)
