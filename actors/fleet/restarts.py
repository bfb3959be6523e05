"""Deaths of processes in the middle of a call: when the call is repeated and when it is given up.

A replica that dies twice in a row for one call, because memory ran out, is out of memory. Ray does
not tell the waiting process who killed an actor. So each process of a replica reports, while it is
alive, how many processes were killed for memory where it runs (`vitals`). Where Ray has a
dashboard,
it keeps how a process ended.
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

STARVED = 2
"""Deaths for want of memory in a row after which a call is given up. The second time it had the
machine to itself."""

DIED = 4
"""Deaths for reasons that nobody knows (a bug that ends the process, somebody's `kill`), in all."""

MOVED = 20
"""Calls lost with their nodes; a cluster that loses more of them is not one to work on."""

LOOK = 5.0
"""Seconds for Ray to say how a process ended."""

SILENT = threading.Event()
"""Set where Ray did not say it."""


@dataclass(frozen=True)
class Vitals:
    """One process of a replica, while it is alive."""

    node: str
    pid: int
    killed: int
    """Processes that were killed for memory there so far."""
    granted: int
    """Bytes of memory that the process and all beside it may take there."""
    free: int
    """Bytes of these that are left now."""
    by: str
    """What bounds them; empty: the machine."""
    address: str
    """Of the node, for people."""


def vitals() -> Vitals:
    """Of this process, of an actor."""
    node, granted = ray.get_runtime_context().get_node_id(), limits()
    return Vitals(
        str(node),
        os.getpid(),
        killed(),
        granted.total,
        granted.memory,
        granted.by,
        ray.util.get_node_ip_address(),
    )


class Living:
    """An actor of one process that the dispatcher can ask how it is."""

    def vitals(self) -> list[Vitals]:
        """Of this process; nothing is loaded for it."""
        return [vitals()]


def starved(before: Sequence[Vitals], after: Sequence[Vitals]) -> bool:
    """Whether processes were killed for memory where these ran.

    >>> one = Vitals("n", 1, 0, 8, 4, "", "")
    >>> starved([one], [one]), starved([one], [Vitals("n", 2, 1, 8, 4, "", "")])
    (False, True)
    """
    kills = {each.node: each.killed for each in before}
    return any(each.killed > kills.get(each.node, each.killed) for each in after)


def moved(before: Sequence[Vitals], after: Sequence[Vitals]) -> bool:
    """Whether a process is on another node now: its own went."""
    return {each.node for each in before} != {each.node for each in after}


def killed_by_ray(gone: Sequence[Vitals]) -> bool:
    """Whether Ray ended one of these processes for want of memory, as far as `LOOK` seconds tell.

    A Ray without a dashboard does not know, and takes long to say so: it is asked once.
    """
    found: list[bool] = []

    def ask() -> None:
        with suppress(Exception):  # no dashboard, or one of another kind
            found.append(any(map(ended_for_memory, gone)))

    if SILENT.is_set():
        return False
    thread = threading.Thread(target=ask, name="how it ended", daemon=True)
    thread.start()
    thread.join(LOOK)
    if not found:
        SILENT.set()
    return any(found)


def ended_for_memory(gone: Vitals) -> bool:
    """Whether Ray keeps that of a process."""
    from ray.util.state import list_workers

    filters = [("pid", "=", gone.pid), ("node_id", "=", gone.node)]
    ended = list_workers(filters=filters, detail=True, timeout=int(LOOK))
    return any("OUT_OF_MEMORY" in str(worker.exit_type) for worker in ended)


@dataclass
class Deaths:
    """Those of one call."""

    what: str
    """The call."""
    need: str = ""
    """What the plan counted for a replica, for messages."""
    starved: int = 0
    """For want of memory, in a row."""
    unknown: int = 0
    moved: int = 0
    last: Sequence[Vitals] = field(default_factory=tuple)

    def add(self, before: Sequence[Vitals], after: Sequence[Vitals], by_ray: bool) -> None:
        """One more.

        Args:
            before: the replica's processes before the call.
            after: the same when they were alive again; empty: its place is lost.
            by_ray: whether Ray says that it was for memory.

        Raises:
            OutOfMemory: that is enough.
            Died: so it is, for another reason.
        """
        self.last = after or before
        if by_ray or starved(before, after):
            self.starved += 1
            if self.starved == STARVED:
                raise OutOfMemory(self.hungry())
            return
        self.starved = 0
        if not after or moved(before, after):
            self.moved += 1
        else:
            self.unknown += 1
        if self.moved == MOVED:
            raise Died(f"{self.what}: its node went {MOVED} times: given up")
        if self.unknown == DIED:
            raise Died(
                f"{self.what}: the process that made it died {DIED} times{self.where()}, and nobody"
                f" knows why (`dmesg` there may); given up. If it was for memory: {self.remedy()}"
            )

    def hungry(self) -> str:
        """What is said where memory does not do."""
        return (
            f"{self.what}: out of memory, {STARVED} times in a row{self.where()}; {self.remedy()}"
        )

    def where(self) -> str:
        """The node that has least, and what it has."""
        from actors.cluster.partition import gigabytes  # late: it brings torch

        if not self.last:
            return ""
        least = min(self.last, key=lambda each: each.free)
        bound = f" ({least.by})" if least.by else ""
        return (
            f", on node {least.address}, where {gigabytes(least.granted)} are granted{bound} and"
            f" {gigabytes(least.free)} free without it"
        )

    def remedy(self) -> str:
        """What to do."""
        needed = f"planned: {self.need}; " if self.need else ""
        return (
            f"{needed}set placement.replicas lower, placement.dtype: float16, placement.weights:"
            " files, or, over several nodes, placement.shards higher; or grant more memory"
        )


class Turns:
    """Calls side by side, or one by itself: after a death for memory, it is seen whose it was."""

    def __init__(self) -> None:
        self.running = self.waiting = 0
        """Calls under way, and those that wait to be alone."""
        self.changed = asyncio.Condition()

    @asynccontextmanager
    async def turn(self, *, alone: bool) -> AsyncIterator[None]:
        """Wait for it, and have it."""
        async with self.changed:
            self.waiting += alone
            try:
                await self.changed.wait_for(
                    lambda: not self.running if alone else not self.waiting and self.running >= 0
                )
            finally:
                self.waiting -= alone
                self.changed.notify_all()  # who gave up, others need not wait for
            self.running = -1 if alone else self.running + 1
        try:
            yield
        finally:
            async with self.changed:
                self.running = 0 if alone else self.running - 1
                self.changed.notify_all()
