"""A replica over shards that are actors, without Ray: calls are made at once, where they are asked
for. On Ray: `test_sharded_fleet.py`."""

import ray

from actors.artifacts.recipe import Recipe
from actors.cluster import peak_memory
from actors.experts.local import local_experts
from actors.experts.requests import Evaluate
from actors.fleet.replica import Replica, ShardActor
from actors.fleet.replica_setup import Setup, ShardsPeakMemory
from actors.shards.resident_model import blueprint
from tests.actors.fleet.sharded import SPLIT, plan_of
from tests.actors.laws.parts import recipes


class Handle:
    """A handle of an actor."""

    def __init__(self, actor):
        self.actor = actor

    def __getattr__(self, name):
        return Method(getattr(self.actor, name))


class Method:
    """A method of it."""

    def __init__(self, call):
        self.remote = call

    def options(self, **given):
        return self


def coordinator(parts, monkeypatch, shards=3):
    """The replica, and its shards."""
    pool, data, embeddings = parts.args
    whole = local_experts(pool, data, embeddings, blocks=SPLIT[shards])
    actors = []
    for shard in whole.runner.pipeline.shards:
        actor = ShardActor.__new__(ShardActor)
        actor.shard, actor.results = shard, {}
        actors.append(actor)
    setup = Setup(
        blueprint(pool.base, pool.names), pool.tasks, pool.groups, plan_of(1, shards), "float32",
        data, embeddings,
    )  # fmt: skip
    monkeypatch.setattr(ray, "get", lambda value, timeout=None: value)
    monkeypatch.setattr(ray, "put", lambda value: value)
    given = {b"setup": setup, b"shards": [Handle(actor) for actor in actors]}
    monkeypatch.setattr(ray.cloudpickle, "loads", given.__getitem__)
    return Replica(b"setup", None, b"shards"), actors


def test_its_evaluations_are_those_of_the_whole(parts, monkeypatch):
    replica, _ = coordinator(parts, monkeypatch)
    wanted = parts.local()
    for name in ("task_arithmetic", "ties", "dawin domain"):
        recipe = recipes(parts.pool)[name]
        found = replica.call(Evaluate(recipe, "select"))
        assert found.metrics() == wanted.evaluate(recipe, "select").metrics()


def test_the_peak_is_its_shards(parts, monkeypatch):
    """What the coordinator's own process holds is nothing that a method needs."""
    replica, actors = coordinator(parts, monkeypatch)
    assert isinstance(replica.experts.meter, ShardsPeakMemory)
    asked = []
    for size, actor in enumerate(actors):
        monkeypatch.setattr(
            actor, "peak", lambda method, size=size: asked.append(method) or 10 + size
        )
    monkeypatch.setattr(peak_memory, "peak_bytes", lambda device: 10**12)
    found = replica.call(Evaluate(Recipe("task_arithmetic"), "select"))
    assert found.peak_bytes == 12
    assert asked == ["task_arithmetic"] * 3


def test_a_whole_replica_tells_its_own(parts, monkeypatch):
    monkeypatch.setattr(peak_memory, "peak_bytes", lambda device: 77)
    experts = parts.local()
    assert experts.evaluate(Recipe("task_arithmetic"), "select").peak_bytes == 77
