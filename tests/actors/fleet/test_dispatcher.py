"""The dispatcher, with replicas and places that the test makes up; real ones are in
test_failures.py."""

import asyncio
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import ray

from actors.artifacts.errors import ATTEMPTS, Forgotten, is_forgotten
from actors.cluster.fatal import Died, OutOfMemory
from actors.experts.requests import Embed
from actors.fleet import dispatcher as module
from actors.fleet import errors
from actors.fleet.dispatcher import Dispatcher, Slot
from actors.fleet.errors import Unplaced
from actors.fleet.restarts import UNKNOWN_DEATHS, ProcessState


class Id(str):
    def hex(self) -> str:
        return str(self)


@dataclass
class Group:
    """A placement group as far as a dispatcher looks at it."""

    id: Id
    bundle_specs: tuple = ({"CPU": 1.0},)


@dataclass
class Method:
    replica: "Replica"

    def options(self, name: str, max_task_retries: int):
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

    node: str = "n"
    killed: int = 0
    pid: int = 1
    dies: int = 0
    """How many of the next calls end its process."""
    for_memory: bool = False
    mends: bool = True
    """Whether it comes back."""

    @property
    def call(self) -> Method:
        return Method(self)

    @property
    def states(self) -> "Asked":
        return Asked(self)

    async def run(self, *args):
        self.calls.append(args)
        while self.hangs:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)
        if self.dies:
            self.dies, self.pid = self.dies - 1, self.pid + 1
            self.killed += self.for_memory
            raise ray.exceptions.ActorUnavailableError("Socket closed", None)
        if self.error is not None:
            raise self.error
        return self.number


@dataclass
class Asked:
    """Its states."""

    replica: "Replica"

    def options(self, name: str, max_task_retries: int):
        assert max_task_retries > 0
        return self

    def remote(self):
        one = self.replica
        found = ProcessState(
            one.node, one.pid, one.killed, 2 * 10**9, 10**9, "memory.max", "10.0.0.9"
        )

        async def run():
            while not one.mends:
                await asyncio.sleep(0.01)
            return [found]

        return asyncio.ensure_future(run())


@pytest.fixture
def world(monkeypatch):
    """Replicas by number, and which of them have a place; seconds are 20 ms long."""
    states: dict[str, dict] = {}

    def table(group=None):
        return states if group is None else states[group.id]

    monkeypatch.setattr(module, "placement_group_table", table)
    monkeypatch.setattr(errors, "placement_group_table", table)
    monkeypatch.setattr(module, "PULSE", 0.02)
    monkeypatch.setattr(module, "FAILOVER", 0.1)
    monkeypatch.setattr(module, "killed_by_ray", lambda gone: False)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0})
    return states


def slot(world, replica: Replica) -> Slot:
    world[str(replica.number)] = {"state": "CREATED"}
    return Slot(replica.number, replica, Group(Id(replica.number)))


def work(what="") -> Embed:
    """Some request."""
    return Embed(str(what), "select")


class Made(Dispatcher):
    """A dispatcher of slots that need no pickling."""

    def __init__(self, slots, patience):
        super().__init__(ray.cloudpickle.dumps([]), patience)
        self.add_slots(slots)

    async def put(self, slots):
        """`set_replicas`, without pickling."""
        loads, ray.cloudpickle.loads = ray.cloudpickle.loads, lambda given: given
        try:
            await self.set_replicas(slots)
        finally:
            ray.cloudpickle.loads = loads


def test_calls_are_handed_to_free_replicas_in_turn(world):
    replicas = [Replica(0), Replica(1)]

    async def go():
        dispatcher = Made([slot(world, each) for each in replicas], 0.5)
        return await asyncio.gather(
            *(dispatcher.call(work(i), label=f"l{i}") for i in range(6))
        ), dispatcher

    found, dispatcher = asyncio.run(go())
    assert sorted(found) == [0, 0, 0, 1, 1, 1]
    busy_seconds = [dispatcher.usage.of(f"l{i}") for i in range(6)]
    assert all(0.015 < each < 0.5 for each in busy_seconds)


def test_a_held_result_is_told_when_all_trials_have_come(world):
    async def go():
        dispatcher = Made([slot(world, Replica(0))], 5.0)
        await dispatcher.expect("a")
        await dispatcher.expect("b")
        first = asyncio.ensure_future(dispatcher.call(work(), label="a", when_all_started=True))
        await asyncio.sleep(0.2)
        early = first.done()
        other = await dispatcher.call(work(), label="a")  # the replica is free meanwhile
        return (
            early,
            other,
            await dispatcher.call(work(), label="b", when_all_started=True),
            await first,
        )

    assert asyncio.run(go()) == (False, 0, 0, 0)


