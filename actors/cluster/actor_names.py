"""What actors and tasks of a sweep are called: in Ray's dashboard, in logs, in metrics' tags."""

from __future__ import annotations

import re

ACTOR = re.compile(
    r"sweep:(?P<sweep>.+)/(?:replica (?P<replica>\d+)(?: shard (?P<shard>\d+))?|\w+)"
)


def actor_name(
    sweep: str, replica: int | None = None, shard: int | None = None, *, what: str = "desk"
) -> str:
    """The name of an actor. Ray refuses a name that another actor of the same driver still has.

    Args:
        sweep: its name.
        replica: which; None: an actor that the sweep has one of, `what`.
        shard: which of the replica; None: the replica itself, or its coordinator.
        what: `desk`, `keeper`: one word.

    >>> actor_name("ta8", 0, 1), actor_name("ta8", 0), actor_name("ta8")
    ('sweep:ta8/replica 0 shard 1', 'sweep:ta8/replica 0', 'sweep:ta8/desk')
    """
    if replica is None:
        return f"sweep:{sweep}/{what}"
    return f"sweep:{sweep}/replica {replica}" + ("" if shard is None else f" shard {shard}")


def tags_of(name: str) -> dict[str, str]:
    """The tags that an actor's name stands for; those it says nothing of are left out.

    >>> tags_of("sweep:ta8/replica 0 shard 1")
    {'sweep': 'ta8', 'replica': '0', 'shard': '1'}
    >>> tags_of("sweep:ta8/desk"), tags_of("a worker")
    ({'sweep': 'ta8'}, {})
    """
    found = ACTOR.fullmatch(name)
    return {k: v for k, v in found.groupdict().items() if v is not None} if found else {}
