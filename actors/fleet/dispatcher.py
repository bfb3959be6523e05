"""Dispatcher actor: queues calls, sends each to an idle replica, and reroutes calls of lost
replicas.

Ray waits without end for an actor whose placement group went with a node. So the dispatcher looks
at the placement groups every two seconds. A call whose replica lost its place is repeated on
another replica that is free; where no replica has had a place for long, callers get an error of one
line. A call in which a shard died that had kept something for it (`Forgotten`) is repeated from its
start. Ray restarts processes that died; the dispatcher repeats their calls and counts the deaths
(`restarts.py`).
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
from actors.fleet.restarts import Deaths, Turns, Vitals, killed_by_ray
from actors.fleet.trial_startup import StartupBarrier
from actors.fleet.usage import Usage

PATIENCE = 300.0
"""Seconds that a call waits for a place that its replica lost, where there is no other replica."""

FAILOVER = 10.0
"""The same, where another replica has a place."""

PULSE = 2.0
"""Seconds between looks at whether replicas still have their places."""

REVIVALS = 20
"""How often a process that died is asked whether it is there again. A node that dies is asked again
and again until the cluster has noticed."""

GLANCE = 0.05
"""Seconds between looks at whether all trials have a process."""


@dataclass
class Slot:
    """A slot of a replica: one call at a time."""

    number: int
    """Of the replica."""
    replica: Any
    group: PlacementGroup
    seen: float = field(default_factory=time.monotonic)
    """Time when the replica last had its place."""
    gone: bool = False
    """Whether the replica is no longer used."""
    vitals: Sequence[Vitals] = ()
    """State of its processes when they were last asked; empty: not asked yet."""

    def lost(self) -> float:
        """Seconds since it was last seen to have its place."""
        return time.monotonic() - self.seen

    @property
    def well(self) -> bool:
        """Whether calls can be sent to it."""
        return not self.gone and self.lost() < FAILOVER


class Dispatcher:
    """Sends calls to idle replicas, first come, first served."""

    def __init__(self, slots: bytes, patience: float, need: str = "") -> None:
        """Start taking calls.

        Args:
            slots: pickled, since Ray would keep them apart and warn that they may be lost.
            patience: seconds that a call waits for a place.
            need: the memory that was counted for a replica, for messages.
        """
        self.slots: list[Slot] = []
        self.patience = patience
        self.free: asyncio.Queue[Slot] = asyncio.Queue()
        self.idle: list[Slot] = []
        """Slots that lost their place; they are free again when they have one."""
        self.usage = Usage()
        self.barrier = StartupBarrier()
        self.turns = Turns()
        self.need = need
        self.falls = 0
        """Number of calls that were repeated because a process died."""
        self.waiting = 0
        self.watch: asyncio.Task[None] | None = None
        self.take(ray.cloudpickle.loads(slots))

    def take(self, slots: Sequence[Slot]) -> None:
        """Add slots."""
        for slot in slots:
            slot.seen = time.monotonic()  # another machine's clock until now
            self.slots.append(slot)
            self.free.put_nowait(slot)

    async def staff(self, slots: bytes) -> None:
        """Set the replicas from now on; calls of replicas that are left out are repeated.

        All replicas are listed, so that a restarted dispatcher is brought up to date.
        """
        wanted: list[Slot] = ray.cloudpickle.loads(slots)
        numbers = {slot.number for slot in wanted}
        for slot in self.slots:
            slot.gone = slot.gone or slot.number not in numbers
        known = {slot.number for slot in self.slots}
        self.slots = [slot for slot in self.slots if not slot.gone]
        self.take([slot for slot in wanted if slot.number not in known])

    async def spent(self, label: str) -> float:
        """Seconds that replicas have worked for a label."""
        return self.usage.of(label)

    async def fallen(self) -> int:
        """Number of calls that were repeated because a process died."""
        return self.falls

    async def expect(self, label: str) -> None:
        """Note that a trial was given to Tune; see `actors.fleet.trial_startup`."""
        self.barrier.expect(label)

    async def call(self, request: Request[Any], label: str = "", held: bool = False) -> Any:
        """The request's result, from the next free replica; a caller that dies leaves nothing
        behind.

        Args:
            request: what a replica shall do.
            label: whose usage the call is added to, see `spent`.
            held: return the result only when all trials have a process, see
                `actors.fleet.trial_startup`: for calls that are a whole short trial.

        Raises:
            Unplaced: no replica has had a place for longer than `patience`.
        """
        self.barrier.arrived(label)
        if self.watch is None:
            self.watch = asyncio.ensure_future(self.look())
        result = await self.served(request, label)
        while held and not self.barrier.complete():
            await asyncio.sleep(GLANCE)
        return result

    async def served(self, request: Request[Any], label: str) -> Any:
        """The result, from the first replica that completes the call.

        Raises:
            OutOfMemory: its replicas ran out of memory, see `restarts.STARVED`.
            Died: they died for other reasons.
        """
        attempts, deaths = 0, Deaths(request.title, self.need)
        while True:  # each turn ends the call, or is one of the deaths and attempts counted here
            slot = await self.next()
            try:
                async with self.turns.turn(alone=deaths.starved > 0):
                    done, result = await self.tried(slot, request, label, deaths)
            except Exception as error:
                if not is_forgotten(error):
                    raise
                attempts += 1
                if attempts == ATTEMPTS:
                    raise
                done = False
            finally:
                self.give(slot)
            if done:
                return result

    async def tried(
        self, slot: Slot, request: Request[Any], label: str, deaths: Deaths
    ) -> tuple[bool, Any]:
        """Whether the call ended on this slot, and its result; deaths are counted."""
        before = slot.vitals or await self.asked(slot)
        if not before:
            return False, None
        self.usage.start(slot.number, label)
        try:
            # A replica that dies is counted here, so Ray does not repeat the call by itself.
            work = slot.replica.call.options(name=request.title, max_task_retries=0)
            return await self.watched(slot, work.remote(request))
        except Exception as error:
            if not is_death(error) or slot.gone:
                raise
        finally:
            self.usage.stop(slot.number, label)
        after = await self.asked(slot)
        kills = {each.node: each.killed for each in after}
        for other in self.slots:  # those kills are accounted for
            other.vitals = [replace(v, killed=kills.get(v.node, v.killed)) for v in other.vitals]
        deaths.add(before, after, await asyncio.to_thread(killed_by_ray, lost(before, after)))
        self.falls += 1
        return False, None

    async def asked(self, slot: Slot) -> Sequence[Vitals]:
        """State of a replica's processes, once they run; empty where it lost its place."""
        vitals = slot.replica.vitals.options(name="vitals", max_task_retries=REVIVALS)
        _, found = await self.watched(slot, vitals.remote())
        slot.vitals = found or ()
        return slot.vitals

    async def next(self) -> Slot:
        """Wait for the next free slot.

        Raises:
            Unplaced: see `call`.
        """
        self.waiting += 1
        got = asyncio.ensure_future(self.free.get())
        try:
            while True:
                while not (await asyncio.wait([got], timeout=PULSE))[0]:
                    if self.hopeless():
                        raise Unplaced(shortage([slot.group for slot in self.slots]))
                if got.result().well:
                    return got.result()
                self.give(got.result())
                got = asyncio.ensure_future(self.free.get())
        finally:
            self.waiting -= 1
            if not got.done():
                got.cancel()

    def give(self, slot: Slot) -> None:
        """Return a slot: to the free ones, or aside until its replica has a place again."""
        if slot.well:
            self.free.put_nowait(slot)
        elif not slot.gone:
            self.idle.append(slot)

    def hopeless(self) -> bool:
        """Whether no replica has had a place for longer than `patience`."""
        return all(slot.lost() > self.patience for slot in self.slots)

    async def watched(self, slot: Slot, ref: Any) -> tuple[bool, Any]:
        """Whether a call ended on this slot, and its result.

        `ref`: the reference to the result of a call of the slot's replica.
        """
        result = asyncio.ensure_future(ref)
        while not (await asyncio.wait([result], timeout=PULSE))[0]:
            others = any(other.well and other.number != slot.number for other in self.slots)
            if slot.gone or slot.lost() > (FAILOVER if others else self.patience):
                result.cancel()
                if not others and not slot.gone:
                    raise Unplaced(shortage([each.group for each in self.slots]))
                return False, None
        try:
            return True, result.result()
        except ray.exceptions.ActorDiedError:
            slot.gone = True  # for good: it was given up, or died too often
            if not any(other.well for other in self.slots):
                raise
            return False, None

    async def look(self) -> None:
        """Check the replicas' places every `PULSE` seconds, and set the metrics of the queue."""
        while True:
            table = await asyncio.to_thread(placement_group_table)
            now = time.monotonic()
            for slot in self.slots:
                if table.get(slot.group.id.hex(), {}).get("state") == "CREATED":
                    slot.seen = now
            back = [slot for slot in self.idle if slot.well]
            self.idle = [slot for slot in self.idle if not slot.well and not slot.gone]
            for slot in back:
                self.free.put_nowait(slot)
            gauge("waiting_calls", self.waiting)
            gauge("busy_lanes", len(self.slots) - self.free.qsize() - len(self.idle))
            gauge("lanes", len(self.slots))
            await asyncio.sleep(PULSE)


def lost(before: Sequence[Vitals], after: Sequence[Vitals]) -> list[Vitals]:
    """Processes that no longer run."""
    there = {(each.node, each.pid) for each in after}
    return [each for each in before if (each.node, each.pid) not in there]