def test_a_call_whose_replica_lost_its_place_is_made_by_another(world):
    lost, well = Replica(0, hangs=True), Replica(1)

    async def go():
        dispatcher = Made([slot(world, lost), slot(world, well)], 5.0)
        first = asyncio.ensure_future(dispatcher.call(work()))
        await asyncio.sleep(0.05)
        world["0"]["state"] = "RESCHEDULING"
        return await asyncio.wait_for(first, 2.0), dispatcher

    found, dispatcher = asyncio.run(go())
    assert (found, len(lost.calls), len(well.calls)) == (1, 1, 1)
    assert dispatcher.free.qsize() == 1  # the lost one is aside


def test_a_lane_that_finds_a_place_again_takes_calls_again(world):
    lost, well = Replica(0, hangs=True), Replica(1)

    async def go():
        dispatcher = Made([slot(world, lost), slot(world, well)], 5.0)
        first = asyncio.ensure_future(dispatcher.call(work()))
        await asyncio.sleep(0.05)
        world["0"]["state"] = "RESCHEDULING"
        await first
        lost.hangs = False
        world["0"]["state"] = "CREATED"
        await asyncio.sleep(0.3)
        return await asyncio.gather(*(dispatcher.call(work()) for _ in range(4)))

    assert sorted(asyncio.run(go())) == [0, 0, 1, 1]


def test_without_any_place_callers_hear_so_in_one_line(world):
    alone = Replica(0, hangs=True)

    async def go():
        dispatcher = Made([slot(world, alone)], 0.3)
        calls = [asyncio.ensure_future(dispatcher.call(work())) for _ in range(3)]
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
        slots = [slot(world, gone), slot(world, well)]
        dispatcher = Made(slots, 5.0)
        first = asyncio.ensure_future(dispatcher.call(work()))
        await asyncio.sleep(0.05)
        await dispatcher.put([Slot(1, well, slots[1].group), slot(world, Replica(2))])
        found = await asyncio.wait_for(first, 2.0)
        return found, [each.number for each in dispatcher.slots], dispatcher.free.qsize()

    found, numbers, free = asyncio.run(go())
    assert found in (1, 2)
    assert numbers == [1, 2]
    assert free == 2


def test_a_dead_actor_is_left_out_as_long_as_there_is_another(world):
    dead, well = Replica(0, error=ray.exceptions.ActorDiedError()), Replica(1)

    async def go():
        dispatcher = Made([slot(world, dead), slot(world, well)], 5.0)
        found = [await dispatcher.call(work()), await dispatcher.call(work())]
        well.error = ray.exceptions.ActorDiedError()
        with pytest.raises(ray.exceptions.ActorDiedError):
            await dispatcher.call(work())
        return found

    assert asyncio.run(go()) == [1, 1]


def test_what_a_call_raises_is_the_callers(world):
    faulty = Replica(0, error=KeyError("x"))

    async def go():
        dispatcher = Made([slot(world, faulty)], 5.0)
        with pytest.raises(KeyError):
            await dispatcher.call(work())
        faulty.error = None
        return await dispatcher.call(work())

    assert asyncio.run(go()) == 0


def in_actors(error: Exception) -> Exception:
    """What arrives of an error that was raised in an actor which another one had called."""
    inner = ray.exceptions.RayTaskError("observe", "", error).as_instanceof_cause()
    return ray.exceptions.RayTaskError("evaluate", "", inner).as_instanceof_cause()


def test_a_call_that_a_shard_forgot_in_its_midst_is_made_again(world):
    faulty, well = Replica(0, error=in_actors(Forgotten("batch 3"))), Replica(1)

    async def go():
        dispatcher = Made([slot(world, faulty), slot(world, well)], 5.0)
        return [await dispatcher.call(work(i)) for i in range(2)], dispatcher.free.qsize()

    assert asyncio.run(go()) == ([1, 1], 2)
    assert (faulty.calls, well.calls) == ([(work(0),), (work(1),)],) * 2  # each tried in turn


def test_a_call_that_is_always_forgotten_ends(world):
    faulty = Replica(0, error=in_actors(Forgotten("batch 3")))

    async def go():
        dispatcher = Made([slot(world, faulty)], 5.0)
        with pytest.raises(ray.exceptions.RayTaskError) as error:
            await dispatcher.call(work())
        assert is_forgotten(error.value)
        faulty.error = None
        return await dispatcher.call(work())

    assert asyncio.run(go()) == 0
    assert len(faulty.calls) == ATTEMPTS + 1


