"""Dispatcher actor: queues calls, sends each to an idle replica, repeats calls of lost replicas.

Ray waits forever for an actor whose placement group was lost with a node. So the dispatcher checks
the placement groups every two seconds. A call whose replica lost its place is repeated on another
free replica. If no replica has had a place for long, callers get an error of one line. A call is
repeated from its start if a shard died that kept state for it (`Forgotten`). Ray restarts processes
that died; the dispatcher repeats their calls and counts the deaths (`restarts.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table

from actors.artifacts.errors import ATTEMPTS, is_forgotten
from actors.cluster.metrics import gauge
from actors.cluster.worker_deaths import is_death
from actors.experts.requests import Request
from actors.fleet.errors import Unplaced, shortage
from actors.fleet.restarts import CallLock, Deaths, ProcessState, killed_by_ray
from actors.fleet.trial_startup import StartupBarrier
from actors.fleet.usage import Usage

PATIENCE = 300.0
"""Seconds that a call waits for its replica to regain a place, if there is no other replica."""

FAILOVER = 10.0
"""The same, if another replica has a place."""

PULSE = 2.0
"""Seconds between checks of the replicas' places."""

STATE_RETRIES = 20
"""Retries of the query for the state of a process that died. Queries to a dead node fail repeatedly
until the cluster has noticed its death."""

BARRIER_PULSE = 0.05
"""Seconds between checks whether all trials have a process."""


@dataclass
class Slot:
    """A slot of a replica; it runs one call at a time."""

    number: int
    """Number of the replica."""
    replica: Any
    group: PlacementGroup
    seen: float = field(default_factory=time.monotonic)
    """Time when the replica last had its place."""
    gone: bool = False
    """Whether the replica is no longer used."""
    states: Sequence[ProcessState] = ()
    """Last known states of its processes; empty: not queried yet."""

    def unseen_for(self) -> float:
        """Seconds since the replica was last seen to have its place."""
        return time.monotonic() - self.seen

    @property
    def usable(self) -> bool:
        """Whether calls can be sent to it."""
        return not self.gone and self.unseen_for() < FAILOVER


