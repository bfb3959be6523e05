"""The desk, with replicas and places that the test makes up; real ones are in test_failures.py."""

import asyncio
from dataclasses import dataclass, field

import pytest
import ray

from actors import desk as module
from actors.desk import Desk, Lane
from actors.forgotten import ATTEMPTS, Forgotten, is_forgotten
from actors.unplaced import Unplaced


class Id(str):
    def hex(self) -> str:
        return str(self)


@dataclass
class Group:
    """A placement group as far as a desk looks at it."""

    id: Id
    bundle_specs: tuple = ({"CPU": 1.0},)


@dataclass
class Method:
    replica: "Replica"

    def options(self, name: str):
        return self

    def remote(self, *args):
        return asyncio.ensure_future(self.replica.run(*args))


@dataclass
class Replica:
    """Answers its number; waits for ever while it hangs."""

    number: int
    hangs: bool = False
    error: Exception | None = None
    calls: list = field(default_factory=list)

    @property
    def work(self) -> Method:
        return Method(self)

    async def run(self, *args):
        self.calls.append(args)
        while self.hangs:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)
        if self.error is not None:
            raise self.error
        return self.number


@pytest.fixture
def world(monkeypatch):
    """Replicas by number, and which of them have a place; seconds are 20 ms long."""
    states: dict[str, dict] = {}

    def table(group=None):
        return states if group is None else states[group.id]

    monkeypatch.setattr(module, "placement_group_table", table)
    monkeypatch.setattr(module, "PULSE", 0.02)
    monkeypatch.setattr(module, "FAILOVER", 0.1)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0})
    return states


def lane(world, replica: Replica) -> Lane:
    world[str(replica.number)] = {"state": "CREATED"}
    return Lane(replica.number, replica, Group(Id(replica.number)))


class Made(Desk):
    """A desk of lanes that need no pickling."""

    def __init__(self, lanes, patience):
        super().__init__(ray.cloudpickle.dumps([]), patience)
        self.take(lanes)

    async def put(self, lanes):
        """`staff`, without pickling."""
        loads, ray.cloudpickle.loads = ray.cloudpickle.loads, lambda given: given
        try:
            await self.staff(lanes)
        finally:
            ray.cloudpickle.loads = loads


def test_calls_are_handed_to_free_replicas_in_turn(world):
    replicas = [Replica(0), Replica(1)]

    async def go():
        desk = Made([lane(world, each) for each in replicas], 0.5)
        return await asyncio.gather(*(desk.call("work", i, label=f"l{i}") for i in range(6))), desk

    found, desk = asyncio.run(go())
    assert sorted(found) == [0, 0, 0, 1, 1, 1]
    spent = [desk.meter.of(f"l{i}") for i in range(6)]
    assert all(0.015 < each < 0.5 for each in spent)


def test_a_held_result_is_told_when_all_trials_have_come(world):
    async def go():
        desk = Made([lane(world, Replica(0))], 5.0)
        await desk.expect("a")
        await desk.expect("b")
        first = asyncio.ensure_future(desk.call("work", label="a", held=True))
        await asyncio.sleep(0.2)
        early = first.done()
        other = await desk.call("work", label="a")  # the replica is free meanwhile
        return early, other, await desk.call("work", label="b", held=True), await first

    assert asyncio.run(go()) == (False, 0, 0, 0)


def test_a_call_whose_replica_lost_its_place_is_made_by_another(world):
    lost, well = Replica(0, hangs=True), Replica(1)

    async def go():
        desk = Made([lane(world, lost), lane(world, well)], 5.0)
        first = asyncio.ensure_future(desk.call("work"))
        await asyncio.sleep(0.05)
        world["0"]["state"] = "RESCHEDULING"
        return await asyncio.wait_for(first, 2.0), desk

    found, desk = asyncio.run(go())
    assert (found, len(lost.calls), len(well.calls)) == (1, 1, 1)
    assert desk.free.qsize() == 1  # the lost one is aside


