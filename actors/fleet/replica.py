"""Actors of a fleet: shards, and replicas that coordinate them. `fleet.py` starts them.

Ray imports the class of an actor in every process that gets a handle of it, also in the dispatcher,
which holds no tensor. So this module loads torch only when an actor is called: the methods import
`replica_setup` and `transport` themselves, and a dispatcher starts without them.
"""

from __future__ import annotations

import logging
import os
import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any

import ray

from actors.cluster.metrics import timed
from actors.experts.requests import Request, Result
from actors.fleet.restarts import ProcessState, StateReporter, own_state
from fusion.errors import InputError

if TYPE_CHECKING:
    from actors.experts.local import LocalExperts
    from actors.shards.requests import ShardRequest
    from actors.shards.shard import Shard

log = logging.getLogger(__name__)


class ShardActor(StateReporter):
    """`Shard` in its own process; receives and returns activations in the form of its link."""

    def __init__(self, setup: bytes, weights: bytes, index: int) -> None:
        """`setup`, `weights`: pickled references to a `Setup` and a block's weights.

        The first call loads them. If loading kills the process, that call fails and is counted. Ray
        would restart an actor that dies in its constructor again and again, without a message.
        """
        self.given = setup, weights, index
        self.results: dict[str, Any] = {}

    @cached_property
    def shard(self) -> Shard:
        """The shard; built by the first call (the actor runs one call at a time)."""
        from actors.fleet.replica_setup import build_shard, opened

        setup, weights, index = self.given
        return build_shard(opened(setup), weights, index)

    def names(self) -> tuple[str, ...]:
        """See `Shard.names`."""
        return self.shard.names()

    def call(self, request: ShardRequest, *given: Any) -> Any:
        """Run a request, and pack its result for the object store."""
        from actors.fleet.transport import pack, unpack

        return pack(request.run(self.shard, *unpack(given)))

    def keep(self, key: str, request: ShardRequest, *given: Any) -> Any:
        """Run a request; its activations stay on the device, other results wait for `kept`."""
        from actors.fleet.transport import pack

        found = request.run(self.shard, *given)
        if not isinstance(found, tuple):
            return found
        *small, activations = found
        self.results[key] = pack(tuple(small) if len(small) > 1 else small[0])
        return activations

    def kept(self, key: str) -> Any:
        """The other results of a `keep`, which are then dropped."""
        return self.results.pop(key)

    def begin(self, learns: bool, first: bool) -> None:
        """A call of the whole model begins; see `PeakMemory.begin`."""
        from actors.cluster.peak_memory import PEAK_MEMORY

        PEAK_MEMORY.begin(learns, self.shard.device, first=first)

    def peak(self, method: str) -> int:
        """See `PeakMemory.peak`."""
        from actors.cluster.peak_memory import PEAK_MEMORY

        return PEAK_MEMORY.peak(self.shard.device, method)

    def pid(self) -> int:
        """Process id, once it holds its weights."""
        assert self.shard is not None
        return os.getpid()


class Replica:
    """`LocalExperts` in its own process, with one shard inside or as the coordinator of several."""

    def __init__(self, given: bytes, weights: bytes | None, coordinated: bytes = b"") -> None:
        """Keep the arguments; the first call loads the weights, as in `ShardActor`.

        Args:
            given: pickled reference to a `Setup`.
            weights: pickled reference to the weights of the whole model; None: they are in the
                shards.
            coordinated: pickled actors of the shards.
        """
        self.given = given, weights, coordinated
        self.making = threading.Lock()

    @property
    def experts(self) -> LocalExperts:
        """The experts; built by the first of several concurrent calls."""
        with self.making:
            return self.made

    @cached_property
    def made(self) -> LocalExperts:
        """Built once; use `experts`, which holds the lock."""
        from actors.fleet.replica_setup import build_experts

        return build_experts(*self.given)

    def call(self, request: Request[Result]) -> Result:
        """Run a request; if the direct transport fails, run it again through the object store.

        A direct transport can fail in many ways (a shard lost its kept results, a peer closed the
        connection), so every error except `InputError` counts as such a failure.
        """
        from actors.fleet.transport import GpuLink, ObjectStoreLink

        experts = self.experts
        link = experts.runner.pipeline.link  # another call may change it meanwhile
        device = experts.runner.device
        try:
            with (
                timed(request.metric_name, request.method),
                experts.meter.call(request.learns, device),
            ):
                return request.run(experts)
        except InputError:
            raise
        except Exception as error:
            if not isinstance(link, GpuLink):
                raise
            log.warning("transport: object store from now on: %s", " ".join(str(error).split()))
            experts.runner.pipeline.link = ObjectStoreLink()
            return request.run(experts)

    def pid(self) -> int:
        """Process id, once this process or its shards hold the weights."""
        assert self.experts is not None
        return os.getpid()

    def states(self) -> list[ProcessState]:
        """States of this process and of its shards' processes; does not load the weights."""
        shards = ray.cloudpickle.loads(self.given[2]) if self.given[2] else []
        asked: list[list[ProcessState]] = ray.get([shard.states.remote() for shard in shards])
        return [own_state(), *(each for found in asked for each in found)]
