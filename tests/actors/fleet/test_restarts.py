"""Processes that end themselves as the kernel ends them for want of memory, and who hears of it."""

import asyncio
import os
import signal
import uuid
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from actors.cluster.fatal import Died, OutOfMemory
from actors.cluster.worker_deaths import is_death, reported
from actors.experts.requests import Embed
from actors.fleet.client import Client
from actors.fleet.dispatcher import Dispatcher, Slot
from actors.fleet.fleet import ROBUST
from actors.fleet.restarts import (
    NODE_LOSSES,
    UNKNOWN_DEATHS,
    CallLock,
    Deaths,
    ProcessState,
    StateReporter,
    own_state,
)
from actors.fleet.transport import fetched

HERE = ProcessState("n", 1, 0, 2 * 10**9, 10**9, "", "10.0.0.9")


def deaths_until(raised, *each):
    """How many of these (before, after, by Ray) a call stands."""
    found, count = Deaths("work", "1 GB"), 0

    def add():
        nonlocal count
        for death in each:
            count += 1
            found.add(*death)

    with pytest.raises(raised) as error:
        add()
    assert "\n" not in str(error.value)
    return count


KILLED = ([HERE], [replace(HERE, pid=2, killed=1)], False)
BY_RAY = ([HERE], [replace(HERE, pid=2)], True)
UNKNOWN = ([HERE], [replace(HERE, pid=2)], False)
WENT = ([HERE], [replace(HERE, node="m")], False)
LOST = ([HERE], [], False)


def test_every_kind_of_death_is_bounded():
    assert deaths_until(OutOfMemory, *[KILLED] * 9) == 2
    assert deaths_until(OutOfMemory, *[BY_RAY] * 9) == 2
    assert deaths_until(OutOfMemory, KILLED, BY_RAY) == 2
    assert deaths_until(OutOfMemory, KILLED, UNKNOWN, KILLED, KILLED) == 4  # in a row
    assert deaths_until(Died, *[UNKNOWN] * 99) == UNKNOWN_DEATHS
    assert deaths_until(Died, *[WENT] * 99) == NODE_LOSSES
    assert deaths_until(Died, *[LOST, WENT] * 99) == NODE_LOSSES
    assert deaths_until(Died, *[KILLED, UNKNOWN] * 99) == 2 * UNKNOWN_DEATHS


def test_which_errors_are_deaths():
    lost = ray.exceptions.ActorUnavailableError("Socket closed", None)
    inner = ray.exceptions.RayTaskError("run", "", lost).as_instanceof_cause()
    assert is_death(lost)
    assert is_death(ray.exceptions.ActorDiedError())
    assert is_death(ray.exceptions.OutOfMemoryError("killed"))
    assert is_death(ray.exceptions.RayTaskError("evaluate", "", inner))
    assert not is_death(ray.exceptions.RayTaskError("run", "", KeyError("x")))
    assert not is_death(MemoryError())


def test_workers_of_ray_data_that_die_are_one_line():
    wrapped = RuntimeError("Ray Data")
    wrapped.__cause__ = ray.exceptions.OutOfMemoryError("killed\nat once")
    with (
        pytest.raises(OutOfMemory, match=r"^images: a worker died again and again[^\n]*$"),
        reported("images: a worker"),
    ):
        raise wrapped
    with pytest.raises(KeyError), reported("images: a worker"):
        raise KeyError("x")


def test_one_alone_waits_for_the_others_and_holds_new_ones_back():
    said = []

    async def go():
        turns = CallLock()

        async def one(name, alone, seconds=0.05):
            async with turns.hold(alone=alone):
                said.append(f"{name}+")
                await asyncio.sleep(seconds)
                said.append(f"{name}-")

        first = [asyncio.ensure_future(one(name, False)) for name in "ab"]
        await asyncio.sleep(0.01)
        rest = [asyncio.ensure_future(one("A", True)), asyncio.ensure_future(one("B", True))]
        await asyncio.sleep(0.01)
        rest += [asyncio.ensure_future(one(name, False)) for name in "cd"]
        broken = asyncio.ensure_future(one("x", True))
        await asyncio.sleep(0.01)
        broken.cancel()  # gives its place up
        await asyncio.gather(*first, *rest)

    asyncio.run(asyncio.wait_for(go(), 5))
    text = "".join(said)
    assert text == "a+b+a-b-A+A-B+B-c+d+c-d-"


class Hungry(StateReporter):
    """Ends as the kernel ends a process that is out of memory, while its file says so."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def states(self):
        return [replace(own_state(), killed=len(list(self.folder.glob("killed-*"))))]

    def call(self, request):
        name = request.expert
        if name == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if name == "large":
            (self.folder / f"killed-{uuid.uuid4().hex}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return name


@contextmanager
def dispatcher_of(folder):
    replica = ray.remote(Hungry).options(num_cpus=0, max_restarts=50, max_task_retries=20)
    made = replica.remote(str(folder))
    group = ray.util.placement_group([{"CPU": 0.1}])
    slots = ray.cloudpickle.dumps([Slot(0, made, group)])
    dispatcher = ray.remote(Dispatcher).options(num_cpus=0, max_concurrency=100, **ROBUST)
    dispatcher = dispatcher.remote(slots, 60.0, "1.5 GB")
    yield Client(dispatcher)
    ray.kill(made)
    ray.kill(dispatcher)
    ray.util.remove_placement_group(group)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_an_actor_that_dies_for_memory_ends_its_own_call_only(tmp_path):
    with dispatcher_of(tmp_path) as client:
        refs = {name: client.submit(Embed(name, "select")) for name in ("a", "large", "b")}
        assert fetched(refs["a"]) == "a"
        with pytest.raises(OutOfMemory, match=r"^embed large: out of memory, 2 times in a row, on"):
            fetched(refs["large"])
        assert fetched(refs["b"]) == "b"
        assert len(list(tmp_path.glob("killed-*"))) == 2
        assert client.repeated_calls() == 1


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_actor_that_dies_for_no_known_reason_ends_its_own_call_only(tmp_path):
    with dispatcher_of(tmp_path) as client:
        with pytest.raises(
            Died, match=rf"^embed segfault: the process that made it died {UNKNOWN_DEATHS} times"
        ):
            fetched(client.submit(Embed("segfault", "select")))
        assert fetched(client.submit(Embed("c", "select"))) == "c"
        assert client.repeated_calls() == UNKNOWN_DEATHS - 1
