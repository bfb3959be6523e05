"""Replicas come and go with nodes; a fleet and a cluster that the test makes up."""

from dataclasses import dataclass, field, replace
from itertools import count
from types import SimpleNamespace

import pytest

from actors.cluster.planner import Plan
from fusion.errors import InputError
from sweeps.execution import autoscale
from sweeps.execution.autoscale import Autoscaler

PLAN = Plan(2, 1, ((0, 3),), "cpu", 1, 0, 0, (0,), 0)


@dataclass
class Member:
    number: int
    group: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(placed=True))
    ready: bool = False
    fault: Exception | None = None


class Fleet:
    def __init__(self, replicas: int) -> None:
        self.numbers = count()
        self.plan, self.members = PLAN, []
        for _ in range(replicas):
            self.start()
        self.staffed = [member.number for member in self.members]

    def start(self) -> Member:
        self.members.append(Member(next(self.numbers)))
        return self.members[-1]

    def set_replicas(self, members, coming) -> None:
        self.staffed = [member.number for member in members]
        self.members = [*members, *coming]


@pytest.fixture
def now(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(autoscale.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(autoscale, "placed", lambda group: group.placed)
    monkeypatch.setattr(autoscale, "weights_ready", lambda members: list(members))

    def wait(refs, num_returns, timeout):
        done = [ref for ref in refs if ref.ready or ref.fault]
        return done, [ref for ref in refs if ref not in done]

    def fetched(ref):
        if ref.fault:
            raise ref.fault

    monkeypatch.setattr(autoscale.ray, "wait", wait)
    monkeypatch.setattr(autoscale, "fetched", fetched)
    return clock


def made(fleet: Fleet, replicas: int):
    """An elastic over a cluster with room for so many replicas; change `room[0]` to change it."""
    room, lines = [replicas], []

    def planned():
        if not room[0]:
            raise InputError("placement: nothing fits")
        return Plan(room[0], *(getattr(PLAN, n) for n in list(PLAN.__dataclass_fields__)[1:]))

    return Autoscaler(fleet, planned, lines.append), room, lines


def test_nothing_happens_where_nothing_changes(now):
    fleet = Fleet(2)
    watcher, _, lines = made(fleet, 2)
    for _ in range(3):
        watcher.check()
    assert (fleet.staffed, len(fleet.members), lines) == ([0, 1], 2, [])


def test_a_node_that_joins_gets_a_replica_once_it_is_ready(now):
    fleet = Fleet(2)
    watcher, room, lines = made(fleet, 2)
    room[0] = 3
    watcher.check()
    watcher.check()  # started once
    assert [member.number for member in fleet.members] == [0, 1, 2]
    assert fleet.staffed == [0, 1]
    fleet.members[2].ready = True
    watcher.check()
    assert fleet.staffed == [0, 1, 2]
    assert lines == ["a node joined: 3 replicas"]


def test_a_replica_without_a_place_is_given_up_after_a_while(now):
    fleet = Fleet(3)
    watcher, room, lines = made(fleet, 3)
    fleet.members[1].group.placed, room[0] = False, 2
    watcher.check()
    now.now = autoscale.GRACE - 1
    watcher.check()
    assert fleet.staffed == [0, 1, 2]
    now.now = autoscale.GRACE + 1
    watcher.check()
    assert (fleet.staffed, lines) == ([0, 2], ["a node left: 2 replicas"])
    watcher.check()
    assert [member.number for member in fleet.members] == [0, 2]


def test_a_replica_that_finds_a_place_again_stays(now):
    fleet = Fleet(2)
    watcher, _, lines = made(fleet, 2)
    fleet.members[0].group.placed = False
    watcher.check()
    fleet.members[0].group.placed = True
    now.now = autoscale.GRACE + 1
    watcher.check()
    fleet.members[0].group.placed = False
    watcher.check()  # counted anew
    assert (fleet.staffed, lines) == ([0, 1], [])


def test_the_last_replica_is_replaced_before_it_is_given_up(now):
    fleet = Fleet(1)
    watcher, _, _lines = made(fleet, 1)
    fleet.members[0].group.placed = False
    watcher.check()
    now.now = autoscale.GRACE + 1
    watcher.check()
    watcher.check()
    assert [member.number for member in fleet.members] == [0, 1]
    assert fleet.staffed == [0]
    fleet.members[1].ready = True
    watcher.check()
    assert fleet.staffed == [1]
    assert [member.number for member in fleet.members] == [1]


def test_a_new_replica_that_fails_or_never_comes_is_given_up(now):
    fleet = Fleet(1)
    watcher, room, _ = made(fleet, 1)
    room[0] = 2
    watcher.check()
    fleet.members[1].fault = RuntimeError("its node went")
    room[0] = 1
    watcher.check()
    assert [member.number for member in fleet.members] == [0]
    room[0] = 2
    watcher.check()
    now.now, room[0] = autoscale.START + 1, 1
    watcher.check()
    assert ([member.number for member in fleet.members], fleet.staffed) == ([0], [0])


def test_a_cluster_without_room_leaves_the_fleet_as_it_is(now):
    fleet = Fleet(2)
    watcher, room, _ = made(fleet, 2)
    room[0] = 0
    with pytest.raises(InputError):
        watcher.check()
    assert fleet.staffed == [0, 1]


def test_the_watch_survives_trouble_and_ends_with_the_sweep(now, monkeypatch, caplog):
    fleet = Fleet(1)
    watcher, _, _ = made(fleet, 1)
    looked = []

    def check():
        looked.append(1)
        raise RuntimeError("the cluster is in trouble\nand more")

    monkeypatch.setattr(autoscale, "PULSE", 0.01)
    monkeypatch.setattr(watcher, "check", check)
    with watcher:
        while len(looked) < 3:
            pass
    assert not watcher.thread.is_alive()
    assert "elastic: the cluster is in trouble and more" in caplog.text


def test_new_replicas_that_keep_failing_are_not_started_for_ever(now):
    fleet = Fleet(1)
    watcher, room, lines = made(fleet, 1)
    room[0] = 2
    for _ in range(20):
        watcher.check()
        if len(fleet.members) > 1:
            fleet.members[1].fault = RuntimeError("killed")
    assert next(fleet.numbers) == 1 + autoscale.TRIES
    assert lines == ["3 new replicas failed: no more are started on these nodes"]
    assert fleet.staffed == [0]
    planned = watcher.planned
    watcher.planned = lambda: replace(planned(), nodes=(("another", 1),))
    watcher.check()  # a node that may do better
    assert len(fleet.members) == 2
