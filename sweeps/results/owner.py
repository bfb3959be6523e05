"""`owner.json`: which driver runs a sweep, and when it last showed that it is alive."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field

from actors.files.documents import checked, parse_json
from fusion.errors import InputError
from sweeps.console.number_format import seconds

FILE = "owner.json"
BEAT = 30.0
"""Seconds between two signs of life."""

STALE = 120.0
"""Seconds without one after which a driver counts as gone. Clocks of two machines may differ by
less than this; the driver that was taken for gone sees the other's name at its next beat, and
leaves the storage to it."""

State: TypeAlias = Literal["running", "finished", "failed", "stopped"]


Word: TypeAlias = Annotated[str, Field(max_length=300)]
Moment: TypeAlias = Annotated[float, Field(ge=0, lt=1e11, allow_inf_nan=False)]


def process_space() -> str:
    """Identifier of the pid namespace: the same pid may exist elsewhere; empty: unknown."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


@dataclass(frozen=True)
class Owner:
    """The driver of a sweep, as of its last heartbeat."""

    __pydantic_config__ = ConfigDict(extra="ignore")  # a later version may write more

    driver: Word = field(default_factory=lambda: uuid.uuid4().hex)
    host: Word = field(default_factory=socket.gethostname)
    pid: Annotated[int, Field(ge=1, lt=2**31)] = field(default_factory=os.getpid)
    space: Word = field(default_factory=process_space)
    since: Moment = field(default_factory=time.time)
    """Seconds since the epoch."""
    beat: Moment = field(default_factory=time.time)
    """Likewise: the last sign of life."""
    state: State = "running"

    @property
    def alive(self) -> bool:
        """Whether the driver runs: its state, its last heartbeat, and its process where that can be
        seen."""
        return self.state == "running" and time.time() - self.beat < STALE and not self.absent

    @property
    def absent(self) -> bool:
        """Whether this machine is the driver's and has no such process; False on other machines."""
        if (self.host, self.space) != (socket.gethostname(), process_space()) or not self.space:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def beating(self, state: State = "running") -> Owner:
        """The same owner with a heartbeat of now."""
        return replace(self, beat=time.time(), state=state)

    def words(self) -> str:
        """`pid 71 on node-3, since 2026-03-01 09:40:00 UTC`."""
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"pid {self.pid} on {self.host}, since {since}"

    def state_text(self) -> str:
        """State of the sweep, in words."""
        if self.state != "running" or self.alive:
            return "interrupted" if self.state == "stopped" else self.state
        return f"its driver ({self.words()}) is gone; last sign of life {seconds(self.age)} ago"

    @property
    def age(self) -> float:
        """Seconds since the last heartbeat."""
        return max(0.0, time.time() - self.beat)

    def dump(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self), indent=1).encode()


def read_owner(data: bytes | None) -> Owner | None:
    """Parse an owner file; None if it is missing or damaged."""
    if data is None:
        return None
    with suppress(InputError):
        content = parse_json(data, FILE)
        if isinstance(content, dict) and "driver" in content:
            return checked(Owner, content, FILE)
    return None