def test_a_call_that_dies_for_memory_twice_in_a_row_is_given_up_and_others_go_on(world):
    starved = Replica(0, dies=100, for_memory=True)

    async def go():
        dispatcher = Made([slot(world, starved)], 5.0)
        dispatcher.need = "1.50 GB"
        with pytest.raises(OutOfMemory) as error:
            await dispatcher.call(work("ties"))
        assert len(starved.calls) == 2
        starved.dies = 0
        return str(error.value), await dispatcher.call(work()), await dispatcher.repeated_calls()

    text, found, repeated = asyncio.run(go())
    assert found == 0
    assert repeated == 1  # made again once
    assert text == (
        "embed ties: out of memory, 2 times in a row, on node 10.0.0.9, where 2.00 GB are granted"
        " (memory.max) and 1.00 GB free without it; planned: 1.50 GB; set placement.replicas lower,"
        " placement.dtype: bfloat16, placement.weights: files, or, over several nodes,"
        " placement.shards higher; or grant more memory"
    )


def test_ray_that_killed_for_memory_is_believed(world, monkeypatch):
    monkeypatch.setattr(module, "killed_by_ray", lambda gone: [each.pid for each in gone] == [1])

    async def go():
        dispatcher = Made([slot(world, Replica(0, dies=2))], 5.0)
        found = await dispatcher.call(work())  # the second time it was not Ray: not twice in a row
        assert dispatcher.repeated == 2
        return found

    assert asyncio.run(go()) == 0


def test_after_a_death_for_memory_a_call_has_the_machine_to_itself(world):
    """So that of calls side by side it is found out which one is too large."""
    large, small = Replica(0, dies=1, for_memory=True), Replica(1)
    running, most = [0], [0]

    def watched(replica):
        run = replica.run

        async def counted(*args):
            running[0] += 1
            if args == (work("large"),):
                most[0] = running[0] if replica.dies == 0 else most[0]
            try:
                return await run(*args)
            finally:
                running[0] -= 1

        replica.run = counted

    watched(large)
    watched(small)

    async def go():
        dispatcher = Made([slot(world, large), slot(world, small)], 5.0)
        calls = [dispatcher.call(work("large")), *(dispatcher.call(work(i)) for i in range(12))]
        return await asyncio.gather(*calls)

    found = asyncio.run(asyncio.wait_for(go(), 10))
    assert len(found) == 13
    assert most == [1]


def test_a_call_whose_process_dies_again_and_again_ends(world):
    faulty = Replica(0, dies=100)

    async def go():
        dispatcher = Made([slot(world, faulty)], 5.0)
        with pytest.raises(Died, match=r"^embed ties: the process that made it died 4 times"):
            await dispatcher.call(work("ties"))
        faulty.dies = UNKNOWN_DEATHS - 1  # somebody kills it now and then
        return await dispatcher.call(work())

    assert asyncio.run(go()) == 0
    assert len(faulty.calls) == 2 * UNKNOWN_DEATHS


def test_a_process_that_went_with_its_node_is_not_counted(world):
    moving = Replica(0, dies=10)
    run = moving.run

    async def elsewhere(*args):
        try:
            return await run(*args)
        finally:
            moving.node = f"n{moving.dies}"

    moving.run = elsewhere

    async def go():
        dispatcher = Made([slot(world, moving)], 5.0)
        return await dispatcher.call(work())

    assert asyncio.run(go()) == 0
    assert len(moving.calls) == 11


def test_a_replica_that_does_not_come_back_leaves_its_call_to_another(world):
    gone, well = Replica(0, dies=1), Replica(1)

    async def go():
        dispatcher = Made([slot(world, gone), slot(world, well)], 5.0)
        await dispatcher.call(work())  # both are known
        await dispatcher.call(work())
        gone.dies, gone.mends = 1, False
        first = asyncio.ensure_future(dispatcher.call(work()))
        await asyncio.sleep(0.05)
        world["0"]["state"] = "RESCHEDULING"
        return await asyncio.wait_for(first, 3.0)

    assert asyncio.run(go()) == 1


def test_the_dispatcher_loads_no_torch() -> None:
    """It gets handles of replicas, whose class Ray imports there, and unpickles results."""
    code = (
        "import sys, actors.fleet.dispatcher, actors.fleet.replica, actors.experts.evaluation;"
        " print([m for m in ('torch', 'pyarrow', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
