"""Deaths of processes during a call: decide whether the call is repeated or given up.

A call is given up as out of memory when its replica dies twice in a row for lack of memory. Ray
does not tell the waiting process why an actor died. So each process of a replica reports how many
processes were killed for lack of memory on its node (`own_state`), and the dispatcher compares the
number before and after a death. A Ray with a dashboard also keeps how each process ended.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import ray

from actors.cluster.fatal import Died, OutOfMemory
from actors.cluster.limits import killed, limits

MEMORY_DEATHS = 2
"""Deaths in a row for lack of memory after which a call is given up. At the second attempt it ran
alone."""

UNKNOWN_DEATHS = 4
"""Deaths for unknown reasons (a crash, a `kill`) after which a call is given up."""

NODE_LOSSES = 20
"""Losses of the call's node after which a call is given up."""

ASK_TIMEOUT = 5.0
"""Seconds to wait for Ray's answer how a process ended."""

UNANSWERED = threading.Event()
"""Set if Ray did not answer in time; it is then not asked again."""


@dataclass(frozen=True)
class ProcessState:
    """State of one running process of a replica, and of its node's memory."""

    node: str
    pid: int
    killed: int
    """Number of processes killed for lack of memory there so far."""
    granted: int
    """Bytes of memory granted there to this process and its siblings."""
    free: int
    """Bytes of these that are free now."""
    by: str
    """What limits the memory; empty: the machine."""
    address: str
    """Address of the node, for messages."""


def own_state() -> ProcessState:
    """State of this process, which is an actor."""
    node, granted = ray.get_runtime_context().get_node_id(), limits()
    return ProcessState(
        str(node),
        os.getpid(),
        killed(),
        granted.total,
        granted.memory,
        granted.by,
        ray.util.get_node_ip_address(),
    )


class StateReporter:
    """An actor of one process that reports its state to the dispatcher."""

    def states(self) -> list[ProcessState]:
        """State of this process; does not load the weights."""
        return [own_state()]


def killed_for_memory(before: Sequence[ProcessState], after: Sequence[ProcessState]) -> bool:
    """Whether processes were killed for lack of memory on these nodes.

    >>> one = ProcessState("n", 1, 0, 8, 4, "", "")
    >>> two = ProcessState("n", 2, 1, 8, 4, "", "")
    >>> killed_for_memory([one], [one]), killed_for_memory([one], [two])
    (False, True)
    """
    kills = {each.node: each.killed for each in before}
    return any(each.killed > kills.get(each.node, each.killed) for each in after)


def moved(before: Sequence[ProcessState], after: Sequence[ProcessState]) -> bool:
    """Whether a process runs on another node now, because it lost its own."""
    return {each.node for each in before} != {each.node for each in after}


def killed_by_ray(gone: Sequence[ProcessState]) -> bool:
    """Whether Ray ended one of these processes for lack of memory; waits at most `ASK_TIMEOUT` s.

    A Ray without a dashboard does not know, and is slow to answer: it is asked only once.
    """
    found: list[bool] = []

    def ask() -> None:
        with suppress(Exception):  # no dashboard, or one of another kind
            found.append(any(map(ended_for_memory, gone)))

    if UNANSWERED.is_set():
        return False
    thread = threading.Thread(target=ask, name="how it ended", daemon=True)
    thread.start()
    thread.join(ASK_TIMEOUT)
    if not found:
        UNANSWERED.set()
    return any(found)


def ended_for_memory(gone: ProcessState) -> bool:
    """Whether Ray has recorded that a process was ended for lack of memory."""
    from ray.util.state import list_workers

    filters = [("pid", "=", gone.pid), ("node_id", "=", gone.node)]
    ended = list_workers(filters=filters, detail=True, timeout=int(ASK_TIMEOUT))
    return any("OUT_OF_MEMORY" in str(worker.exit_type) for worker in ended)


@dataclass
class Deaths:
    """Deaths during one call, by reason."""

    what: str
    """Title of the call, for messages."""
    need: str = ""
    """Memory that the plan counted for a replica, for messages."""
    for_memory: int = 0
    """Deaths for lack of memory, in a row."""
    unknown: int = 0
    moved: int = 0
    last: Sequence[ProcessState] = field(default_factory=tuple)

    def add(
        self, before: Sequence[ProcessState], after: Sequence[ProcessState], by_ray: bool
    ) -> None:
        """Count a death; raise an error after too many.

        Args:
            before: states of the replica's processes before the call.
            after: their states after the restart; empty: the replica lost its place.
            by_ray: whether Ray recorded an end for lack of memory.

        Raises:
            OutOfMemory: too many deaths for lack of memory.
            Died: too many deaths for another reason.
        """
        self.last = after or before
        if by_ray or killed_for_memory(before, after):
            self.for_memory += 1
            if self.for_memory == MEMORY_DEATHS:
                raise OutOfMemory(self.memory_message())
            return
        self.for_memory = 0
        if not after or moved(before, after):
            self.moved += 1
        else:
            self.unknown += 1
        if self.moved == NODE_LOSSES:
            raise Died(f"{self.what}: its node went {NODE_LOSSES} times: given up")
        if self.unknown == UNKNOWN_DEATHS:
            raise Died(
                f"{self.what}: the process that made it died {UNKNOWN_DEATHS}"
                f" times{self.on_node()}, and nobody knows why (`dmesg` there may); given up. If it"
                f" was for memory: {self.advice()}"
            )

    def memory_message(self) -> str:
        """Error message for lack of memory."""
        return (
            f"{self.what}: out of memory, {MEMORY_DEATHS} times in a row{self.on_node()};"
            f" {self.advice()}"
        )

    def on_node(self) -> str:
        """The node with the least free memory, for messages."""
        from actors.cluster.partition import gigabytes  # late: it brings torch

        if not self.last:
            return ""
        least = min(self.last, key=lambda each: each.free)
        bound = f" ({least.by})" if least.by else ""
        return (
            f", on node {least.address}, where {gigabytes(least.granted)} are granted{bound} and"
            f" {gigabytes(least.free)} free without it"
        )

    def advice(self) -> str:
        """Settings that reduce memory, for messages."""
        needed = f"planned: {self.need}; " if self.need else ""
        return (
            f"{needed}set placement.replicas lower, placement.dtype: bfloat16, placement.weights:"
            " files, or, over several nodes, placement.shards higher; or grant more memory"
        )


class CallLock:
    """Lock that many calls hold at the same time, or one call alone.

    A call that died for lack of memory is repeated alone, to see whether it is the cause.
    """

    def __init__(self) -> None:
        self.running = self.waiting = 0
        """Number of running calls (−1: one alone), and of calls that wait to run alone."""
        self.changed = asyncio.Condition()

    @asynccontextmanager
    async def hold(self, *, alone: bool) -> AsyncIterator[None]:
        """Acquire the lock, and release it at the end of the block."""
        async with self.changed:
            self.waiting += alone
            try:
                await self.changed.wait_for(
                    lambda: not self.running if alone else not self.waiting and self.running >= 0
                )
            finally:
                self.waiting -= alone
                self.changed.notify_all()  # after a cancelled wait, others may go on
            self.running = -1 if alone else self.running + 1
        try:
            yield
        finally:
            async with self.changed:
                self.running = 0 if alone else self.running - 1
                self.changed.notify_all()
