"""The desk: an actor that hands calls to free replicas, and sees to it that none waits in vain.

Ray itself waits without end for an actor whose place went with a node. The desk looks at the places
every two seconds: a call whose replica lost its place is made again on another that is free, and
where none has had a place for long, callers hear so in one line. A call in which a shard died that
had kept something for it (`Forgotten`) is made again from its start. Ray starts processes again
that died; their calls are made again here, where deaths are counted (`restarts.py`).
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
from actors.cluster.actor_names import call_name
from actors.cluster.metrics import gauge
from actors.cluster.worker_deaths import is_death
from actors.fleet.restarts import Deaths, Turns, Vitals, killed_by_ray
from actors.fleet.trial_startup import Crew
from actors.fleet.usage import Meter

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
class Lane:
    """A call at a time of one replica."""

    number: int
    """Of the replica."""
    replica: Any
    group: PlacementGroup
    seen: float = field(default_factory=time.monotonic)
    """When it last had its place."""
    gone: bool = False
    """Whether the replica was given up."""
    vitals: Sequence[Vitals] = ()
    """Of its processes, when they were last asked; empty: they were not yet."""

    def lost(self) -> float:
        """Seconds since it was last seen to have its place; a few where it has it still."""
        return time.monotonic() - self.seen

    @property
    def well(self) -> bool:
        """Whether it takes calls."""
        return not self.gone and self.lost() < FAILOVER


class Desk:
    """Hands calls to free replicas, first come, first served."""

    def __init__(self, lanes: bytes, patience: float, need: str = "") -> None:
        """Begin to take calls.

        Args:
            lanes: pickled, since Ray would keep them apart and warn that they may be lost.
            patience: seconds that a call waits for a place.
            need: the memory that was counted for a replica, for messages.
        """
        self.lanes: list[Lane] = []
        self.patience = patience
        self.free: asyncio.Queue[Lane] = asyncio.Queue()
        self.idle: list[Lane] = []
        """Lanes that lost their place; they are free again when they have one."""
        self.meter = Meter()
        self.crew = Crew()
        self.turns = Turns()
        self.need = need
        self.falls = 0
        """Calls that were made again, since a process died."""
        self.waiting = 0
        self.watch: asyncio.Task[None] | None = None
        self.take(ray.cloudpickle.loads(lanes))

    def take(self, lanes: Sequence[Lane]) -> None:
        """Take lanes on."""
        for lane in lanes:
            lane.seen = time.monotonic()  # another machine's clock until now
            self.lanes.append(lane)
            self.free.put_nowait(lane)

    async def staff(self, lanes: bytes) -> None:
        """The replicas there are from now on; calls of those that are not are made again.

        All of them are named, so that a desk that died and came back is put right.
        """
        wanted: list[Lane] = ray.cloudpickle.loads(lanes)
        numbers = {lane.number for lane in wanted}
        for lane in self.lanes:
            lane.gone = lane.gone or lane.number not in numbers
        known = {lane.number for lane in self.lanes}
        self.lanes = [lane for lane in self.lanes if not lane.gone]
        self.take([lane for lane in wanted if lane.number not in known])

    async def spent(self, label: str) -> float:
        """Seconds that replicas have worked for a label."""
        return self.meter.of(label)

    async def fallen(self) -> int:
        """How many calls were made again, since a process died."""
        return self.falls

    async def expect(self, label: str) -> None:
        """A trial was given to Tune; see `actors.fleet.trial_startup`."""
        self.crew.expect(label)

    async def call(self, method: str, *args: Any, label: str = "", held: bool = False) -> Any:
        """`method(*args)` on the next free replica; a caller that dies leaves nothing behind.

        Args:
            method: of the replica.
            args: its arguments.
            label: who pays, see `spent`.
            held: the result is told when all trials have a process (`actors.fleet.trial_startup`):
            for calls     that are a whole short trial.

        Raises:
            Unplaced: no replica has had a place for longer than `patience`.
        """
        self.crew.arrived(label)
        if self.watch is None:
            self.watch = asyncio.ensure_future(self.look())
        result = await self.served(method, args, label)
        while held and not self.crew.complete():
            await asyncio.sleep(GLANCE)
        return result

    async def served(self, method: str, args: tuple[Any, ...], label: str) -> Any:
        """The result, from whichever replica comes to give it.

        Raises:
            OutOfMemory: its replicas died for want of memory, see `deaths.STARVED`.
            Died: they did for other reasons.
        """
        attempts, deaths = 0, Deaths(call_name(method, args), self.need)
        while True:  # each turn ends the call, or is one of the deaths and attempts counted here
            lane = await self.next()
            try:
                async with self.turns.turn(alone=deaths.starved > 0):
                    done, result = await self.tried(lane, method, args, label, deaths)
            except Exception as error:
                if not is_forgotten(error):
                    raise
                attempts += 1
                if attempts == ATTEMPTS:
                    raise
                done = False
            finally:
                self.give(lane)
            if done:
                return result

    async def tried(
        self, lane: Lane, method: str, args: tuple[Any, ...], label: str, deaths: Deaths
    ) -> tuple[bool, Any]:
        """Whether the call came to an end on this lane, and its result; deaths are counted."""
        before = lane.vitals or await self.asked(lane)
        if not before:
            return False, None
        self.meter.start(lane.number, label)
        try:
            return await self.watched(lane, method, args)
        except Exception as error:
            if not is_death(error) or lane.gone:
                raise
        finally:
            self.meter.stop(lane.number, label)
        after = await self.asked(lane)
        kills = {each.node: each.killed for each in after}
        for other in self.lanes:  # those kills are accounted for
            other.vitals = [replace(v, killed=kills.get(v.node, v.killed)) for v in other.vitals]
        deaths.add(before, after, await asyncio.to_thread(killed_by_ray, lost(before, after)))
        self.falls += 1
        return False, None

    async def asked(self, lane: Lane) -> Sequence[Vitals]:
        """The vitals of a replica, once its processes are there; none where it lost its place."""
        _, found = await self.watched(lane, "vitals", (), again=REVIVALS)
        lane.vitals = found or ()
        return lane.vitals

    async def next(self) -> Lane:
        """The next free lane; waits for it.

        Raises:
            Unplaced: see `call`.
        """
        self.waiting += 1
        got = asyncio.ensure_future(self.free.get())
        try:
            while True:
                while not (await asyncio.wait([got], timeout=PULSE))[0]:
                    if self.hopeless():
                        raise unplaced([lane.group for lane in self.lanes])
                if got.result().well:
                    return got.result()
                self.give(got.result())
                got = asyncio.ensure_future(self.free.get())
        finally:
            self.waiting -= 1
            if not got.done():
                got.cancel()

    def give(self, lane: Lane) -> None:
        """A lane back: free, or aside until it has a place again."""
        if lane.well:
            self.free.put_nowait(lane)
        elif not lane.gone:
            self.idle.append(lane)

    def hopeless(self) -> bool:
        """Whether no replica has had a place for longer than `patience`."""
        return all(lane.lost() > self.patience for lane in self.lanes)

    async def watched(
        self, lane: Lane, method: str, args: tuple[Any, ...], again: int = 0
    ) -> tuple[bool, Any]:
        """Whether the call came to an end on this lane, and its result.

        `again`: how often Ray makes it again by itself.
        """
        options = {"name": call_name(method, args), "max_task_retries": again}
        named = getattr(lane.replica, method).options(**options)
        ref = named.remote(*args)
        result = asyncio.ensure_future(ref)
        while not (await asyncio.wait([result], timeout=PULSE))[0]:
            others = any(other.well and other.number != lane.number for other in self.lanes)
            if lane.gone or lane.lost() > (FAILOVER if others else self.patience):
                result.cancel()
                if not others and not lane.gone:
                    raise unplaced([each.group for each in self.lanes])
                return False, None
        try:
            return True, result.result()
        except ray.exceptions.ActorDiedError:
            lane.gone = True  # for good: it was given up, or died too often
            if not any(other.well for other in self.lanes):
                raise
            return False, None

    async def look(self) -> None:
        """See who has a place, now and then; tell how busy the desk is."""
        while True:
            table = await asyncio.to_thread(placement_group_table)
            now = time.monotonic()
            for lane in self.lanes:
                if table.get(lane.group.id.hex(), {}).get("state") == "CREATED":
                    lane.seen = now
            back = [lane for lane in self.idle if lane.well]
            self.idle = [lane for lane in self.idle if not lane.well and not lane.gone]
            for lane in back:
                self.free.put_nowait(lane)
            gauge("waiting_calls", self.waiting)
            gauge("busy_lanes", len(self.lanes) - self.free.qsize() - len(self.idle))
            gauge("lanes", len(self.lanes))
            await asyncio.sleep(PULSE)


def lost(before: Sequence[Vitals], after: Sequence[Vitals]) -> list[Vitals]:
    """Those processes that are not there any more."""
    there = {(each.node, each.pid) for each in after}
    return [each for each in before if (each.node, each.pid) not in there]


def placed(group: PlacementGroup) -> bool:
    """Whether a placement group has all its places."""
    return bool(placement_group_table(group)["state"] == "CREATED")


def unplaced(groups: Sequence[PlacementGroup]) -> Exception:
    """What is raised where none of these has a place; imported late, as it brings torch."""
    from actors.fleet.errors import Unplaced, shortage

    return Unplaced(shortage(groups))