def test_a_lane_that_finds_a_place_again_takes_calls_again(world):
    lost, well = Replica(0, hangs=True), Replica(1)

    async def go():
        desk = Made([lane(world, lost), lane(world, well)], 5.0)
        first = asyncio.ensure_future(desk.call("work"))
        await asyncio.sleep(0.05)
        world["0"]["state"] = "RESCHEDULING"
        await first
        lost.hangs = False
        world["0"]["state"] = "CREATED"
        await asyncio.sleep(0.3)
        return await asyncio.gather(*(desk.call("work") for _ in range(4)))

    assert sorted(asyncio.run(go())) == [0, 0, 1, 1]


def test_without_any_place_callers_hear_so_in_one_line(world):
    alone = Replica(0, hangs=True)

    async def go():
        desk = Made([lane(world, alone)], 0.3)
        calls = [asyncio.ensure_future(desk.call("work")) for _ in range(3)]
        await asyncio.sleep(0.05)
        world["0"]["state"] = "RESCHEDULING"
        return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(asyncio.wait_for(go(), 5))
    assert all(isinstance(each, Unplaced) for each in found)
    assert str(found[0]) == (
        "fleet: no place for 1 of 1 replicas: 1 shards need 1 CPU each;"
        " the cluster has 2 CPU, 0 GPU in all, 1 CPU, 0 GPU free"
    )


def test_a_replica_that_was_given_up_leaves_its_calls_to_others(world):
    gone, well = Replica(0, hangs=True), Replica(1)

    async def go():
        lanes = [lane(world, gone), lane(world, well)]
        desk = Made(lanes, 5.0)
        first = asyncio.ensure_future(desk.call("work"))
        await asyncio.sleep(0.05)
        await desk.put([Lane(1, well, lanes[1].group), lane(world, Replica(2))])
        found = await asyncio.wait_for(first, 2.0)
        return found, [each.number for each in desk.lanes], desk.free.qsize()

    found, numbers, free = asyncio.run(go())
    assert found in (1, 2)
    assert numbers == [1, 2]
    assert free == 2


def test_a_dead_actor_is_left_out_as_long_as_there_is_another(world):
    dead, well = Replica(0, error=ray.exceptions.ActorDiedError()), Replica(1)

    async def go():
        desk = Made([lane(world, dead), lane(world, well)], 5.0)
        found = [await desk.call("work"), await desk.call("work")]
        well.error = ray.exceptions.ActorDiedError()
        with pytest.raises(ray.exceptions.ActorDiedError):
            await desk.call("work")
        return found

    assert asyncio.run(go()) == [1, 1]


def test_what_a_call_raises_is_the_callers(world):
    faulty = Replica(0, error=KeyError("x"))

    async def go():
        desk = Made([lane(world, faulty)], 5.0)
        with pytest.raises(KeyError):
            await desk.call("work")
        faulty.error = None
        return await desk.call("work")

    assert asyncio.run(go()) == 0


def in_actors(error: Exception) -> Exception:
    """What arrives of an error that was raised in an actor which another one had called."""
    inner = ray.exceptions.RayTaskError("observe", "", error).as_instanceof_cause()
    return ray.exceptions.RayTaskError("evaluate", "", inner).as_instanceof_cause()


def test_a_call_that_a_shard_forgot_in_its_midst_is_made_again(world):
    faulty, well = Replica(0, error=in_actors(Forgotten("batch 3"))), Replica(1)

    async def go():
        desk = Made([lane(world, faulty), lane(world, well)], 5.0)
        return [await desk.call("work", i) for i in range(2)], desk.free.qsize()

    assert asyncio.run(go()) == ([1, 1], 2)
    assert (faulty.calls, well.calls) == ([(0,), (1,)], [(0,), (1,)])  # each tried in turn


def test_a_call_that_is_always_forgotten_ends(world):
    faulty = Replica(0, error=in_actors(Forgotten("batch 3")))

    async def go():
        desk = Made([lane(world, faulty)], 5.0)
        with pytest.raises(ray.exceptions.RayTaskError) as error:
            await desk.call("work")
        assert is_forgotten(error.value)
        faulty.error = None
        return await desk.call("work")

    assert asyncio.run(go()) == 0
    assert len(faulty.calls) == ATTEMPTS + 1