class Dispatcher:
    """Sends calls to idle replicas, first come, first served."""

    def __init__(self, slots: bytes, patience: float, need: str = "") -> None:
        """Start taking calls.

        Args:
            slots: pickled slots; unpickled, Ray would track each handle and warn of its loss.
            patience: seconds that a call waits for a place.
            need: the memory that the plan counted for a replica, for messages.
        """
        self.slots: list[Slot] = []
        self.patience = patience
        self.free: asyncio.Queue[Slot] = asyncio.Queue()
        self.set_aside: list[Slot] = []
        """Slots that lost their place; they become free when they regain one."""
        self.usage = Usage()
        self.barrier = StartupBarrier()
        self.lock = CallLock()
        self.need = need
        self.repeated = 0
        """Number of calls that were repeated because a process died."""
        self.waiting = 0
        self.watcher: asyncio.Task[None] | None = None
        self.add_slots(ray.cloudpickle.loads(slots))

    def add_slots(self, slots: Sequence[Slot]) -> None:
        """Add slots."""
        for slot in slots:
            slot.seen = time.monotonic()  # it was set by another machine's clock
            self.slots.append(slot)
            self.free.put_nowait(slot)

    async def set_replicas(self, slots: bytes) -> None:
        """Set the replicas from now on; calls of replicas that are left out are repeated.

        All replicas are listed, so that a restarted dispatcher is brought up to date.
        """
        wanted: list[Slot] = ray.cloudpickle.loads(slots)
        numbers = {slot.number for slot in wanted}
        for slot in self.slots:
            slot.gone = slot.gone or slot.number not in numbers
        known = {slot.number for slot in self.slots}
        self.slots = [slot for slot in self.slots if not slot.gone]
        self.add_slots([slot for slot in wanted if slot.number not in known])

    async def busy_seconds(self, label: str) -> float:
        """Seconds that replicas have worked for a label."""
        return self.usage.of(label)

    async def repeated_calls(self) -> int:
        """Number of calls that were repeated because a process died."""
        return self.repeated

    async def expect(self, label: str) -> None:
        """Note that a trial was given to Tune; see `actors.fleet.trial_startup`."""
        self.barrier.expect(label)

    async def call(
        self, request: Request[Any], label: str = "", when_all_started: bool = False
    ) -> Any:
        """Run a request on the next free replica and return its result.

        A caller that dies leaves nothing behind.

        Args:
            request: the work for a replica.
            label: the label whose usage the call is added to, see `busy_seconds`.
            when_all_started: return the result only when all trials have a process, see
                `actors.fleet.trial_startup`; for a call that is a whole short trial.

        Raises:
            Unplaced: no replica has had a place for longer than `patience`.
        """
        self.barrier.arrived(label)
        if self.watcher is None:
            self.watcher = asyncio.ensure_future(self.watch_places())
        result = await self.serve(request, label)
        while when_all_started and not self.barrier.complete():
            await asyncio.sleep(BARRIER_PULSE)
        return result

    async def serve(self, request: Request[Any], label: str) -> Any:
        """Repeat a request until a replica completes it, and return its result.

        Raises:
            OutOfMemory: replicas ran out of memory, see `restarts.MEMORY_DEATHS`.
            Died: replicas died for other reasons.
        """
        attempts, deaths = 0, Deaths(request.title, self.need)
        while True:  # each iteration ends the call or is counted as a death or an attempt
            slot = await self.next_slot()
            try:
                async with self.lock.hold(alone=deaths.for_memory > 0):
                    done, result = await self.attempt(slot, request, label, deaths)
            except Exception as error:
                if not is_forgotten(error):
                    raise
                attempts += 1
                if attempts == ATTEMPTS:
                    raise
                done = False
            finally:
                self.release(slot)
            if done:
                return result

    async def attempt(
        self, slot: Slot, request: Request[Any], label: str, deaths: Deaths
    ) -> tuple[bool, Any]:
        """Try a request on one slot, and count a death; returns (whether it ended, its result)."""
        before = slot.states or await self.query_states(slot)
        if not before:
            return False, None
        self.usage.start(slot.number, label)
        try:
            # Ray must not repeat the call by itself: its deaths are counted here.
            work = slot.replica.call.options(name=request.title, max_task_retries=0)
            return await self.wait_for(slot, work.remote(request))
        except Exception as error:
            if not is_death(error) or slot.gone:
                raise
        finally:
            self.usage.stop(slot.number, label)
        after = await self.query_states(slot)
        kills = {each.node: each.killed for each in after}
        for other in self.slots:  # do not count these kills again
            other.states = [replace(v, killed=kills.get(v.node, v.killed)) for v in other.states]
        deaths.add(before, after, await asyncio.to_thread(killed_by_ray, lost(before, after)))
        self.repeated += 1
        return False, None

    async def query_states(self, slot: Slot) -> Sequence[ProcessState]:
        """States of a replica's processes once they run; empty if it lost its place."""
        states = slot.replica.states.options(name="states", max_task_retries=STATE_RETRIES)
        _, found = await self.wait_for(slot, states.remote())
        slot.states = found or ()
        return slot.states

    async def next_slot(self) -> Slot:
        """Wait for the next free slot.

        Raises:
            Unplaced: see `call`.
        """
        self.waiting += 1
        got = asyncio.ensure_future(self.free.get())
        try:
            while True:
                while not (await asyncio.wait([got], timeout=PULSE))[0]:
                    if self.unplaced():
                        raise Unplaced(shortage([slot.group for slot in self.slots]))
                if got.result().usable:
                    return got.result()
                self.release(got.result())
                got = asyncio.ensure_future(self.free.get())
        finally:
            self.waiting -= 1
            if not got.done():
                got.cancel()

    def release(self, slot: Slot) -> None:
        """Free a slot, or set it aside until its replica has a place again."""
        if slot.usable:
            self.free.put_nowait(slot)
        elif not slot.gone:
            self.set_aside.append(slot)

    def unplaced(self) -> bool:
        """Whether no replica has had a place for longer than `patience`."""
        return all(slot.unseen_for() > self.patience for slot in self.slots)

    async def wait_for(self, slot: Slot, ref: Any) -> tuple[bool, Any]:
        """Wait for a call on this slot; returns (whether it ended, its result).

        `ref`: reference to the result of a call of the slot's replica.
        """
        result = asyncio.ensure_future(ref)
        while not (await asyncio.wait([result], timeout=PULSE))[0]:
            others = any(other.usable and other.number != slot.number for other in self.slots)
            if slot.gone or slot.unseen_for() > (FAILOVER if others else self.patience):
                result.cancel()
                if not others and not slot.gone:
                    raise Unplaced(shortage([each.group for each in self.slots]))
                return False, None
        try:
            return True, result.result()
        except ray.exceptions.ActorDiedError:
            slot.gone = True  # Ray does not restart it: it was ended, or died too often
            if not any(other.usable for other in self.slots):
                raise
            return False, None

    async def watch_places(self) -> None:
        """Check the replicas' places every `PULSE` seconds, and set the metrics of the queue."""
        while True:
            table = await asyncio.to_thread(placement_group_table)
            now = time.monotonic()
            for slot in self.slots:
                if table.get(slot.group.id.hex(), {}).get("state") == "CREATED":
                    slot.seen = now
            back = [slot for slot in self.set_aside if slot.usable]
            self.set_aside = [slot for slot in self.set_aside if not slot.usable and not slot.gone]
            for slot in back:
                self.free.put_nowait(slot)
            gauge("waiting_calls", self.waiting)
            gauge("busy_lanes", len(self.slots) - self.free.qsize() - len(self.set_aside))
            gauge("lanes", len(self.slots))
            await asyncio.sleep(PULSE)


def lost(before: Sequence[ProcessState], after: Sequence[ProcessState]) -> list[ProcessState]:
    """The processes that no longer run."""
    there = {(each.node, each.pid) for each in after}
    return [each for each in before if (each.node, each.pid) not in there]
